"""The benchmark's runner, judge and tables. Figures are made by `python -m benchmarks.quality`, never here."""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

from benchmarks import cells, dot_methods, families, markdown, quality, records, tables
from benchmarks.calibration_table import calibration_table
from benchmarks.dot_judge import Estimate, evaluate, evaluate_oracle
from benchmarks.dot_tasks import PUBLISHED, SETTINGS, Bench, settings_of
from ldm_filter import metrics

TASK = "circular-constant-noise"


def row(**changes: object) -> records.Row:
    """A run with made-up figures, for the tables alone."""
    made = {"task": TASK, "condition": "", "method": "ldm-log-det", "readout": "affine", "budget": "cpu", "seed": 0, "metrics": {"r2": 0.9}}
    made |= {"seconds": 1.0, "cpu_seconds": 0.5, "train_steps": 1, "device": "cpu", "versions": {"torch": "2"}}
    return made | {"commit": "abc", "code": "c0de", "time": "2026-01-01T00:00:00+00:00"} | changes


def today(task: str, condition: str) -> str:
    """The fingerprint of all code, as far as the tables know."""
    return "c0de"


# --- the runner


def test_a_smoke_run_writes_whole_lines_and_is_not_repeated(tmp_path: Path) -> None:
    methods = ["ldm-log-det", "pca-em-kf", "pca-affine", "oracle"]
    assert quality.run_all([TASK], methods, "smoke", 1, tmp_path) == 0
    rows = records.read(tmp_path)
    assert [entry["method"] for entry in rows] == methods
    assert all(tuple(entry) == records.FIELDS for entry in rows)
    learned, classical, unfiltered, oracle = (entry["metrics"] for entry in rows)
    names = "r2 r2_x r2_y mse excess nis nees coverage50 coverage80 coverage95 nll crps fit_seconds fit_cpu_seconds"
    kept = ["nll", "nees", "coverage50", "coverage80", "coverage95", "pit_distance"]
    others = {f"{name}_{variant}" for name in kept for variant in ("turned", "scaled")}
    bounded = ["nis", *(f"{name}{variant}" for name in ("nees", "coverage95") for variant in ("", "_turned", "_scaled"))]
    bounds = {f"{name}_{end}" for name in bounded for end in ("low", "high")}
    assert set(learned) == {*names.split(), *kept} | others | bounds
    assert all(learned[f"{name}_low"] <= learned[name] <= learned[f"{name}_high"] for name in bounded)
    assert oracle["r2"] > max(learned["r2"], classical["r2"]) and min(learned["r2"], classical["r2"]) > unfiltered["r2"]
    assert oracle["excess"] == 0.0 and learned["excess"] == pytest.approx(learned["mse"] / oracle["mse"] - 1)
    assert all(entry["code"] == quality.family_of(TASK).code() and entry["cpu_seconds"] >= 0 for entry in rows)
    assert rows[0]["train_steps"] == 3 and rows[3]["train_steps"] == 0  # 22 of 24 series train, in batches of at most 8
    assert quality.run_all([TASK], methods, "smoke", 1, tmp_path) == 0
    assert len(records.read(tmp_path)) == 4
    quality.run_all([TASK], ["oracle"], "smoke", 1, tmp_path, force=True)
    assert len(records.read(tmp_path)) == 5


def test_a_method_that_fails_costs_no_other_and_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.run_all([TASK], ["guess", "oracle"], "smoke", 1, tmp_path) == 1
    assert [entry["method"] for entry in records.read(tmp_path)] == ["oracle"]
    assert "method is 'guess', expected oracle" in capsys.readouterr().err


def test_a_full_run_that_broke_off_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SMOKE_RESULTS", tmp_path)
    seen = []

    def run(*arguments: object) -> records.Outcome:
        path = records.checkpoint()
        assert path is not None and path.parent.is_dir()
        seen.append(path.exists())
        path.write_text("state")
        if len(seen) == 1:
            raise RuntimeError("power failure")
        return records.Outcome({"r2": 0.5}, "none", 1.0, 0)

    monkeypatch.setattr(quality, "family_of", lambda *_: families.Family({TASK: ("",)}, lambda *_: ("m",), run, {}))
    monkeypatch.setattr(families.Family, "code", lambda _: "c0de")
    assert quality.run_all([TASK], ["m"], "full", 1, tmp_path / "results") == 1
    assert quality.run_all([TASK], ["m"], "full", 1, tmp_path / "results") == 0
    assert seen == [False, True] and not list((tmp_path / "checkpoints").iterdir())
    assert records.checkpoint() is None


