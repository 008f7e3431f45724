"""The particle filter against the exact Kalman filter."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.particles import particle_filter


def test_it_converges_to_the_kalman_filter() -> None:
    """h_t = 0.9 h_{t-1} + N(0, 0.19), y_t = h_t + N(0, 0.25), h_0 ~ N(0, 1)."""
    rng = np.random.default_rng(0)
    state, observed, exact, mean, var = rng.standard_normal(), [], [], 0.0, 1.0
    for step in range(40):
        if step:
            state, mean, var = 0.9 * state + np.sqrt(0.19) * rng.standard_normal(), 0.9 * mean, 0.81 * var + 0.19
        observed.append([state + 0.5 * rng.standard_normal()])
        gain = var / (var + 0.25)
        mean, var = mean + gain * (observed[-1][0] - mean), (1 - gain) * var
        exact.append(mean)

    def found(particles: int) -> np.ndarray:
        return particle_filter(
            lambda count, rng: rng.standard_normal((count, 1)),
            lambda states, rng: 0.9 * states + np.sqrt(0.19) * rng.standard_normal(states.shape),
            lambda y, states: -0.5 * ((y - states) ** 2).sum(-1) / 0.25,
            np.array(observed),
            particles,
        )[:, 0]

    errors = [np.sqrt(np.mean((found(particles) - exact) ** 2)) for particles in (100, 10_000)]
    assert errors[1] < 0.01 and 4 < errors[0] / errors[1] < 25  # 1 / sqrt(particles)


def test_what_no_particle_explains_is_refused() -> None:
    def impossible(y: np.ndarray, states: np.ndarray) -> np.ndarray:
        return np.full(len(states), -np.inf)

    arguments = (lambda count, rng: np.zeros((count, 1)), lambda states, rng: states, impossible, np.zeros((3, 1)))
    with pytest.raises(ValueError, match="no particle explains the observation of step 0"):
        particle_filter(*arguments, particles=10)
    with pytest.raises(ValueError, match="particles is 1"):
        particle_filter(*arguments, particles=1)
