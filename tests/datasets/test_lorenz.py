"""Lorenz series: the discrete map, the flow, the noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from datasets import lorenz


def matrix(x: np.ndarray) -> np.ndarray:
    return np.array([[-10.0, 10.0, 0.0], [28.0 - x[2], -1.0, 0.0], [x[1], 0.0, -8.0 / 3.0]])


def test_the_map_is_the_exponential_series() -> None:
    for x in np.random.default_rng(0).normal(size=(5, 3)) * [8.0, 9.0, 8.0] + [0, 0, 25]:
        assert lorenz.transition(x) == pytest.approx(expm(matrix(x) * 0.02) @ x, rel=2e-3)
        by_hand = sum((np.linalg.matrix_power(matrix(x) * 0.02, j) / np.prod(np.arange(1, j + 1)) @ x for j in range(6)), np.zeros(3))
        assert lorenz.transition(x) == pytest.approx(by_hand, rel=1e-12)


def test_the_flow_solves_the_differential_equation() -> None:
    for x in np.random.default_rng(1).normal(size=(3, 3)) * 8.0 + [0, 0, 25]:
        solved = solve_ivp(lambda _, y: matrix(y) @ y, (0.0, 0.02), x, rtol=1e-11, atol=1e-11).y[:, -1]
        assert lorenz.flow(x) == pytest.approx(solved, abs=1e-6)


def test_noise_is_of_the_size_asked_for() -> None:
    found = lorenz.noisy_process(200, 50, 0.5, 0.02, np.random.default_rng(2), np.ones(3))
    assert (found.states[:, 0] == 1.0).all() and found.states.dtype == found.observations.dtype == np.float32
    assert np.var(found.observations - found.states) == pytest.approx(0.5, rel=0.05)
    assert np.var(found.states[:, 1:] - lorenz.transition(found.states[:, :-1])) == pytest.approx(0.02, rel=0.05)


def test_decimated_series_have_no_process_noise_and_start_apart() -> None:
    found = lorenz.decimated(20, 10, 1.0, np.random.default_rng(3))
    assert found.states[:, 1:] == pytest.approx(lorenz.flow(found.states[:, :-1]), abs=1e-4)
    assert (found.states[:, 0].std(0) > 4.0).all()


def test_negative_variances_are_refused() -> None:
    with pytest.raises(ValueError, match="noise_var is -1"):
        lorenz.noisy_process(1, 2, -1.0, 0.0, np.random.default_rng(0))