def test_the_command_line_knows_its_tasks_and_budgets(tmp_path: Path) -> None:
    for arguments in (["--task", "figure9"], ["--task", TASK, "--budget", "huge"], []):
        with pytest.raises(SystemExit, match="2"):
            quality.main(arguments)
    assert quality.main(["--task", TASK, "--budget", "smoke", "--seeds", "1", "--methods", "oracle", "--out", str(tmp_path)]) == 0
    assert len(records.read(tmp_path)) == 1


@pytest.mark.slow
def test_the_smoke_run_of_all_tasks_takes_less_than_five_minutes(tmp_path: Path) -> None:
    before = time.process_time()
    assert quality.run_all(families.TASKS, None, "smoke", 1, tmp_path) == 0
    assert time.process_time() - before < 300
    ran = {(row["task"], row["condition"]) for row in records.read(tmp_path)}
    assert ran == {(task, condition) for task in families.TASKS for condition in families.conditions_of(task)}


def test_within_60_seconds_only_a_fit_that_ended_in_them_counts() -> None:
    data = Bench(TASK, settings_of(TASK, "smoke"), seed=0)
    assert dot_methods._within_limit("ldm-log-det", data, 59.0, 0.5) == {"r2_at_60s": 0.5, "seconds_at_60s": 59.0}
    assert dot_methods._within_limit("ldm-log-det", data, 70.0, 0.5) == {}  # one epoch is the least
    data.settings = replace(data.settings, epochs=2)
    again = dot_methods._within_limit("ldm-log-det", data, 70.0, 0.5)
    assert again["r2_at_60s"] > 0.9 and 0 < again["seconds_at_60s"] < 60


# --- the judge


def test_evaluate_of_a_known_filter_gives_its_known_figures() -> None:
    """h = M (position + e), e ~ N(0, s_t^2 I) with the filter saying s_t: calibrated by construction, also through the affine map."""
    data = Bench("circular-input-noise", replace(settings_of("circular-input-noise", "smoke"), readout=64, test=64, mlp=False), seed=0)
    rng = np.random.default_rng(0)
    matrix = np.array([[2.0, 1.0], [0.0, 3.0]])

    def known(position: np.ndarray, noise_var: np.ndarray) -> Estimate:
        std = 0.05 + 0.1 * noise_var[..., None]
        cov = std[..., None] ** 2 * (matrix @ matrix.T)
        return Estimate(
            (position + std * rng.standard_normal(position.shape)) @ matrix.T,
            cov,
            np.full(std.shape[:2], 1.25),
            noise_var[..., None, None] * np.eye(2) + 1.0,
        )

    test = known(data.test.position, data.test.noise_var)
    figures = evaluate(known(data.readout.position, data.readout.noise_var), test, data)
    error = test.mean @ np.linalg.inv(matrix).T - data.test.position
    assert figures["mse"] == pytest.approx((error**2).mean(), rel=0.02)
    assert figures["r2"] == pytest.approx((figures["r2_x"] + figures["r2_y"]) / 2)
    assert figures["r2"] == pytest.approx(1 - (error**2).mean() / 0.5, abs=1e-3)  # the variance of a coordinate on the unit circle
    assert figures["coverage95"] == pytest.approx(0.95, abs=0.02) and figures["coverage50"] == pytest.approx(0.5, abs=0.04)
    assert figures["nees"] == pytest.approx(1.0, abs=0.1)
    assert figures["coverage95_turned"] == pytest.approx(0.95, abs=0.02)  # nothing here turns with the position
    assert figures["coverage95_scaled"] == pytest.approx(0.95, abs=0.02)  # nothing here needs scaling
    assert figures["nll_turned"] == pytest.approx(figures["nll"], abs=0.05)
    assert figures["pit_distance"] < 0.03 and figures["nees_low"] < 1.0 < figures["nees_high"]
    assert figures["coverage95_low"] < 0.95 < figures["coverage95_high"]
    assert figures["noise_corr"] == pytest.approx(1.0) and figures["nis"] == 1.25
    assert figures["excess"] == pytest.approx(figures["mse"] / evaluate_oracle(data)["mse"] - 1)


