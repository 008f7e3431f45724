"""A linear state-space model from second moments alone: where the training of the dynamics starts."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_filter.core.linalg import cholesky, least_squares
from ldm_filter.types import Gaussian, StateSpace

__all__ = ["canonical_variates"]

# Noise and few samples can put an estimated eigenvalue on or outside of the unit circle: it is pulled in to here.
MOST_RADIUS = 0.999
# Of the windows that the moments are taken from.
MOST_ENTRIES = 1 << 24


def canonical_variates(latents: Tensor, observed: Tensor, state_dim: int, lags: int | None = None) -> tuple[StateSpace, Tensor]:
    """Fit a stable linear-Gaussian model by canonical variate analysis of past and future.

    The state is the ``state_dim`` linear functions of the past z_{t-1}, ..., z_{t-lags} that are most correlated with the future
    z_t, ..., z_{t+lags}; A and C follow by regression on it, Q and R from the residuals (Larimore 1990; Van Overschee and De Moor 1996).
    The past must be long: what it leaves out biases A towards faster decay.

    Args:
        latents: ``(B, T, m)``.
        observed: bool ``(B, T)``; windows with a missing step are left out.
        state_dim: n; at most ``m * lags``.
        lags: length of past and of future; default ``max(12, ceil(2 n / m))``, or as many as the data bear.

    Returns:
        The model with constant fields (stationary initial belief) and the measurement covariance ``(m, m)``, in the latents' dtype.
        A and C are consistent; Q and R, which the innovations leave open, are on the large side: a start for training.

    Raises:
        ValueError: too few complete windows for the state's size, or latents that do not vary.
    """
    windows, mean = _windows(latents.double(), observed, state_dim, lags)
    lags = windows.shape[1] // 2
    past, future = windows[:, :lags].flip(1).flatten(1), windows[:, lags:].flatten(1)
    to_state = _past_to_state(past, future, state_dim)
    state, following = past @ to_state.mT, windows[:, 1 : lags + 1].flip(1).flatten(1) @ to_state.mT
    transition, transition_cov = _regress(state, following)
    observation, measurement_cov = _regress(state, windows[:, lags])
    transition = transition * (MOST_RADIUS / max(float(torch.linalg.eigvals(transition).abs().max()), MOST_RADIUS))
    cov = state.mT @ state / len(state)
    transition, transition_cov, observation, mean, cov, measurement_cov = (
        part.to(latents.dtype) for part in (transition, transition_cov, observation, mean, cov, measurement_cov)
    )
    origin = latents.new_zeros(state_dim)
    return StateSpace(transition, origin, transition_cov, observation, mean, Gaussian(origin, cov)), measurement_cov


def _windows(latents: Tensor, observed: Tensor, state_dim: int, lags: int | None) -> tuple[Tensor, Tensor]:
    """Centred windows ``(N, 2 lags + 1, m)`` and the mean; without a choice of lags the longest past that the data bear."""
    dim = latents.shape[-1]
    least = -(-state_dim // dim)
    most = max(12, -(-2 * state_dim // dim)) if lags is None else lags
    for length in range(most, (least if lags is None else most) - 1, -1):
        windows, mean = _complete_windows(latents, observed, 2 * length + 1)
        if len(windows) >= 4 * length * dim and length >= least:
            return windows, mean
    raise ValueError(
        f"latents hold {len(windows)} complete windows of {2 * length + 1} steps, at least {4 * length * dim} are needed "
        f"(and lags * m = {length * dim} >= state_dim = {state_dim}); lower state_dim or give longer series"
    )


def _complete_windows(latents: Tensor, observed: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Centred windows ``(N, length, m)`` without a missing step, evenly thinned to at most 128 MB, and the mean."""
    most = MOST_ENTRIES // (length * latents.shape[-1])
    mean = latents[observed].mean(0)
    if latents.shape[1] < length:
        return latents.new_zeros(0, length, latents.shape[-1]), mean
    complete = observed.unfold(1, length, 1).all(-1).nonzero()
    if len(complete) > most:
        complete = complete[torch.linspace(0, len(complete) - 1, most, dtype=torch.float64, device=latents.device).round().long()]
    steps = complete[:, 1:] + torch.arange(length, device=latents.device)
    return latents[complete[:, :1], steps] - mean, mean


def _past_to_state(past: Tensor, future: Tensor, state_dim: int) -> Tensor:
    """The map ``(n, lags * m)`` from the past to the leading canonical variates."""
    whiten_past, whiten_future = _whitener(past), _whitener(future)
    cross = whiten_future @ (future.mT @ past / len(past)) @ whiten_past.mT
    _, correlation, right = torch.linalg.svd(cross)
    # Weighting by the root of the correlation is the balanced choice: half of it belongs to the future.
    return correlation[:state_dim, None].clamp_min(1e-3).sqrt() * right[:state_dim] @ whiten_past


def _whitener(samples: Tensor) -> Tensor:
    cov = samples.mT @ samples / len(samples)
    eye = torch.eye(len(cov), dtype=cov.dtype, device=cov.device)
    factor = cholesky(cov + 1e-6 * cov.diagonal().mean() * eye, "covariance of the latents, which must vary,")
    return torch.linalg.solve_triangular(factor, eye, upper=False)


def _regress(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares: the coefficients and the residual covariance, kept positive definite."""
    coefficients = least_squares(inputs, outputs).mT
    residual = outputs - inputs @ coefficients.mT
    cov = residual.mT @ residual / len(residual)
    return coefficients, cov + torch.diag(1e-4 * outputs.square().mean(0))
