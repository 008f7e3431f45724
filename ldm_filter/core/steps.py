"""The algebra of one filter step, shared by the single-step functions and the whole-sequence passes, and how steps are stacked."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm_filter.core.linalg import NotPositiveDefiniteError, symmetrise

__all__ = ["correct_cov", "gain_of", "innovation_cov", "join", "log_density_of", "per_step", "predict_cov", "raise_if_not_positive"]

_LOG_2PI = math.log(2.0 * math.pi)


def predict_cov(P: Tensor, A: Tensor, Q: Tensor) -> Tensor:
    """P^- = A P A' + Q."""
    return symmetrise(A @ P @ A.mT + Q)


def innovation_cov(P: Tensor, C: Tensor, R: Tensor) -> Tensor:
    """S = C P^- C' + R."""
    return symmetrise(C @ P @ C.mT + R)


def gain_of(P: Tensor, C: Tensor, R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K = P^- C' S^-1 with the Cholesky factor of S and LAPACK's complaint about it (0 where it is positive definite)."""
    factor, info = torch.linalg.cholesky_ex(innovation_cov(P, C, R))
    return torch.cholesky_solve(C @ P, factor).mT, factor, info


def correct_cov(P: Tensor, K: Tensor, C: Tensor, R: Tensor) -> Tensor:
    """P = (I - K C) P^- (I - K C)' + K R K', the Joseph form: positive definite whatever the rounding of K."""
    J = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device) - K @ C
    return symmetrise(J @ P @ J.mT + K @ R @ K.mT)


def log_density_of(innovation: Tensor, whitened: Tensor, factor: Tensor, count: Tensor | int) -> Tensor:
    """log N(e; 0, S) from e, L^-1 e and L; missing channels have e = 0 and L = 1 and are not counted."""
    log_det = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return (-0.5 * (whitened.square().sum(-1) + log_det + count * _LOG_2PI)).to(innovation.dtype)


def per_step(field: Tensor, steps: int) -> tuple[Tensor, ...]:
    """The T values of a ``(1 | B, 1 | T, ...)`` field. One that the batch shares loses that dimension: it multiplies as one matrix."""
    values = field[0].unbind(0) if field.shape[0] == 1 else field.unbind(1)
    return values * steps if len(values) == 1 else values


def join(values: list[Tensor], event_dims: int) -> Tensor:
    """Stack over time, ``(1 | B, T, ...)``: the inverse of :func:`per_step`."""
    stacked = torch.stack(values, dim=-1 - event_dims)
    return stacked if stacked.dim() == event_dims + 2 else stacked.unsqueeze(0)


def raise_if_not_positive(info: Tensor, what: str, sequence: bool = False) -> None:
    """One look at all Cholesky factors of a pass: asking at every step would make a GPU wait at every step."""
    failed = info.nonzero()
    if not failed.shape[0]:
        return
    index = failed[failed[:, -1].argmin()].tolist() if sequence else failed[0].tolist()
    place = f" at step {index[-1]} of series {index[0] if len(index) > 1 else 'all (shared covariance)'}" if sequence else f" at index {index}"
    raise NotPositiveDefiniteError(
        f"{what} C P C' + R is not positive definite{place}; expected positive definite measurement and state covariances: "
        "raise the measurement covariance, and check that the transition does not blow up"
    )
