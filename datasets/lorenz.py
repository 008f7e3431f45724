"""The Lorenz attractor under noise, after the protocols of KalmanNet: a process with noise seen directly, and a decimated flow without any."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["STEP", "Lorenz", "decimated", "flow", "noisy_process", "transition"]

Array = NDArray[np.float64]

STEP = 0.02  # seconds
TERMS = 5  # of the exponential's series
SUBSTEPS = 20  # of the Runge-Kutta integration in one step


class Lorenz(NamedTuple):
    """Series of the state and of noisy observations of all three of its coordinates.

    Attributes:
        observations, states: ``(series, steps, 3)`` float32.
    """

    observations: NDArray[np.float32]
    states: NDArray[np.float32]


def transition(states: NDArray) -> Array:
    """The noise-free next state, ``sum_{j <= 5} (A(x) dt)^j / j!  x`` with A(x) held over the step; states ``(..., 3)``."""
    x = np.asarray(states, dtype=float)
    term, total = x, x.copy()
    for j in range(1, TERMS + 1):
        a, b, c = np.moveaxis(term, -1, 0)
        term = np.stack([10.0 * (b - a), (28.0 - x[..., 2]) * a - b, x[..., 1] * a - 8.0 / 3.0 * c], axis=-1) * (STEP / j)
        total += term
    return total


def flow(states: NDArray) -> Array:
    """The differential equation solved over one step, ``(..., 3)``: Runge-Kutta of fourth order in 20 substeps."""
    x, h = np.asarray(states, dtype=float), STEP / SUBSTEPS
    for _ in range(SUBSTEPS):
        k1 = _velocity(x)
        k2 = _velocity(x + 0.5 * h * k1)
        k3 = _velocity(x + 0.5 * h * k2)
        k4 = _velocity(x + h * k3)
        x = x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    return x


def noisy_process(series: int, steps: int, noise_var: float, process_var: float, rng: np.random.Generator, start: NDArray | None = None) -> Lorenz:
    """``x_{t+1} = F(x_t) x_t + w``, ``w ~ N(0, process_var I)``, observed as ``x_t + v``, ``v ~ N(0, noise_var I)``.

    Args:
        series, steps: sizes.
        noise_var, process_var: variances r^2 and q^2.
        rng: of everything random.
        start: of all series, ``(3,)``; None: places on the attractor, each series its own.

    Raises:
        ValueError: a variance that is negative.
    """
    if noise_var < 0 or process_var < 0:
        raise ValueError(f"noise_var is {noise_var} and process_var {process_var}, expected variances of at least 0")
    state = attractor(series, rng) if start is None else np.broadcast_to(np.asarray(start, dtype=float), (series, 3))
    states = [state]
    for _ in range(steps - 1):
        state = transition(state) + np.sqrt(process_var) * rng.standard_normal((series, 3))
        states.append(state)
    return _observed(np.stack(states, axis=1), noise_var, rng)


def decimated(series: int, steps: int, noise_var: float, rng: np.random.Generator) -> Lorenz:
    """The flow without process noise from places on the attractor, sampled every 0.02 s and observed with noise of variance ``noise_var``."""
    states = [attractor(series, rng)]
    for _ in range(steps - 1):
        states.append(flow(states[-1]))
    return _observed(np.stack(states, axis=1), noise_var, rng)


def attractor(series: int, rng: np.random.Generator, settle: int = 500) -> Array:
    """Independent places on the attractor, ``(series, 3)``: what the flow makes of random starts in 10 s, longer than its memory."""
    state = np.array([0.0, 0.0, 25.0]) + 8.0 * rng.standard_normal((series, 3))
    for _ in range(settle):
        state = flow(state)
    return state


def _velocity(x: Array) -> Array:
    a, b, c = x[..., 0], x[..., 1], x[..., 2]
    return np.stack([10.0 * (b - a), a * (28.0 - c) - b, a * b - 8.0 / 3.0 * c], axis=-1)


def _observed(states: Array, noise_var: float, rng: np.random.Generator) -> Lorenz:
    noise = np.sqrt(noise_var) * rng.standard_normal(states.shape)
    return Lorenz((states + noise).astype(np.float32), states.astype(np.float32))
