"""Free parameters <-> Cholesky factors, so that a learned covariance is positive definite for every value of its parameters."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["factor", "unfactor"]

# Added to the factor's diagonal: no learned variance falls below 1e-12 (in units in which the latents have variance 1).
FLOOR = 1e-6
# exp of this is still finite, and so is its square, in float32.
MOST_LOG = 40.0


def factor(raw: Tensor) -> Tensor:
    """Lower-triangular L with diagonal exp(raw_ii) + 1e-6, in float64.

    Args:
        raw: ``(n, n)``, of which the lower triangle counts, or ``(n,)``, the diagonal alone.

    Returns:
        ``(n, n)``, or the diagonal ``(n,)``. It is float64 because L L' in float32 would round small variances to below 0.

    >>> factor(torch.tensor([[0.0, 5.0], [3.0, 0.0]])).round(decimals=3).tolist()
    [[1.0, 0.0], [3.0, 1.0]]
    """
    raw = raw.double()
    diagonal = (raw if raw.ndim == 1 else raw.diagonal()).clamp(max=MOST_LOG).exp() + FLOOR
    return diagonal if raw.ndim == 1 else raw.tril(-1) + torch.diag(diagonal)


def unfactor(lower: Tensor) -> Tensor:
    """The parameters ``(n, n)`` of a lower factor: the inverse of :func:`factor` where the diagonal is above 1e-6."""
    diagonal = (lower.diagonal() - FLOOR).clamp_min(1e-3 * FLOOR)
    return lower.tril(-1) + torch.diag(diagonal.log())
