"""The benchmark's lines and the tables made of them. The figures here are made up."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from statistics import mean, stdev

import pytest

from benchmarks import cells, markdown, records, tables
from benchmarks.calibration_table import calibration_table
from benchmarks.dot_tasks import PUBLISHED, SETTINGS
from benchmarks.families import conditions_of, family_of
from benchmarks.goals import GOALS, Goal, goals_table

TASK = "circular-constant-noise"


def row(**changes: object) -> records.Row:
    """A run with made-up figures, for the tables alone."""
    made = {"task": TASK, "condition": "", "method": "ldm-log-det", "readout": "affine", "budget": "cpu", "seed": 0, "metrics": {"r2": 0.9}}
    made |= {"seconds": 1.0, "cpu_seconds": 0.5, "train_steps": 1, "device": "cpu", "versions": {"torch": "2"}}
    return made | {"commit": "abc", "code": "c0de", "time": "2026-01-01T00:00:00+00:00"} | changes


def today(task: str, condition: str) -> str:
    """The fingerprint of all code, as far as the tables know."""
    return "c0de"


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


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: f"{goal.task}-{goal.condition}-{goal.method}-{goal.metric}")
def test_goals_are_of_tasks_and_methods_that_are_run(goal: Goal) -> None:
    assert goal.condition in conditions_of(goal.task)
    methods = family_of(goal.task, goal.condition).default_methods(goal.task, goal.condition)
    assert goal.method in methods and cells.ours(goal.method)
    assert goal.rival in ("", "others", *methods)


def test_the_table_of_goals_judges_means_in_both_directions_and_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [("ldm-log-det", 0.95, 0.2), ("pca-em-kf", 0.90, 0.25), ("pca-affine", 0.50, 0.1), ("oracle", 0.99, 0.0)]
    rows = [row(method=name, seed=seed, metrics={"r2": r2 + 0.02 * seed, "crps": crps}) for name, r2, crps in told for seed in (0, 1)]
    goals = [
        Goal(TASK, "ldm-log-det", "r2", "R²", 0.955, form=".2f"),
        Goal(TASK, "ldm-log-det", "r2", "R²", (0.9, 0.95), form=".2f"),
        Goal(TASK, "ldm-log-det", "crps", "CRPS", low=True, rival="others", form=".2f"),
        Goal(TASK, "ldm-log-det", "crps", "CRPS", low=True, rival="pca-em-kf", form=".2f"),
        Goal(TASK, "ldm-log-det", "crps", "CRPS", 0.15, low=True, rival="pca-affine", form=".2f"),
        Goal(TASK, "ldm-log-det", "nll", "NLL", 0.0),  # nothing measured it
    ]
    monkeypatch.setattr("benchmarks.goals.GOALS", goals)
    lines = goals_table(rows, today).splitlines()
    assert lines[2] == f"| `{TASK}` | `ldm-log-det` | R² | ≥ 0.955 | 0.96 ± 0.01 | reached | 0.91 (`pca-em-kf`) | 1.00 ± 0.01 |"
    assert [line.split(" | ")[3:6:2] for line in lines[3:7]] == [
        ["0.9 to 0.95", "**short**"],
        ["better than all others", "**short**"],
        ["better than `pca-em-kf`", "reached"],
        ["within 0.15 of `pca-affine`", "reached"],
    ]
    assert lines[8] == "Reached: 3 of 5."
    assert goals_table([row(method="oracle")], today) == "No results yet."


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
        ("benchmarks/README.md", tables.FRAMEWORK, tables.framework_tables),
        ("benchmarks/README.md", tables.GOALS, tables.goals_table),
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
