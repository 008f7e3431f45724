"""One step of expectation maximisation for the motion and noise of a linear-Gaussian model, held by what was known before.

Source: Shumway and Stoffer, J. Time Ser. Anal. 3 (1982), with a conjugate prior (Dempster, Laird and Rubin 1977, on penalised likelihoods).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_filter.core.linalg import matvec, stationary, symmetrise
from ldm_filter.types import Gaussian, SmootherResult, StateSpace

__all__ = ["adapted_noise", "adapted_transition", "stationary_belief"]

# A's eigenvalues are kept below this: a motion fitted to one short series may come out as growing.
MOST_RADIUS = 1.0 - 2e-5


def adapted_transition(
    before: StateSpace, smoother: SmootherResult, pairs: Tensor, weight: float, driven: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A, a and Q that maximise the expected log-likelihood of smoothed states plus that of ``weight`` steps of the model that was there before.

        [A a] = S10 S00^-1,   Q = (S11 - [A a] S10') / (N + weight),   S00 = sum E[g g'] + weight E0[g g'],   g = (h_{t-1}, 1)

    and S10, S11 likewise with h_t - d_t in front; E0 is the stationary distribution of the model before.

    Args:
        before: constant fields, A stable.
        smoother: of the series, under the present model, ``(B, T, n)``.
        pairs: bool ``(B, T - 1)``, the steps t -> t + 1 that count.
        weight: steps that the model before counts for, positive.
        driven: d_t, what known inputs add to step t + 1, ``(1 | B, T - 1, n)``.

    Returns:
        A ``(n, n)``, a ``(n,)`` and Q ``(n, n)``, float64. A is scaled to a spectral radius below 1 where it is not.
    """
    A, a, Q = (part.double() for part in before[:3])
    (h, P), gain = smoother.smoothed, smoother.gain.double()
    h, P, kept = h.double(), P.double().expand(*h.shape, h.shape[-1]), pairs.double()[..., None]
    cross = _total((gain @ P[:, 1:]).mT, kept)
    last = torch.cat([h[:, :-1], torch.ones_like(h[:, 1:, :1])], -1)
    now = h[:, 1:] if driven is None else h[:, 1:] - driven
    prior, theta = _moments(stationary_belief(before)), torch.cat([A, a[:, None]], -1)
    pad = torch.nn.functional.pad
    s00 = _outer(last, last, kept) + pad(_total(P[:, :-1], kept), (0, 1, 0, 1)) + weight * prior
    s10 = _outer(now, last, kept) + pad(cross, (0, 1)) + weight * theta @ prior
    s11 = _outer(now, now, kept) + _total(P[:, 1:], kept) + weight * (theta @ prior @ theta.mT + Q)
    found = torch.linalg.solve(s00, s10.mT).mT
    ratio = min(1.0, MOST_RADIUS / max(float(torch.linalg.eigvals(found[:, :-1]).abs().max()), 1e-300))
    matrix = ratio * found[:, :-1]
    offset = (s10[:, -1] - matrix @ s00[:-1, -1]) / s00[-1, -1]
    found = torch.cat([matrix, offset[:, None]], -1)
    cov = symmetrise(s11 - found @ s10.mT - s10 @ found.mT + found @ s00 @ found.mT) / (float(kept.sum()) + weight)
    return matrix, offset, cov


def adapted_noise(before: Tensor, ssm: StateSpace, measurements: Tensor, smoothed: Gaussian, seen: Tensor, weight: float) -> Tensor:
    """R ``(m, m)`` alike: (sum E[(z - C h - c)(z - C h - c)'] + weight R0) / (N + weight) over the steps ``seen (B, T)``; float64."""
    kept, C = seen.double()[..., None], ssm.observation_matrix.double()
    rest = measurements.double() - matvec(C, smoothed.mean.double()) - ssm.observation_offset.double()
    spread = C @ smoothed.cov.double() @ C.mT
    total = _outer(rest, rest, kept) + _total(spread.expand(*rest.shape, rest.shape[-1]), kept)
    return symmetrise(total + weight * before.double()) / (float(kept.sum()) + weight)


def _outer(x: Tensor, y: Tensor, kept: Tensor) -> Tensor:
    """Sum over series and steps of x y'."""
    return (kept * x).flatten(0, 1).mT @ y.flatten(0, 1)


def _total(cov: Tensor, kept: Tensor) -> Tensor:
    return (kept[..., None] * cov).sum((0, 1))


def stationary_belief(ssm: StateSpace) -> Gaussian:
    """Mean ``(n,)`` and covariance ``(n, n)`` of the states of a stable model with constant fields, in the long run; float64."""
    A, a, Q = (part.double() for part in ssm[:3])
    return Gaussian(torch.linalg.solve(torch.eye(len(A), dtype=A.dtype, device=A.device) - A, a), stationary(A, Q))


def _moments(states: Gaussian) -> Tensor:
    """E[g g'] of g = (h, 1)."""
    g = torch.cat([states.mean, states.mean.new_ones(1)])
    return torch.nn.functional.pad(states.cov, (0, 1, 0, 1)) + torch.outer(g, g)