def test_a_network_reads_out_what_an_affine_map_cannot() -> None:
    data = Bench(TASK, replace(settings_of(TASK, "smoke"), mlp=True), seed=0)

    def phase(angle: np.ndarray) -> Estimate:
        turned = np.mod(angle, 2 * np.pi)[..., None]
        return Estimate(turned, np.zeros((*turned.shape, 1)))

    figures = evaluate(phase(data.readout.angle), phase(data.test.angle), data)
    assert figures["r2"] < 0.5 and figures["mlp_r2"] > 0.97
    assert "nis" not in figures and "noise_corr" not in figures


def test_train_read_out_and_test_share_no_sequence() -> None:
    data = Bench(TASK, settings_of(TASK, "smoke"), seed=1)
    firsts = np.concatenate([data.train[:, 0], data.readout.frames[:, 0], data.test.frames[:, 0]]).reshape(-1, 100)
    assert len(np.unique(firsts, axis=0)) == len(firsts) == 24 + 16 + 8
    assert metrics.mse(data.readout.frames, Bench(TASK, settings_of(TASK, "smoke"), seed=1).readout.frames) == 0.0


# --- the lines


def test_lines_are_refused_when_written_and_named_when_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly"):
        records.append(tmp_path, {"task": TASK})
    with pytest.raises(ValueError, match="JSON compliant"):
        records.append(tmp_path, row(metrics={"r2": float("nan")}))
    records.append(tmp_path, row())
    with (tmp_path / f"{TASK}.jsonl").open("a") as file:
        file.write('{"task": 1}\n')
    with pytest.raises(ValueError, match=rf"{TASK}.jsonl line 2 has not exactly the fields"):
        records.read(tmp_path)


def test_a_line_from_before_code_and_cpu_time_were_kept_is_old_code(tmp_path: Path) -> None:
    early = {name: value for name, value in row().items() if name not in records.LATER}
    (tmp_path / f"{TASK}.jsonl").write_text(json.dumps(early) + "\n")
    assert records.read(tmp_path) == [early | {"cpu_seconds": None, "code": ""}]
    assert cells.MARK in tables.full_tables(records.read(tmp_path), today)


def test_a_clock_tells_work_from_waiting() -> None:
    clock = records.Clock()
    time.sleep(0.3)
    waited = clock.read()
    assert waited["fit_seconds"] >= 0.3 > 2 * waited["fit_cpu_seconds"]
    started = time.process_time()
    while time.process_time() < started + 0.05:
        pass
    assert clock.read()["fit_cpu_seconds"] >= 0.05


def test_the_newest_line_of_a_run_counts() -> None:
    old, new, other = row(), row(time="2026-01-02T00:00:00+00:00", seconds=2.0), row(seed=1)
    assert records.newest([new, other, old]) == [new, other]
    assert records.newest([row(seconds=1.0), row(seconds=2.0)])[0]["seconds"] == 2.0


