"""The algebra of one filter step, and the two passes over time that are made of it.

The covariances never see the data. Their recursion runs first, in float64 whatever the caller's dtype, over the batch
that A, Q, C, R, the initial covariance and the mask span among themselves: in the constant regime one series for the
whole batch. The means follow over the full batch in the caller's dtype, and the log-likelihood of all steps at the end.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_filter.core.inputs import Problem
from ldm_filter.core.linalg import NotPositiveDefiniteError, affine, multiply_add, round_cov, symmetrise, whiten
from ldm_filter.types import Gaussian

__all__ = [
    "LOG_2PI",
    "Covariances",
    "Filtered",
    "Means",
    "correct_cov",
    "covariance_loop",
    "gain_of",
    "innovation_cov",
    "join",
    "log_density_of",
    "log_likelihood",
    "mean_loop",
    "not_positive",
    "per_step",
    "predict_cov",
    "raise_if_not_positive",
    "run_loops",
]

LOG_2PI = math.log(2.0 * math.pi)


def predict_cov(P: Tensor, A: Tensor, Q: Tensor) -> Tensor:
    """P^- = A P A' + Q."""
    return multiply_add(Q, A @ P, A.mT)


def innovation_cov(P: Tensor, C: Tensor, R: Tensor) -> Tensor:
    """S = C P^- C' + R."""
    return multiply_add(R, C @ P, C.mT)


