"""The exact filter in the limit of many particles: where the generator is known and no grid is small enough."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["particle_filter"]

Array = NDArray[np.float64]


def particle_filter(
    start: Callable[[int, np.random.Generator], Array],
    advance: Callable[[Array, np.random.Generator], Array],
    log_likelihood: Callable[[Array, Array], Array],
    observations: NDArray,
    particles: int,
    seed: int = 0,
) -> Array:
    """E[h_t | y_1..t] of one series by the bootstrap filter with systematic resampling at every step.

        h_t^i ~ p(h_t | h_{t-1}^i),   w^i ~ p(y_t | h_t^i),   E[h_t | y_1..t] = sum_i w^i h_t^i,   resample by w

    The error falls as 1 / sqrt(particles).

    Args:
        start: (count, rng) -> states ``(count, n)`` of the first step.
        advance: (states, rng) -> states one step later.
        log_likelihood: (y_t, states) -> log p(y_t | h), up to a constant, ``(count,)``.
        observations: ``(steps, ...)``.
        particles: their number. seed: of the draws.

    Returns:
        ``(steps, n)``.

    Raises:
        ValueError: fewer than two particles, or no particle that could have made an observation.
    """
    if particles < 2:
        raise ValueError(f"particles is {particles}, expected at least 2")
    rng = np.random.default_rng(seed)
    states, means = start(particles, rng), []
    for place, observation in enumerate(observations):
        if place:
            states = advance(states, rng)
        score = log_likelihood(observation, states)
        if not np.isfinite(score.max()):
            raise ValueError(f"no particle explains the observation of step {place}; use more particles")
        weight = np.exp(score - score.max())
        weight /= weight.sum()
        means.append(weight @ states)
        places = np.searchsorted(weight.cumsum(), (rng.random() + np.arange(particles)) / particles)
        states = states[places.clip(max=particles - 1)]
    return np.stack(means)
