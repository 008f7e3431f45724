"""All objectives side by side: each trains, a collapse is a figure and no failure, and the table counts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import families, framework_methods, quality, records, tables
from benchmarks.framework_methods import CONDITION, METHODS, default_methods
from ldm_filter import CollapseError, LDMFilter
from ldm_filter.objectives.presets import OBJECTIVES


@pytest.mark.parametrize("task", framework_methods.CONDITIONS)
def test_named_methods_and_estimators_train_on_every_task(task: str, tmp_path: Path) -> None:
    some = ["log-det", "recurrent+log-det", "pair-regression+log-det", "vicreg-hinge", "cpc", "byol"]
    assert quality.run_all([task], some, "smoke", 1, tmp_path, conditions=[CONDITION]) == 0
    rows = records.read(tmp_path)
    assert [row["method"] for row in rows] == some
    assert all(row["metrics"]["collapsed"] or {"r2", "latent_r2", "nis"} <= set(row["metrics"]) for row in rows)


def test_nothing_of_the_framework_is_left_out() -> None:
    used = {method.arguments["objective"] for method in METHODS.values()}
    square = {"ica", "temporal-ica", "jacobian"}  # need as many latents as entries of an observation
    parts = {"auto", "kalman", "info-nce", "variance-covariance"}  # stand under another name: log-det, cpc, vicreg-hinge
    assert used | square | parts == set(OBJECTIVES)
    assert "conditional-log-det" not in default_methods("figure8", CONDITION)


def test_a_collapse_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_: object, **__: object) -> None:
        raise CollapseError("no spread")

    monkeypatch.setattr(LDMFilter, "fit", give_up)
    outcome = families.family_of("figure8", CONDITION).run("figure8", CONDITION, "knn", "smoke", 0)
    assert outcome.metrics["collapsed"] == 1.0 and "r2" not in outcome.metrics
    row = {"task": "figure8", "condition": CONDITION, "method": "knn", "readout": "affine", "budget": "cpu", "seconds": 1.0, "cpu_seconds": 1.0}
    row |= {"train_steps": 1, "device": "cpu", "versions": {"torch": "2"}, "commit": "abc", "code": "c0de", "time": "2026-01-01T00:00:00+00:00"}
    rows = [row | {"seed": 0, "metrics": outcome.metrics}, row | {"seed": 1, "metrics": {"r2": 0.9, "latent_r2": 0.8, "collapsed": 0.0}}]
    shown = tables.framework_tables(rows, lambda *_: "c0de")
    assert "| `knn` | Kalman filter | knn | 0.8000 | 0.9000 |" in shown and "1 of 2 |" in shown
    assert tables.full_tables(rows, lambda *_: "c0de") == tables.NOTHING


def test_a_run_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="is no run; expected condition 'framework'"):
        framework_methods.run("figure8", CONDITION, "guess", "smoke", 0)
