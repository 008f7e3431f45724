"""The Lorenz tasks. Figures are made by `python -m benchmarks.quality`, never here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import lorenz_methods, lorenz_tasks, quality, records
from benchmarks.lorenz_tasks import Bench, Estimate, evaluate, settings_of, true_transition
from datasets import lorenz


@pytest.mark.parametrize("held", [True, False])
def test_the_transition_for_torch_is_the_generators(held: bool) -> None:
    states = np.random.default_rng(0).normal(size=(10, 3)) * 8.0 + [0, 0, 25]
    mean, cov = true_transition(0.3, held)(torch.as_tensor(states), 1)
    assert mean.numpy() == pytest.approx(lorenz.transition(states) if held else lorenz.flow(states), abs=1e-4)
    assert cov.numpy() == pytest.approx(0.3 * np.eye(3))


def test_the_truth_gets_full_marks_and_decibels_are_those_of_the_error() -> None:
    data = Bench("lorenz", "10 dB", settings_of("lorenz", "smoke"), 0)
    cov = np.broadcast_to(0.25 * np.eye(3), (*data.test.states.shape, 3))
    nis = np.ones(data.test.states.shape[:2])
    assert data.validation.states.shape == data.test.states.shape and not np.array_equal(data.validation.states, data.test.states)
    held = Estimate(data.validation.states + 1.0, cov)  # twice as far as the covariance says: times four on the test as well
    figures = evaluate(Estimate(data.test.states + 0.5, cov, nis, (data.test.states + 0.05, cov)), held, data)
    assert figures["nees_scaled"] == pytest.approx(0.25, abs=1e-4)
    assert figures["db"] == pytest.approx(10 * np.log10(0.25), abs=1e-4) and figures["nees"] == pytest.approx(1.0, abs=1e-4)
    assert figures["db_smoothed"] == pytest.approx(10 * np.log10(0.0025), abs=1e-3) and figures["nis"] == 1.0


def test_a_smoke_run_of_every_method(tmp_path: Path) -> None:
    assert quality.run_all(["lorenz", "lorenz-decimation"], None, "smoke", 1, tmp_path, conditions=["", "10 dB"]) == 0
    rows = {(row["task"], row["method"]): row["metrics"] for row in records.read(tmp_path)}
    assert set(rows) == {(task, method) for task in lorenz_tasks.SETTINGS for method in lorenz_methods.default_methods(task)}
    known, seen = rows["lorenz", "ekf-true"], rows["lorenz", "observation"]
    assert known["db"] < seen["db"] - 5.0 and seen["db"] == pytest.approx(-10.0, abs=1.0)
    assert all("coverage95" in figures and "nll" in figures for figures in rows.values())


def test_unknown_names_are_refused() -> None:
    for call, message in (
        (lambda: settings_of("lorentz", "cpu"), "task is 'lorentz'"),
        (lambda: settings_of("lorenz", "huge"), "budget is 'huge'"),
        (lambda: lorenz_methods.run("lorenz", "5 dB", "observation", "smoke", 0), "condition is '5 dB'"),
        (lambda: lorenz_methods.run("lorenz", "0 dB", "guess", "smoke", 0), "method is 'guess'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.slow
def test_learned_from_observations_alone_it_is_near_the_filter_of_the_true_model() -> None:
    learned, known = (lorenz_methods.run("lorenz", "20 dB", method, "cpu", 0).metrics["db"] for method in ("ldm-polynomial", "ekf-true"))
    assert learned < known + 1.0
