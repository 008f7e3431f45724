"""The speed benchmark's runner, checks and tables. Figures are made by `python -m benchmarks.speed`, never here."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import markdown, records, speed, speed_machine, speed_plot, speed_steps, speed_tables
from benchmarks.speed_jax import JAX
from benchmarks.speed_libraries import LIBRARIES, Entrant, Result, Run
from benchmarks.speed_parts import BUDGETS, memory_cases
from benchmarks.speed_problems import INPUTS, REGIMES, WORKLOADS, Problem, Size, floor, problem
from benchmarks.speed_race import Limits, absent, compare, entrants, race
from benchmarks.speed_torch import OURS, PLAIN, TORCH, reference

QUICK = Limits(repeats=3, block=0.0, call=10.0)
SMALL = Size(3, 12, 4, 2)


def spoilt(prepare, change) -> Entrant:
    """ldm-filter with a fault."""

    def spoilt_prepare(data: Problem, backward: bool) -> Run:
        run = prepare(data, backward)
        return Run(run.call, lambda output: change(run.read(output)))

    return OURS._replace(name="spoilt", prepare=spoilt_prepare)


# --- problems and floors


@pytest.mark.parametrize("regime", REGIMES)
def test_a_problem_cut_or_watched_is_the_part_of_the_whole(regime: str) -> None:
    data = problem(SMALL, regime)
    part = data.cut(2, 5)
    assert part.size == Size(2, 5, 4, 2) and part.constant == data.constant == (regime == "constant")
    assert torch.equal(part.z, data.z[:2, :5]) and torch.equal(part.R, data.R if data.constant else data.R[:2, :5])
    whole, first = reference(data, False), reference(part, False)
    assert compare(whole, first, data) < 1e-13  # causal
    watched, alone = reference(data.watching(2), True), reference(data.cut(2, 12), True)
    assert compare(watched, alone, data) < 1e-12
    assert watched.gradients is not None and not watched.gradients[INPUTS.index("z")][2].any()
    with pytest.raises(ValueError, match="regime is 'both'"):
        problem(SMALL, "both")


def test_the_floor_is_counted_as_by_hand() -> None:
    one = Size(1, 1, 1, 1)
    assert floor(one, "constant", False).flops == 7  # A h; C h and K e, each with its sum; w^2
    assert floor(one, "constant", False).bytes == 8 * 4  # z, mean, log-likelihood, covariance
    # A P, (A P) A' and the sum, C P, (C P) C' and the sum, the root (1/3), W, W' W and its difference
    assert floor(one, "per-sequence", False).flops == pytest.approx(7 + 4 + 4 + 1 / 3 + 1 + 2)
    assert floor(one, "per-sequence", False).bytes == 8 * 5
    for regime in REGIMES:
        for size in WORKLOADS.values():
            forward, both = floor(size, regime, False), floor(size, regime, True)
            assert 2 < both.flops / forward.flops < 4 and both.bytes > forward.bytes and both.chain > forward.chain
            assert floor(size._replace(batch=2 * size.batch), regime, True).flops == 2 * both.flops
    work = floor(WORKLOADS["W3"], "constant", False)
    chain = 1e-9 * 0.5 * work.chain
    assert work.seconds(1e9, 1e9, 0.5, 2.0, serial=True) == pytest.approx(chain) and chain == pytest.approx(1e5 * 10 * 0.5e-9)
    assert work.seconds(50.0, 1e9, 0.5, 2.0, serial=False) == pytest.approx(work.flops / 50e9)
    assert work.seconds(1e9, 30.0, 0.5, 2.0, serial=False) == pytest.approx(work.bytes / 30e9)


# --- the check


@pytest.mark.parametrize("entrant", [*TORCH, *JAX, *LIBRARIES], ids=lambda entrant: entrant.name)
def test_every_competitor_agrees_with_the_reference(entrant: Entrant) -> None:
    if entrant not in entrants():
        pytest.skip(f"{entrant.package} is not installed: pip install 'ldm-filter[peers]'")
    if entrant in JAX:
        pytest.skip("compiles for too long; every run of the benchmark checks it")
    for regime in entrant.regimes:
        for backward in (False, True) if entrant.gradients else (False,):
            (row,) = race([entrant], problem(SMALL, regime), backward, QUICK, regime)
            assert row["entrant"] == entrant.name and "failure" not in row, row
            assert row["error"] <= entrant.tolerance and row["rate"] > 0 and len(row["seconds"]) == 3


def test_a_long_series_is_checked_on_its_first_steps_and_timed_whole() -> None:
    data = problem(Size(1, 2500, 2, 1), "constant")
    (row,) = race([OURS], data, True, QUICK, "constant")
    assert row["steps"] == 2500 and row["error"] < 1e-9


@pytest.mark.parametrize(
    "change",
    [
        lambda result: result._replace(mean=result.mean + 1e-6),
        lambda result: result._replace(cov=1.001 * result.cov),
        lambda result: result._replace(log_likelihood=result.log_likelihood + 0.1),
        lambda result: result._replace(mean=np.full_like(result.mean, np.nan)),
        lambda result: result._replace(mean=result.mean[..., :1]),
        *(
            lambda result, at=at: result._replace(gradients=tuple(g * (1 + 1e-5 * (i == at)) for i, g in enumerate(result.gradients)))
            for at in range(len(INPUTS))
        ),
    ],
)
def test_whoever_is_wrong_is_not_timed(change) -> None:
    data = problem(SMALL, "per-sequence")
    rows = {row["entrant"]: row for row in race([spoilt(OURS.prepare, change), PLAIN], data, True, QUICK, "per-sequence")}
    assert "rate" not in rows["spoilt"] and re.search("wrong|finite|shape", rows["spoilt"]["failure"])
    assert rows[PLAIN.name]["rate"] > 0


def test_a_covariance_gradient_may_lie_in_either_triangle() -> None:
    data = problem(SMALL, "constant")
    right = reference(data, True)
    assert right.gradients is not None
    tilt = np.triu(np.ones((4, 4)), 1)
    tilted = [g + (tilt - tilt.T if name == "Q" else 0) for name, g in zip(INPUTS, right.gradients, strict=True)]
    assert compare(right._replace(gradients=tuple(tilted)), right, data) < 1e-14


def test_the_slow_are_timed_on_a_part() -> None:
    tight = Limits(repeats=1, block=0.0, call=1e-6)
    data = problem(Size(4, 100, 2, 1), "constant")
    rows = {row["entrant"]: row for row in race([OURS, PLAIN, LIBRARIES[0]], data, False, tight, "constant")}
    assert (rows[OURS.name]["batch"], rows[OURS.name]["steps"]) == (4, 100)
    assert (rows[PLAIN.name]["batch"], rows[PLAIN.name]["steps"]) == (4, 13)
    assert (rows["filterpy"]["batch"], rows["filterpy"]["steps"]) == (1, 13)


def test_only_installed_packages_take_part() -> None:
    names = {entrant.name for entrant in entrants()}
    assert {OURS.name, PLAIN.name, "filterpy", "statsmodels", "pykalman"} <= names
    assert not set(absent()) & {"filterpy", "statsmodels", "pykalman"}


# --- the run


def test_a_smoke_run_writes_a_whole_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main(["--smoke", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "speed.json").read_text())
    assert result["failed"] == [] and result["budget"] == "smoke"
    parts = {row["part"] for row in result["rows"]}
    assert parts == {"machine", "races", "curves", "threads", "online", "training", "state steps", "smoothers", "profile", "memory"}
    assert not [row for row in result["rows"] if "failure" in row]
    assert (tmp_path / "speed.png").stat().st_size > 1000
    (series,) = (row for row in result["rows"] if row["part"] == "memory")
    assert series["peak"] > 50e6 and series["added"] < series["peak"]
    text = speed_tables.render(result)
    assert speed_tables.headline(result).count("\n") == 1 + 2 * len(WORKLOADS) and "series x steps" in speed_tables.headline(result)
    assert "| **ldm-filter** |" in text and "W2, against plain torch loop | not measured | ≥ 50 |" in text
    stages = [row["share"] for row in result["rows"] if row["part"] == "profile"]
    assert sum(stages) == pytest.approx(1.0) and min(stages) > 0.0 and "where its time goes | encoder" in text
    assert "one step of a batch whose A differs by sequence, with gradients, 3 x n 4, m 2: against torch" in text


def test_some_parts_anew_leave_the_others_and_say_of_which_run_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.speed_tables, "update", lambda folder: None)
    for number, parts in enumerate((["machine", "online", "threads"], ["online"], ["threads"])):
        monkeypatch.setattr(speed, "_run_part", lambda part, budget, seconds, number=number: ([{"part": part[0], "at": number}], True))
        assert speed.main(["--smoke", "--parts", *parts, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "speed.json").read_text())
    assert {row["part"]: row["at"] for row in result["rows"]} == {"machine": 0, "online": 1, "threads": 2}
    assert [run["parts"] for run in result["kept"]] == [["machine"], ["online"]] and result["kept"][0]["commit"] == result["commit"]


def test_parts_of_two_machines_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {"device": "another", "budget": "smoke", "rows": [{"part": "races"}, {"part": "online"}]}
    (tmp_path / "speed.json").write_text(json.dumps(before))
    assert speed.main(["--smoke", "--parts", "online", "--out", str(tmp_path)]) == 2
    assert "speed.json is of another, budget smoke" in capsys.readouterr().err
    assert json.loads((tmp_path / "speed.json").read_text()) == before, "nothing is lost"


def test_a_compiled_step_that_is_wrong_is_not_timed() -> None:
    calls = iter((1.0, 2.0))
    with pytest.raises(ValueError, match=r"differ by 5\.0e-01 of the largest"):
        speed_steps._beside_torch(lambda: [torch.tensor([next(calls)])], BUDGETS["smoke"].limits)


def test_a_part_that_breaks_costs_no_other_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        Path(command[command.index("--into") + 1]).write_text('{"part": "memory", "workload": "series"}\n')
        return subprocess.CompletedProcess(command, returncode=-9)

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", broken)
        rows, complete = speed._run_part(("memory", OURS.name, "series", "constant", "forward"), "smoke", 60.0)
    assert rows == [{"part": "memory", "workload": "series"}] and not complete
    monkeypatch.setattr(speed, "_run_part", lambda part, budget, seconds: ([], part[0] != "memory"))
    monkeypatch.setattr(speed.speed_tables, "update", lambda folder: None)
    assert speed.main(["--smoke", "--parts", "machine", "memory", "--out", str(tmp_path)]) == 1
    result = json.loads((tmp_path / "speed.json").read_text())
    assert result["failed"] == ["memory ldm-filter series constant forward"] and result["rows"] == []


def test_what_failed_stands_under_the_tables() -> None:
    text = speed_tables.render(result_of(raced(OURS.name, 1e8)) | {"failed": ["threads"]})
    assert "Parts that failed: threads." in text


def test_the_full_budget_is_what_the_goals_ask_for() -> None:
    full = BUDGETS["full"]
    assert full.workloads == WORKLOADS and full.limits.repeats >= 5 and full.long_series == full.online[0] == 1_000_000
    assert set(full.curves) == set(speed_plot.TITLES)
    cases = memory_cases(full, [OURS.name, PLAIN.name])
    assert cases[0] == (OURS.name, "series", "constant", "forward") and len(cases) == 5


def test_the_machine_is_measured_and_one_core_is_kept() -> None:
    figures = speed_machine.measure()
    assert all(value > 0 for value in figures.values()) and figures["divide_ns"] > figures["multiply_ns"]
    before = speed_machine.cores()
    with speed_machine.one_core():
        assert speed_machine.cores() == 1
    assert speed_machine.cores() == before
    assert speed_machine.memory_peak() >= speed_machine.memory_now() > 0


# --- the tables


def raced(entrant: str, rate: float, workload: str = "W1", backward: bool = False) -> dict[str, object]:
    size = WORKLOADS[workload]
    row = {"part": "races", "workload": workload, "regime": "constant", "backward": backward, "entrant": entrant, "rate": rate}
    return row | {"seconds": [1.0] * 5, "batch": size.batch, "steps": size.steps, "error": 1e-15}


def result_of(*rows: dict[str, object]) -> dict[str, object]:
    header = {"device": "a machine", "versions": {"torch": "2"}, "commit": "abc", "time": "2026-01-01", "failed": []}
    machine = {"part": "machine", "gflops": 50.0, "copy_gbs": 30.0, "multiply_ns": 0.7, "divide_ns": 3.0, "absent": ["jax"]}
    return header | {"rows": [machine, *rows]}


def test_ratios_stand_beside_their_goals_reached_or_not() -> None:
    jax = [raced(JAX[0].name, 20e6), raced(JAX[1].name, 40e6)]
    text = speed_tables.render(result_of(raced(OURS.name, 100e6), raced(PLAIN.name, 1e6), *jax, raced(OURS.name, 30e6, backward=True)))
    assert "| W1, against plain torch loop | 100 | ≥ 50 | reached | not measured | ≥ 50 |" in text
    assert f"| W1, against best of JAX | 2.5 ({JAX[1].name}) | ≥ 3 | **short** |" in text
    assert "| **ldm-filter** | 100 / 30 | – |" in text and "Not installed, so not measured: jax" in text
    # 56 bytes a step for each of 256 sequences, and the covariance that they share
    assert f"constant, W1, forward | 68 | 56 | {30e3 / 56.5:.0f} | 100 | {100 * 100 * 56.5 / 30e3:.0f} %" in text


def test_what_was_timed_on_a_part_is_marked_and_failures_are_named() -> None:
    cut = raced(PLAIN.name, 1e6) | {"steps": 50}
    broken = {"part": "races", "workload": "W1", "regime": "constant", "backward": False, "entrant": "filterpy", "failure": "ValueError: no"}
    text = speed_tables.render(result_of(raced(OURS.name, 1e8), cut, broken))
    assert "| plain torch loop | 1 * |" in text and "filterpy failed at W1: ValueError: no" in text
    assert speed_tables.render({"rows": []}) == speed_tables.NOTHING


def test_no_figure_in_the_readme_is_typed() -> None:
    text = (records.ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    fresh = markdown.replace_between(text, speed_tables.MARKERS, speed_tables.render(speed_tables.read(records.RESULTS)))
    assert text == fresh, "run `python -m benchmarks.speed_tables`"


def test_results_without_a_log_likelihood_are_compared_by_their_moments() -> None:
    data = problem(SMALL, "constant")
    right = reference(data, False)
    assert compare(Result(right.mean, right.cov), right, data) == 0.0
