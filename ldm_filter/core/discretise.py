"""From one step to several and from continuous time to any step: (A, integral of A, Q), exactly and differentiably."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ldm_filter.core.linalg import symmetrise

__all__ = ["Steps", "discretise", "power_steps"]

# Terms of the series; with |F h| <= 1/2 what is left out is below 1e-16 of what is kept.
TERMS = 19
MOST_DOUBLINGS = 400


class Steps(NamedTuple):
    """Transitions over U different distances in time, all ``(U, n, n)`` float64.

    Attributes:
        transition: A(d).
        held: the integral of A over the step (in discrete time the sum of its powers): what a unit input that is held does to the state.
        cov: Q(d), the covariance of the noise that comes in on the way.
    """

    transition: Tensor
    held: Tensor
    cov: Tensor


def discretise(drift: Tensor, diffusion: Tensor, distance: Tensor) -> Steps:
    """Sample dh = F h dt + dW, Cov(dW) = Q dt at any distances d.

        A(d) = exp(F d),   held(d) = int_0^d exp(F s) ds,   Q(d) = int_0^d exp(F s) Q exp(F s)' ds

    These are the blocks of Van Loan's matrix exponential. Their series over d / 2^k share the powers of F among all distances, and k doublings,

        A(2h) = A(h)^2,   held(2h) = held(h) + A(h) held(h),   Q(2h) = Q(h) + A(h) Q(h) A(h)',

    lead to d. So, unlike Van Loan's block matrix, which holds exp(-F d), no distance overflows where F is stable, and Q stays a sum of positive
    terms.

    Args:
        drift: F, ``(n, n)``.
        diffusion: Q, ``(n, n)``, symmetric positive semi-definite.
        distance: d > 0, ``(U,)``.

    Returns:
        :class:`Steps`. Differentiable in all arguments.

    Source: C. F. Van Loan, IEEE Trans. Automatic Control 23 (1978); the doubling, E. S. Armstrong and A. J. Caglayan, NASA TN D-8285 (1976).

    >>> steps = discretise(torch.tensor([[-1.0]]).double(), torch.tensor([[2.0]]).double(), torch.tensor([1.0, 1e6]).double())
    >>> steps.cov.flatten().numpy().round(9).tolist()  # 1 - exp(-2 d)
    [0.864664717, 1.0]
    """
    drift, diffusion, distance = drift.double(), diffusion.double(), distance.double()
    size = len(drift)
    norm = torch.linalg.matrix_norm(drift.detach(), 1)
    norm = torch.where(norm > 0, norm, torch.ones_like(norm))
    doublings = torch.log2(2.0 * norm * distance.detach()).ceil().clamp(0, MOST_DOUBLINGS)
    # In units of 1 / |F|: the powers of a large F would overflow.
    x, unit = norm * distance / 2.0**doublings, drift / norm
    powers, spreads = [torch.eye(size, dtype=drift.dtype, device=drift.device)], [diffusion]
    for _ in range(TERMS - 1):
        powers.append(unit @ powers[-1])
        moved = unit @ spreads[-1]
        spreads.append(moved + moved.mT)
    order = torch.arange(TERMS, dtype=x.dtype, device=x.device)
    first = x[:, None] ** order / torch.lgamma(order + 1.0).exp()  # x^j / j!
    second = first * (x / norm)[:, None] / (order + 1.0)
    of_powers, of_spreads = torch.stack(powers).flatten(1), torch.stack(spreads).flatten(1)
    A, held, cov = ((c @ terms).unflatten(1, (size, size)) for c, terms in ((first, of_powers), (second, of_powers), (second, of_spreads)))
    for i in range(int(doublings.max()) if len(doublings) else 0):
        more = (doublings > i)[:, None, None]
        cov = torch.where(more, cov + A @ cov @ A.mT, cov)
        held = torch.where(more, held + A @ held, held)
        A = torch.where(more, A @ A, A)
    return Steps(A, held, symmetrise(cov))


def power_steps(transition: Tensor, cov: Tensor, count: Tensor) -> Steps:
    """Several steps of h_t = A h_{t-1} + w as one: A^k, I + A + ... + A^(k-1), and the noise of k steps, in log2 k products.

    Args:
        transition: A, ``(n, n)``.
        cov: Q, ``(n, n)``.
        count: k >= 1, ``(U,)`` integer.

    Returns:
        :class:`Steps`. Differentiable in A and Q.

    >>> power_steps(torch.tensor([[0.5]]).double(), torch.tensor([[1.0]]).double(), torch.tensor([1, 3])).cov.flatten().tolist()
    [1.0, 1.3125]
    """
    A, cov = transition.double(), cov.double()
    eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
    whole = Steps(A, eye, cov)
    done = Steps(*(x.expand(len(count), *A.shape) for x in (eye, torch.zeros_like(eye), torch.zeros_like(cov))))
    rest = count.clone()
    while bool((rest > 0).any()):
        odd = (rest % 2 == 1)[:, None, None]
        done = Steps(*(torch.where(odd, new, old) for new, old in zip(_then(done, whole), done, strict=True)))
        rest = rest // 2
        whole = _then(whole, whole)
    return Steps(done.transition, done.held, symmetrise(done.cov))


def _then(first: Steps, second: Steps) -> Steps:
    """One stretch of steps after another."""
    A = second.transition
    return Steps(A @ first.transition, A @ first.held + second.held, A @ first.cov @ A.mT + second.cov)