def test_code_version_follows_the_code_and_nothing_else(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert records.code_version(tmp_path) == "unknown"
    (tmp_path / "ldm_filter").mkdir()
    (tmp_path / "ldm_filter" / "a.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "code")
    first = records.code_version(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{7,}", first)
    (tmp_path / "README.md").write_text("words")
    git("add", ".")
    git("commit", "-m", "words")
    assert records.code_version(tmp_path) == first
    (tmp_path / "ldm_filter" / "a.py").write_text("2")
    changed = records.code_version(tmp_path)
    assert re.fullmatch(rf"{first}\+[0-9a-f]{{4}}", changed)
    (tmp_path / "ldm_filter" / "a.py").write_text("3")
    assert records.code_version(tmp_path) not in (first, changed)


# --- the tables


def test_tables_hold_mean_and_spread_whatever_the_order() -> None:
    values = [0.9931, 0.9954, 0.9962]
    rows = [row(seed=seed, metrics={"r2": value, "nis": 1.0}) for seed, value in enumerate(values)]
    rows += [row(method="oracle", readout="none", metrics={"r2": 0.997}), row(budget="smoke", metrics={"r2": 0.1234})]
    text = tables.full_tables(rows, today)
    assert text == tables.full_tables(rows[::-1], today)
    assert f"| **`ldm-log-det`** | affine | 3 | {mean(values):.4f} ± {stdev(values):.4f} | 1.00 ± 0.00 |" in text
    assert "| `oracle` | none | 1 | 0.9970 | – |" in text
    assert "0.1234" not in text and cells.MARK not in text
    marked = tables.full_tables([*rows[1:], rows[0] | {"commit": "old", "code": "0ld"}], today)
    assert "**`ldm-log-det`** †" in marked and "`oracle` |" in marked and "† made by other code than today's (old)" in marked


def test_the_summary_names_the_best_classical_filter_and_the_paper() -> None:
    task = "figure8"
    figures = {"ldm-log-det": 0.99, "ldm-knn": 0.5, "pca-em-kf": 0.95, "pca-em-kf-adaptive": 0.97, "pca-affine": 0.98, "oracle": 0.999}
    text = tables.summary_table([row(task=task, method=method, metrics={"r2": value}) for method, value in figures.items()], today)
    assert "| `figure8` | 0.9900 | 0.9700 | 0.9990 | .990 / .991 |" in text
    assert tables.summary_table([], today) == tables.full_tables([], today) == tables.NOTHING
    assert set(PUBLISHED) <= set(SETTINGS)


def test_the_calibration_table_says_what_reaches_the_goal() -> None:
    """Means over seeds with their bounds; rows of older code lack some figures, and then say nothing of them."""
    ends = {"nees_low": 0.9, "nees_high": 1.1, "coverage95_low": 0.93, "coverage95_high": 0.96}
    told = {"nis": 1.0, "nees": 1.0, "coverage95": 0.945, "coverage95_turned": 0.975, "coverage95_scaled": 0.95, "pit_distance": 0.02}
    rows = [row(metrics=told | ends), row(seed=1, metrics=told | ends | {"coverage95": 0.935, "coverage95_low": 0.91})]
    line = calibration_table([*rows, row(method="oracle", metrics=told), row(method="ldm-knn", metrics=told)], today).splitlines()[2:4]
    assert line[0] == (
        f"| `{TASK}` | `ldm-log-det` | 1.00 | 1.00 [0.90, 1.10] | 0.940 [0.920, 0.960] | 0.975 | 0.950 | 0.020 / – | reached / **short** / reached |"
    )
    assert line[1] == ""  # neither the oracle nor methods beside the default ones
    old = calibration_table([*rows, row(seed=2, metrics={"nis": 1.0, "coverage95": 0.9})], today).splitlines()
    assert old[2] == f"| `{TASK}` | `ldm-log-det` | 1.00 | – | 0.927 | – | – | – | reached / – / – |"
    assert old[4] == "In 92 to 97 %: plain 1 of 1, turned 0 of 0, scaled 0 of 0."
    assert calibration_table([row(method="oracle")], today) == "No results yet."


def test_update_rewrites_between_the_markers_only(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    records.append(tmp_path / "benchmarks" / "results", row())
    full, summary = tmp_path / "benchmarks" / "README.md", tmp_path / "README.md"
    full.write_text("before\n<!-- tables:begin -->\n0.1111\n<!-- tables:end -->\nafter\n")
    summary.write_text("no markers\n")
    assert tables.update(tmp_path) == [full]
    text = full.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "0.9000" in text and "0.1111" not in text
    assert summary.read_text() == "no markers\n"
    assert tables.update(tmp_path) == []


def test_the_time_of_a_fit_is_cpu_time_where_that_is_known_and_one_thread_ran() -> None:
    times = {"fit_seconds": 90.0, "fit_cpu_seconds": 60.0}
    one, many = row(metrics=times, device="a, 2 cores, threads: 1"), row(metrics=times, device="a, 2 cores, threads: 2")
    early = row(metrics={"fit_seconds": 90.0}, device="a, 2 cores, threads: 1")
    shown = [tables.full_tables([entry], today).splitlines()[4].split("|")[4].strip() for entry in (one, many, early)]
    assert shown == ["60", "90", "90"]


@pytest.mark.parametrize(
    ("path", "markers", "render"),
    [
        ("benchmarks/README.md", tables.FULL, tables.full_tables),
        ("benchmarks/README.md", tables.ABLATED, tables.ablation_tables),
        ("benchmarks/README.md", tables.BUDGETS, tables.budget_table),
        ("benchmarks/README.md", tables.CALIBRATION, tables.calibration_table),
        ("README.md", tables.SUMMARY, tables.summary_table),
    ],
)
def test_no_figure_in_the_readmes_is_typed(path: str, markers: tuple[str, str], render: object) -> None:
    """What stands between the markers is what the results give; only the marks of age follow the commit of the day."""

    def ageless(text: str) -> str:
        return re.sub(rf" ?{cells.MARK}( made by .*\.$)?", "", text, flags=re.MULTILINE)

    text = (records.ROOT / path).read_text(encoding="utf-8")
    fresh = markdown.replace_between(text, markers, render(records.read(records.RESULTS), today))  # type: ignore[operator]
    assert ageless(text) == ageless(fresh), "run `python -m benchmarks.tables`"
