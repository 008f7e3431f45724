"""One step of expectation maximisation for the motion and noise of a linear-Gaussian model, held by what was known before.

Source: Shumway and Stoffer, J. Time Ser. Anal. 3 (1982), with a conjugate prior (Dempster, Laird and Rubin 1977, on penalised likelihoods).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ldm_filter.core.linalg import matvec, stationary, symmetrise
from ldm_filter.types import Gaussian, SmootherResult, StateSpace

__all__ = ["adapted_observation", "adapted_transition", "stationary_belief"]

# A's eigenvalues are kept below this: a motion fitted to one short series may come out as growing.
MOST_RADIUS = 1.0 - 2e-5


def adapted_transition(
    before: StateSpace, smoother: SmootherResult, pairs: Tensor, weight: float, inputs: Tensor | None = None, gain: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, a, B and Q that maximise the expected log-likelihood of smoothed states plus that of ``weight`` steps of the model that was there before.

        [A a B] = S10 S00^-1,   Q = (S11 - [A a B] S10') / (N + weight),   S00 = sum E[g g'] + weight E0[g g'],   g = (h_{t-1}, 1, u_t)

    and S10, S11 likewise with h_t in front; E0 is the stationary distribution of the model before, with inputs of unit variance.

    Args:
        before: constant fields, A stable.
        smoother: of the series, under the present model, ``(B, T, n)``.
        pairs: bool ``(B, T - 1)``, the steps t -> t + 1 that count.
        weight: steps that the model before counts for, positive.
        inputs: u, standardised, ``(1 | B, T, u)``. gain: B of the model before, ``(n, u)``.

    Returns:
        A ``(n, n)``, a ``(n,)``, B ``(n, u)`` and Q ``(n, n)``, float64. A is scaled to a spectral radius below 1 where it is not.
    """
    n = len(before.transition_offset)
    h, P = smoother.smoothed.mean.double(), smoother.smoothed.cov.double()
    P, kept = P.expand(*h.shape, n), pairs.double()[..., None]
    known = h.new_zeros(1, h.shape[1], 0) if inputs is None else inputs.double()
    known = known.expand(len(h), -1, -1)[:, 1:]
    g = torch.cat([h[:, :-1], torch.ones_like(h[:, 1:, :1]), known], -1)
    theta = torch.cat([before.transition_matrix.double(), before.transition_offset.double()[:, None]], -1)
    theta = torch.cat([theta, h.new_zeros(n, 0) if gain is None else gain.double()], -1)
    prior = weight * _moments(stationary_belief(before), known.shape[-1])
    more = len(prior) - n
    s00 = _outer(g, g, kept) + pad(_total(P[:, :-1], kept), (0, more, 0, more)) + prior
    s10 = _outer(h[:, 1:], g, kept) + pad(_total((smoother.gain.double() @ P[:, 1:]).mT, kept), (0, more)) + theta @ prior
    s11 = _outer(h[:, 1:], h[:, 1:], kept) + _total(P[:, 1:], kept) + theta @ prior @ theta.mT + weight * before.transition_cov.double()
    found = _stable(torch.linalg.solve(s00, s10.mT).mT, s00, s10, n)
    cov = symmetrise(s11 - found @ s10.mT - s10 @ found.mT + found @ s00 @ found.mT) / (float(kept.sum()) + weight)
    return found[:, :n], found[:, n], found[:, n + 1 :], cov


def _stable(found: Tensor, s00: Tensor, s10: Tensor, n: int) -> Tensor:
    """[A a B] with A scaled to below the unit circle where it is not, and the rest fitted beside it."""
    radius = float(torch.linalg.eigvals(found[:, :n]).abs().max())
    if radius <= MOST_RADIUS:
        return found
    matrix = found[:, :n] * (MOST_RADIUS / radius)
    rest = torch.linalg.solve(s00[n:, n:], (s10[:, n:] - matrix @ s00[:n, n:]).mT).mT
    return torch.cat([matrix, rest], -1)


def adapted_observation(
    before: Tensor, ssm: StateSpace, measurements: Tensor, smoothed: Gaussian, seen: Tensor, weight: float, inputs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What is to be added to D, and R, alike: the regression of z_t - C h_t - c_t on inputs, and what that leaves over.

        dD = (sum r u') (sum u u' + weight I)^-1,     R = (sum E[(r - dD u)(r - dD u)'] + weight (R0 + dD dD')) / (N + weight)

    Args:
        before: R0, ``(m, m)``.
        ssm: C, and c with the inputs' effect D0 u before.
        measurements, smoothed: z ``(B, T, m)`` and the states given all of them.
        seen: bool ``(B, T)``, the steps that count.
        weight: steps that the model before counts for, positive.
        inputs: u, standardised, ``(1 | B, T, u)``.

    Returns:
        dD ``(m, u)`` and R ``(m, m)``, float64.
    """
    kept, C = seen.double()[..., None], ssm.observation_matrix.double()
    rest = measurements.double() - matvec(C, smoothed.mean.double()) - ssm.observation_offset.double()
    u = rest.new_zeros(1, 1, 0) if inputs is None else inputs.double()
    u = u.expand(*rest.shape[:2], u.shape[-1])
    gram = _outer(u, u, kept) + weight * torch.eye(u.shape[-1], dtype=rest.dtype, device=rest.device)
    gain = torch.linalg.solve(gram, _outer(u, rest, kept)).mT
    rest = rest - matvec(gain, u)
    spread = (C @ smoothed.cov.double() @ C.mT).expand(*rest.shape, rest.shape[-1])
    total = _outer(rest, rest, kept) + _total(spread, kept) + weight * (before.double() + gain @ gain.mT)
    return gain, symmetrise(total) / (float(kept.sum()) + weight)


def _outer(x: Tensor, y: Tensor, kept: Tensor) -> Tensor:
    """Sum over series and steps of x y'."""
    return (kept * x).flatten(0, 1).mT @ y.flatten(0, 1)


def _total(cov: Tensor, kept: Tensor) -> Tensor:
    return (kept[..., None] * cov).sum((0, 1))


def stationary_belief(ssm: StateSpace) -> Gaussian:
    """Mean ``(n,)`` and covariance ``(n, n)`` of the states of a stable model with constant fields, in the long run; float64."""
    A, a, Q = (part.double() for part in ssm[:3])
    return Gaussian(torch.linalg.solve(torch.eye(len(A), dtype=A.dtype, device=A.device) - A, a), stationary(A, Q))


def _moments(states: Gaussian, inputs: int) -> Tensor:
    """E[g g'] of g = (h, 1, u), u of mean 0 and unit variance and apart from h."""
    g = torch.cat([states.mean, states.mean.new_ones(1)])
    known = torch.eye(inputs, dtype=g.dtype, device=g.device)
    return torch.block_diag(pad(states.cov, (0, 1, 0, 1)) + torch.outer(g, g), known)
