"""Diagnoses of models that are right, too small, and too large."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from ldm_filter import LDMFilter
from ldm_filter.estimator.diagnosis import duration

TURN, DECAY, STEPS = 0.3, 0.98, 2000


def matrices(extra: int = 0) -> dict[str, np.ndarray]:
    """A damped rotation, and states that nothing sees."""
    n = 2 + extra
    A = np.diag(np.full(n, 0.5))
    A[:2, :2] = DECAY * np.array([[math.cos(TURN), -math.sin(TURN)], [math.sin(TURN), math.cos(TURN)]])
    C = np.zeros((2, n))
    C[:, :2] = np.array([[1.0, 0.2], [-0.3, 0.8]])
    P = np.eye(n)
    return {
        "transition_matrix": A,
        "transition_cov": 0.05 * np.eye(n),
        "observation_matrix": C,
        "measurement_cov": 0.2 * np.eye(2),
        "initial_mean": np.zeros(n),
        "initial_cov": P,
    }


def simulate(seed: int = 0) -> pd.DataFrame:
    rng, model = np.random.default_rng(seed), matrices()
    h, rows = np.zeros(2), []
    for _ in range(STEPS):
        h = model["transition_matrix"] @ h + rng.normal(size=2) * math.sqrt(0.05)
        rows.append(model["observation_matrix"] @ h + rng.normal(size=2) * math.sqrt(0.2))
    return pd.DataFrame(rows, pd.date_range("2025-01-01", periods=STEPS, freq="min"), columns=["0", "1"])


def test_the_true_model_is_consistent():
    found = LDMFilter.from_matrices(**matrices(), step=60.0).diagnose(simulate())
    low, high = found.nis_bounds
    assert low - 0.02 < found.nis < high + 0.02
    assert found.autocorrelation < 2 * found.whiteness_bound
    assert sum(found.pit) == pytest.approx(1.0)
    assert found.pit_distance < 0.03
    assert max(abs(share - 0.1) for share in found.pit) < 0.03
    assert found.advice == []
    assert len(found.autocorrelations) == 10


def test_the_spectrum_is_in_the_units_of_the_data():
    model = LDMFilter.from_matrices(**matrices(), step=60.0)
    mode = model.diagnose(simulate()).spectrum[0]
    assert mode.period_seconds == pytest.approx(60 * 2 * math.pi / TURN)
    assert mode.half_life_seconds == pytest.approx(60 * math.log(0.5) / math.log(DECAY))
    assert "20.9 min, 34.3 min" in str(model.diagnose(simulate()))
    plain = LDMFilter.from_matrices(**matrices()).diagnose(simulate().to_numpy())
    assert plain.spectrum[0].period == pytest.approx(2 * math.pi / TURN)


def test_idle_states_are_named():
    found = LDMFilter.from_matrices(**matrices(extra=2), step=60.0).diagnose(simulate())
    assert found.carried[2:] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert any("2 of 4 directions" in sentence and "state_dim=2" in sentence for sentence in found.advice)


def test_a_state_that_is_too_small_shows_in_the_innovations():
    small = {"transition_matrix": [[0.9]], "transition_cov": [[0.3]], "observation_matrix": [[1.0], [0.2]], "measurement_cov": 0.3 * np.eye(2)}
    found = LDMFilter.from_matrices(**small, initial_mean=[0.0], initial_cov=[[1.0]], step=60.0).diagnose(simulate())
    assert any("too small" in sentence for sentence in found.advice)


def test_signal_to_noise_of_a_scalar_is_its_closed_form():
    a, q, r = 0.8, 0.5, 0.3
    scalar = {"initial_mean": [0.0], "transition_matrix": [[a]], "transition_cov": [[q]], "observation_matrix": [[1.0]]}
    model = LDMFilter.from_matrices(**scalar, measurement_cov=[[r]], initial_cov=[[1.0]])
    found = model.diagnose(np.random.default_rng(0).normal(size=(400, 1)))
    # the stationary P^- of the scalar Riccati equation
    b = r * (1 - a * a) - q
    prior = (-b + math.sqrt(b * b + 4 * q * r)) / 2
    assert found.carried[0] == pytest.approx(q / (1 - a * a) / ((prior + r) * (1 - a * a)), rel=1e-6)


@pytest.mark.parametrize(
    ("time", "unit", "words"),
    [(90.0, "s", "90 s"), (7200.0, "s", "2 h"), (86400 * 400.0, "s", "400 days"), (0.05, "s", "50 ms"), (3.0, "", "3"), (math.inf, "s", "never")],
)
def test_durations(time: float, unit: str, words: str):
    assert duration(time, unit) == words