def gain_of(P: Tensor, C: Tensor, R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K = P^- C' S^-1 with the Cholesky factor of S and LAPACK's complaint about it (0 where S is positive definite)."""
    CP = C @ P
    factor, info = torch.linalg.cholesky_ex(multiply_add(R, CP, C.mT))
    return torch.cholesky_solve(CP, factor).mT, factor, info


def correct_cov(P: Tensor, K: Tensor, C: Tensor, R: Tensor) -> Tensor:
    """P = (I - K C) P^- (I - K C)' + K R K', the Joseph form: positive definite whatever the rounding of K."""
    J = multiply_add(torch.eye(P.shape[-1], dtype=P.dtype, device=P.device), K, C, -1.0)
    return symmetrise(multiply_add(K @ R @ K.mT, J @ P, J.mT))


def log_density_of(innovation: Tensor, whitened: Tensor, factor: Tensor, seen: Tensor | int) -> Tensor:
    """log N(e; 0, S) from e, L^-1 e and L; missing channels have e = 0 and L = 1 and are not among the ``seen``."""
    log_det = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return (-0.5 * (whitened.square().sum(-1) + log_det + seen * LOG_2PI)).to(innovation.dtype)


class Covariances(NamedTuple):
    """What the covariance pass yields, all in float64."""

    predicted: Tensor  # (1 | B, T, n, n)
    filtered: Tensor  # (1 | B, T, n, n)
    gain: Tensor  # (1 | B, T, n, m)
    factor: Tensor  # (1 | B, T, m, m), of the innovation covariance


class Means(NamedTuple):
    """What the mean pass yields, in the caller's dtype."""

    predicted: Tensor  # (B, T, n)
    filtered: Tensor  # (B, T, n)
    innovation: Tensor  # (B, T, m)


class Filtered(NamedTuple):
    """What a filter run yields, in the caller's dtype; predictions only where they were asked for."""

    predicted: Gaussian | None
    filtered: Gaussian
    log_likelihood: Tensor


def run_loops(x: Problem, predicted: bool = True) -> Filtered:
    """The filter as two loops over time: the readable reference of every kernel, on any device."""
    covs = covariance_loop(x)
    means, dtype = mean_loop(x, covs.gain), x.z.dtype
    before = Gaussian(means.predicted, round_cov(covs.predicted, dtype)) if predicted else None
    return Filtered(before, Gaussian(means.filtered, round_cov(covs.filtered, dtype)), log_likelihood(x, means, covs))


def covariance_loop(x: Problem) -> Covariances:
    """The Riccati recursion, without the data, step by step on any device. Only the symmetric part of a covariance counts."""
    steps = x.z.shape[1]
    batch = max(field.shape[0] for field in (x.A, x.Q, x.C, x.R, x.initial.cov))
    fields = (x.A.double(), symmetrise(x.Q.double()), x.C.double(), symmetrise(x.R.double()))
    As, Qs, Cs, Rs = (per_step(field.expand(batch, -1, -1, -1), steps) for field in fields)
    P = symmetrise(x.initial.cov.double())
    P = P[0] if batch == 1 else P.expand(batch, -1, -1)
    predicted, filtered, gains, factors, infos = [], [], [], [], []
    for t in range(steps):
        P = P if t == 0 else predict_cov(P, As[t], Qs[t])
        K, factor, info = gain_of(P, Cs[t], Rs[t])
        predicted.append(P)
        P = correct_cov(P, K, Cs[t], Rs[t])
        filtered.append(P)
        gains.append(K)
        factors.append(factor)
        infos.append(info)
    raise_if_not_positive(torch.stack(infos, -1))
    return Covariances(symmetrise(join(predicted, 2)), join(filtered, 2), join(gains, 2), join(factors, 2))


def mean_loop(x: Problem, gain: Tensor) -> Means:
    """The data run through the gains, step by step on any device."""
    steps, gain = x.z.shape[1], gain.to(x.z.dtype)
    As, offsets, Cs, Ks, zs = (per_step(field, steps) for field in (x.A, x.a, x.C, gain, x.z))
    h = x.initial.mean[0] if x.z.shape[0] == 1 else x.initial.mean
    predicted, filtered, innovations = [], [], []
    for t in range(steps):
        h = h if t == 0 else affine(offsets[t], As[t], h)
        e = affine(zs[t], Cs[t], h, -1.0)
        predicted.append(h)
        h = affine(h, Ks[t], e)
        filtered.append(h)
        innovations.append(e)
    return Means(join(predicted, 1), join(filtered, 1), join(innovations, 1))


def log_likelihood(x: Problem, means: Means, covs: Covariances) -> Tensor:
    """log p(z_t | z_<t) of all steps at once, ``(B, T)``, in float64 until the end."""
    return log_density_of(means.innovation, whiten(covs.factor, means.innovation.double()), covs.factor, x.seen)


def per_step(field: Tensor, steps: int) -> tuple[Tensor, ...]:
    """The T values of a ``(1 | B, 1 | T, ...)`` field. One that the batch shares loses that dimension: it multiplies as one matrix."""
    values = field[0].unbind(0) if field.shape[0] == 1 else field.unbind(1)
    return values * steps if len(values) == 1 else values


def join(values: list[Tensor], event_dims: int) -> Tensor:
    """Stack over time, ``(1 | B, T, ...)``: the inverse of :func:`per_step`."""
    stacked = torch.stack(values, dim=-1 - event_dims)
    return stacked if stacked.dim() == event_dims + 2 else stacked.unsqueeze(0)


def raise_if_not_positive(info: Tensor) -> None:
    """One look at all the Cholesky factors of a pass, ``(T,)`` or ``(B, T)``: asking at every step would make a GPU wait at every step."""
    failed = info.nonzero()
    if failed.shape[0]:
        *series, step = failed[failed[:, -1].argmin()].tolist()
        raise not_positive(step, series[0] if series else None)


def not_positive(step: int, series: int | None) -> NotPositiveDefiniteError:
    """The error for an innovation covariance without a factor; ``series`` None where all share it."""
    place = f"step {step} (the covariance is shared by all series)" if series is None else f"step {step} of series {series}"
    return NotPositiveDefiniteError(
        f"the innovation covariance C P C' + R is not positive definite at {place}; expected positive definite measurement and state covariances: "
        "raise the measurement covariance, and check that the transition does not blow up"
    )
