"""Maximum likelihood for a linear-Gaussian state-space model: a subspace start, then expectation maximisation.

    h_t = A h_{t-1} + w_t,  w ~ N(0, Q)      z_t = C h_t + v_t,  v_t ~ N(0, s_t R)      h_0 ~ N(mu, P0)

The series of a batch are independent draws of one model. ``s_t`` is a known noise scale, 1 where it is not given; then all series share
their covariances, and an iteration costs one pass of matrix products over the batch.
Source: Shumway & Stoffer 1982 (EM); Larimore 1990, Van Overschee & De Moor 1996 (canonical variates).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ldm_filter.core.kalman import filter_sequence
from ldm_filter.core.linalg import symmetrise
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.types import Gaussian, SmootherResult, StateSpace

__all__ = ["EMResult", "LinearGaussian", "em_step", "fit_em", "maximise", "measure", "subspace_start"]

# Variances never fall below this share of the data's: a noise-free direction would otherwise make a covariance singular.
FLOOR = 1e-8
# The start reads at most so many numbers of windowed rows (160 MB).
_START_NUMBERS = 20_000_000


class LinearGaussian(NamedTuple):
    """A model with constant measurement covariance R (times the scale of a step), all float64."""

    ssm: StateSpace
    measurement_cov: Tensor  # (m, m)


class EMResult(NamedTuple):
    """The fitted model and the log-likelihood of all data before each iteration, and after the last."""

    model: LinearGaussian
    log_likelihood: list[float]


def fit_em(z: Tensor, model: LinearGaussian, iterations: int, *, scale: Tensor | None = None, tolerance: float = 0.0) -> EMResult:
    """EM from a start until the log-likelihood per number gains less than ``tolerance``, or for ``iterations``.

    Args:
        z: ``(B, T, m)`` float64, complete, T >= 2.
        model: where to start, see `subspace_start`.
        iterations: at most so many.
        scale: s_t, ``(B, T)``, positive; None for 1.
        tolerance: in nats per entry of ``z``; 0 never stops early.
    """
    history: list[float] = []
    for _ in range(iterations):
        model, value = em_step(z, model, scale)
        if history and (value - history[-1]) < tolerance * z.numel():
            return EMResult(model, [*history, value])
        history.append(value)
    final = float(filter_sequence(model.ssm, measure(z, model, scale)).log_likelihood.sum())
    return EMResult(model, [*history, final])


def em_step(z: Tensor, model: LinearGaussian, scale: Tensor | None = None) -> tuple[LinearGaussian, float]:
    """One iteration: the maximised model, and the log-likelihood of the model that came in."""
    result = filter_sequence(model.ssm, measure(z, model, scale))
    return maximise(z, smooth_sequence(model.ssm, result), scale), float(result.log_likelihood.sum())


def measure(z: Tensor, model: LinearGaussian, scale: Tensor | None) -> Gaussian:
    """Measurements with covariance R, shared, or s_t R, per step and series."""
    r = model.measurement_cov
    return Gaussian(z, r if scale is None else scale[..., None, None] * r)


def maximise(z: Tensor, smoother: SmootherResult, scale: Tensor | None = None) -> LinearGaussian:
    """Exact M-step: the model that maximises E[log p(z, h)] under the smoothed states.

    A = S10 S00^-1, Q = (S11 - A S10') / N, C = (sum z h'/s) (sum E[h h']/s)^-1, R = mean of (z z' - C h z')/s, initial = mean and spread of h_0.
    """
    batch, steps, m = z.shape
    (h, p), gain = smoother.smoothed, smoother.gain
    cross = (gain @ p[:, 1:]).mT  # Cov(h_{t+1}, h_t | z)
    s10 = _outer(h[:, 1:], h[:, :-1]) + _total(cross, batch)
    s00 = _outer(h[:, :-1], h[:, :-1]) + _total(p[:, :-1], batch)
    s11 = _outer(h[:, 1:], h[:, 1:]) + _total(p[:, 1:], batch)
    transition = _divide(s10, s00)
    transition_cov = _floored((s11 - transition @ s10.mT) / (batch * (steps - 1)), s11 / (batch * (steps - 1)))
    weight = torch.ones(batch, steps, dtype=z.dtype) if scale is None else 1 / scale
    zw, hw = z * weight[..., None], h * weight[..., None]
    hh = _outer(hw, h) + (_total(p, batch) if scale is None else (weight[..., None, None] * p).sum((0, 1)))
    zh, zz = _outer(zw, h), _outer(zw, z)
    observation = _divide(zh, hh)
    measurement_cov = _floored((zz - observation @ zh.mT) / (batch * steps), zz / (batch * steps))
    mean = h[:, 0].mean(0)
    spread = _outer(h[:, :1] - mean, h[:, :1] - mean) / batch + p[:, 0].mean(0)
    ssm = StateSpace(transition, z.new_zeros(len(mean)), transition_cov, observation, z.new_zeros(m), Gaussian(mean, symmetrise(spread)))
    return LinearGaussian(ssm, measurement_cov)


def subspace_start(z: Tensor, state_dim: int, lags: int | None = None) -> LinearGaussian:
    """Canonical-variate start: the ``state_dim`` combinations of the last ``lags`` rows that best predict the next ``lags`` rows.

    The states so estimated are regressed on each other for A, Q and on the rows for C, R. Their own errors inflate Q, so the share of it that
    is kept is chosen by likelihood. Only as many series are read as this needs.

    Args:
        z: ``(B, T, m)`` float64, complete.
        state_dim: n, at most ``lags * m``.
        lags: rows on each side; default: 300 numbers, enough for every state and at most T / 3 rows.

    Raises:
        ValueError: the series are too short for so many states.
    """
    steps, m = z.shape[1:]
    k = min(max(300 // m, -(-state_dim // m)) if lags is None else lags, steps // 3)
    if k < 1 or k * m < state_dim:
        raise ValueError(f"state_dim is {state_dim}, too many for {steps} steps of {m} values: give at least {3 * -(-state_dim // m)} steps")
    z = z[: max(1, _START_NUMBERS // ((steps - 2 * k + 1) * 2 * k * m))]
    state, rows = _canonical_states(z, state_dim, k), z[:, k : steps - k + 1]
    transition = _divide(_outer(state[:, 1:], state[:, :-1]), _outer(state[:, :-1], state[:, :-1]))
    observation = _divide(_outer(rows, state), _outer(state, state))
    spread = _covariance(state, FLOOR)
    noise_w = _floored(_covariance(state[:, 1:] - state[:, :-1] @ transition.mT), spread)
    noise_v = _floored(_covariance(rows - state @ observation.mT), _covariance(z))
    zero = z.new_zeros(state_dim)
    starts = [
        LinearGaussian(StateSpace(transition, zero, share * noise_w, observation, z.new_zeros(m), Gaussian(zero, spread)), noise_v)
        for share in (1.0, 0.3, 0.1, 0.03, 0.01)
    ]
    return max(starts, key=lambda model: float(filter_sequence(model.ssm, measure(z, model, None)).log_likelihood.sum()))


def _canonical_states(z: Tensor, state_dim: int, lags: int) -> Tensor:
    """Best guess of h_t from the ``lags`` rows before t, unit covariance, ``(B, T - 2 lags + 1, n)``."""
    windows = z.unfold(1, 2 * lags, 1).transpose(2, 3)  # (B, T - 2 lags + 1, 2 lags, m)
    past, future = windows[:, :, :lags].flatten(2), windows[:, :, lags:].flatten(2)
    root_past, root_future = _inverse_root(past), _inverse_root(future)
    cross = _outer(future, past) / past[..., 0].numel()
    right = torch.linalg.svd(root_future @ cross @ root_past.mT).Vh[:state_dim]
    return past @ (right @ root_past).mT


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """Sum over series and steps of x y'."""
    return x.flatten(0, 1).mT @ y.flatten(0, 1)


def _total(cov: Tensor, batch: int) -> Tensor:
    """Sum over series and steps of covariances that the batch may share."""
    return cov.sum((0, 1)) * (batch / cov.shape[0])


def _covariance(x: Tensor, floor: float = 0.0) -> Tensor:
    """Second moment about zero, its diagonal raised by ``floor`` times the mean variance."""
    cov = symmetrise(_outer(x, x) / x[..., 0].numel())
    return cov + floor * cov.diagonal().mean() * torch.eye(len(cov), dtype=cov.dtype)


def _divide(numerator: Tensor, gram: Tensor) -> Tensor:
    """numerator gram^-1 for a positive definite gram matrix, the normal equations of a regression."""
    gram = symmetrise(gram)
    ridge = 1e-12 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.cholesky_solve(numerator.mT, torch.linalg.cholesky(gram + ridge)).mT


def _floored(cov: Tensor, like: Tensor) -> Tensor:
    """The covariance with eigenvalues of at least FLOOR times the mean variance of ``like``."""
    values, vectors = torch.linalg.eigh(symmetrise(cov))
    return symmetrise((vectors * values.clamp(min=FLOOR * float(like.diagonal().mean()))) @ vectors.mT)


def _inverse_root(x: Tensor) -> Tensor:
    """L^-1 of the covariance of ``(B, T, d)``, with a small ridge."""
    factor = torch.linalg.cholesky(_covariance(x, 1e-6))
    return torch.linalg.solve_triangular(factor, torch.eye(len(factor), dtype=x.dtype), upper=False)
