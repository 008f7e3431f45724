"""Random stable linear-Gaussian state-space models and data drawn from them: where the filter must be exact.

h_t = A h_{t-1} + a + w_t,  w_t ~ N(0, Q)        z_t = C h_t + c + v_t,  v_t ~ N(0, R)        h_0 ~ stationary
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Generator, Tensor

from ldm_filter.types import Gaussian, StateSpace

__all__ = ["Simulation", "random_covariance", "random_model", "simulate"]


class Simulation(NamedTuple):
    """A model and what it produced, torch float64.

    Attributes:
        model: the true matrices.
        measurement_cov: R, ``(m, m)``.
        states: ``(series, steps, n)``.
        measurements: ``(series, steps, m)``; 0 where missing.
        observed: bool ``(series, steps, m)``, False where missing.
    """

    model: StateSpace
    measurement_cov: Tensor
    states: Tensor
    measurements: Tensor
    observed: Tensor


def random_covariance(size: int, generator: Generator) -> Tensor:
    """L L' / size + I / 4 with L standard normal: full, and never near singular."""
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return factor @ factor.mT / size + 0.25 * torch.eye(size, dtype=torch.float64)


def random_model(state_dim: int, measurement_dim: int, generator: Generator, radius: float = 0.95) -> StateSpace:
    """A random model whose initial belief is its own stationary distribution.

        A = radius G / rho(G), G standard normal;   m = (I - A)^-1 a;   P = A P A' + Q

    Args:
        state_dim: n.
        measurement_dim: m, may exceed n.
        generator: source of randomness, advanced.
        radius: spectral radius of A, in (0, 1).

    Returns:
        StateSpace of float64 matrices without leading dimensions.

    Raises:
        ValueError: a dimension below 1 or a radius outside (0, 1).
    """
    if state_dim < 1 or measurement_dim < 1:
        raise ValueError(f"state_dim and measurement_dim are {state_dim} and {measurement_dim}; expected at least 1 each")
    if not 0 < radius < 1:
        raise ValueError(f"radius is {radius}; a stationary model needs a spectral radius between 0 and 1")

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    matrix = normal(state_dim, state_dim)
    matrix = matrix * (radius / torch.linalg.eigvals(matrix).abs().max())
    offset, cov = normal(state_dim), random_covariance(state_dim, generator)
    mean = torch.linalg.solve(torch.eye(state_dim, dtype=torch.float64) - matrix, offset)
    stationary = torch.as_tensor(solve_discrete_lyapunov(matrix.numpy(), cov.numpy()))
    initial = Gaussian(mean, (stationary + stationary.mT) / 2)
    return StateSpace(matrix, offset, cov, normal(measurement_dim, state_dim), normal(measurement_dim), initial)


def simulate(
    series: int,
    steps: int,
    state_dim: int = 4,
    measurement_dim: int = 2,
    missing: float = 0.0,
    radius: float = 0.95,
    seed: int | Generator = 0,
) -> Simulation:
    """Draw a random model, then series from it.

    Args:
        series: number of independent series.
        steps: length of each.
        state_dim: n.
        measurement_dim: m.
        missing: probability that a single entry of a measurement is missing, in [0, 1).
        radius: spectral radius of the transition matrix.
        seed: integer or a generator, which is advanced. To draw train and test from *one* model, draw them as one batch
            and cut it.

    Returns:
        ``Simulation``, float64; the same seed gives the same model and numbers.

    Raises:
        ValueError: a size below 1, or a probability or radius out of range.

    >>> simulate(series=2, steps=5, missing=0.3).measurements.shape
    torch.Size([2, 5, 2])
    """
    if series < 1 or steps < 1:
        raise ValueError(f"series and steps are {series} and {steps}; expected at least one of each")
    if not 0 <= missing < 1:
        raise ValueError(f"missing is {missing}; expected a probability in [0, 1)")
    generator = seed if isinstance(seed, Generator) else torch.Generator().manual_seed(seed)
    model = random_model(state_dim, measurement_dim, generator, radius)
    measurement_cov = random_covariance(measurement_dim, generator)
    states = _walk(model, series, steps, generator)
    clean = states @ model.observation_matrix.mT + model.observation_offset
    measurements = clean + _noise(measurement_cov, series, steps, generator)
    observed = torch.rand(measurements.shape, generator=generator) >= missing
    return Simulation(model, measurement_cov, states, measurements.masked_fill(~observed, 0.0), observed)


def _noise(cov: Tensor, series: int, steps: int, generator: Generator) -> Tensor:
    """``(series, steps, d)`` draws of N(0, cov)."""
    return torch.randn(series, steps, len(cov), generator=generator, dtype=cov.dtype) @ torch.linalg.cholesky(cov).mT


def _walk(model: StateSpace, series: int, steps: int, generator: Generator) -> Tensor:
    """``(series, steps, n)`` states, the first from the initial belief."""
    noise = _noise(model.transition_cov, series, steps, generator)
    states = [model.initial.mean + _noise(model.initial.cov, series, 1, generator)[:, 0]]
    for step in range(1, steps):
        states.append(states[-1] @ model.transition_matrix.mT + model.transition_offset + noise[:, step])
    return torch.stack(states, dim=1)
