"""What a larger budget changes and would take, and the picture of the coverage, from results made up for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import calibration_plot
from benchmarks.budgets import budget_table, changes, expected_seconds


def row(task: str, method: str, seed: int, **metrics: float) -> dict[str, object]:
    return {"task": task, "condition": "", "method": method, "budget": "cpu", "seed": seed, "metrics": metrics}


def test_time_grows_with_sequences_and_epochs() -> None:
    different = changes("figure8")
    assert set(different) == {"epochs", "series", "readout", "test"}, "not the device"
    work = different["epochs"][1] / different["epochs"][0] * different["series"][1] / different["series"][0]
    assert expected_seconds("figure8", 3.0) == pytest.approx(3.0 * work) == pytest.approx(24.0)
    assert changes("gates") == {} and expected_seconds("gates", 3.0) == 3.0, "the same in both budgets"
    with pytest.raises(ValueError, match="task is 'guess'"):
        changes("guess")


def test_a_line_for_each_task_that_was_run() -> None:
    rows = [row("figure8", "ldm-log-det", seed, fit_cpu_seconds=seconds) for seed, seconds in enumerate((300.0, 500.0))]
    rows += [row("figure8", "oracle", 0, fit_cpu_seconds=1.0), row("gates", "ldm-plain", 0, fit_seconds=1.0)]
    *_, line = budget_table(rows).splitlines()
    assert line.startswith("| `figure8` | `ldm-log-det` | 6.7 min | epochs 10 → 20, series 800 → 3200") and line.endswith("| 53 min |")
    assert budget_table([]) == "No results yet."


def test_coverage_of_the_own_method_is_drawn(tmp_path: Path) -> None:
    rows = [row("figure8", "ldm-log-det", seed, coverage50=0.5 + 0.1 * seed, coverage95=0.9, coverage95_turned=0.95) for seed in range(2)]
    rows.append(row("figure8", "pca-em-kf", 0, coverage50=0.1))
    assert calibration_plot.shares(rows, "") == {"figure8": [(0.5, pytest.approx(0.55)), (0.95, 0.9)]}
    assert calibration_plot.shares(rows, "_turned") == {"figure8": [(0.95, 0.95)]}
    calibration_plot.draw(rows, tmp_path / "some.png")
    calibration_plot.draw([], tmp_path / "none.png")
    assert [path.name for path in tmp_path.iterdir()] == ["some.png"] and (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")
