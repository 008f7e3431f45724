"""How fast the predicted covariance of a constant model forgets where it started, and how much process noise makes it that fast.

    P_{k+1} = A (P_k - P_k C' (C P_k C' + R)^-1 C P_k) A' + Q,        P = the fixed point

With a small Q a filter trusts its past, and comes back slowly from a belief that was wide. No observation enters: all of it is known beforehand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_filter.core.linalg import cholesky, symmetrise

__all__ = ["NEAR", "least_noise", "steady_cov", "steps_to_settle", "widths"]

NEAR = 1.05  # of its steady value in every direction: there a covariance counts as settled
FACTORS_PER_OCTAVE = 16


def steady_cov(transition: Tensor, cov: Tensor, observation: Tensor, measurement_cov: Tensor) -> Tensor:
    """P, the steady predicted covariance: the stabilising solution of the discrete Riccati equation, by structured doubling.

    Args:
        transition: A ``(..., n, n)``. cov: Q ``(..., n, n)``. observation: C ``(m, n)``. measurement_cov: R ``(m, m)``.

    Returns:
        ``(..., n, n)`` float64.

    Raises:
        ValueError: there is none, because what grows is not observed.

    Source: E. K.-W. Chu, H.-Y. Fan, W.-W. Lin, C.-S. Wang, International Journal of Control 77 (2004).

    >>> one = torch.ones(1, 1).double()
    >>> round(steady_cov(one, one, one, one).item(), 6)  # the golden ratio
    1.618034
    """
    C, Q = observation.double(), cov.double()
    A, G = transition.double().mT, C.mT @ torch.linalg.solve(measurement_cov.double(), C)
    eye = torch.eye(len(G), dtype=torch.float64, device=G.device)
    H = Q
    for _ in range(60):
        inner = torch.linalg.solve(eye + G @ H, torch.cat([A, (G @ A.mT).expand(A.shape)], dim=-1))
        onward, spread = inner.split(len(eye), dim=-1)
        more = A.mT @ H @ onward
        A, G, H = A @ onward, symmetrise(G + A @ spread), symmetrise(H + more)
        if not bool(torch.isfinite(H).all()) or bool((more.abs() <= 1e-15 * H.abs().amax((-2, -1), keepdim=True)).all()):
            break
    if not bool(torch.isfinite(H).all()):
        raise ValueError("the predicted covariance has no steady value: a part of the state that does not decay is not observed; observe it as well")
    return H


def widths(start: Tensor, steps: int, transition: Tensor, cov: Tensor, observation: Tensor, measurement_cov: Tensor) -> Tensor:
    """How wide the predicted covariance is, 1 to ``steps`` steps after one was ``start``, beside its steady value: max x' P_k x / x' P x over x.

    Args:
        start: P_0 ``(..., n, n)``, predicted, before the observation of its step. The others as of :func:`steady_cov`.

    Returns:
        ``(..., steps)`` float64; 1 where no direction is wider.
    """
    A, Q, C, R = (part.double() for part in (transition, cov, observation, measurement_cov))
    root, now, found = cholesky(steady_cov(A, Q, C, R)), start.double(), []
    for _ in range(steps):
        cross = now @ C.mT
        now = symmetrise(A @ (now - cross @ torch.linalg.solve(C @ cross + R, cross.mT)) @ A.mT + Q)
        half = torch.linalg.solve_triangular(root, now, upper=False)
        found.append(torch.linalg.eigvalsh(symmetrise(torch.linalg.solve_triangular(root, half.mT, upper=False)))[..., -1])
    return torch.stack(found, dim=-1).clamp_min(1.0)


def steps_to_settle(start: Tensor, transition: Tensor, cov: Tensor, observation: Tensor, measurement_cov: Tensor, most: int = 1000) -> int:
    """The first step after which the predicted covariance is within 5 % of its steady value in every direction; ``most`` + 1: not by then."""
    near = widths(start, most, transition, cov, observation, measurement_cov) <= NEAR
    return int(near.int().argmax()) + 1 if bool(near.any()) else most + 1


def least_noise(
    steps: int, jump: tuple[Tensor, Tensor], transition: Tensor, cov: Tensor, observation: Tensor, measurement_cov: Tensor
) -> tuple[float, int]:
    """The smallest c >= 1 with which, Q being c Q, the predicted covariance is settled ``steps`` steps after a jump.

    A jump at a step makes its prediction J P J' + D, P the steady one with c Q. c is sought on a grid of 16 to the octave, up to where a calm step
    would move the state as far as a jump does, c Q against D in the mean over directions: tr(Q^-1 D) / n.

    Args:
        steps: k. jump: J and D, ``(n, n)`` each. The others ``(n, n)``, ``(m, n)``, ``(m, m)``.

    Returns:
        c, and k; or, where there is none, infinity, and the steps that the largest c would take.
    """
    J, D, Q = (part.double() for part in (*jump, cov))
    limit = max(1.0, float(torch.linalg.solve(Q, D).diagonal().mean()))
    octaves = torch.log2(torch.tensor(limit, dtype=torch.float64))
    factors = 2.0 ** (torch.arange(int(octaves * FACTORS_PER_OCTAVE) + 1, dtype=torch.float64, device=Q.device) / FACTORS_PER_OCTAVE)
    noises = factors[:, None, None] * Q
    starts = J @ steady_cov(transition.expand_as(noises), noises, observation, measurement_cov) @ J.mT + D
    settled = widths(starts, steps, transition, noises, observation, measurement_cov)[:, -1] <= NEAR
    if bool(settled.any()):
        return float(factors[settled.int().argmax()]), steps
    return float("inf"), steps_to_settle(starts[-1], transition, noises[-1], observation, measurement_cov)
