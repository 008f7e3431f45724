"""Directions: the von Mises-Fisher density on the unit sphere, and its normaliser."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm_filter.types import VonMisesFisher

__all__ = ["log_density", "log_normaliser", "normalise"]

# Beyond it the series below would need too many terms; the density is then a Gaussian of standard deviation 0.01 on the sphere.
MOST_CONCENTRATION = 1e4


def normalise(x: Tensor) -> Tensor:
    """x / abs(x) along the last dimension; 0 stays 0, with a finite gradient."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)


def log_density(x: Tensor, distribution: VonMisesFisher) -> Tensor:
    """log p(x) = log C_D(kappa) + kappa mu'x, with respect to the area of the sphere.

    Args:
        x: unit vectors ``(..., D)``, D at least 2.
        distribution: direction ``(..., D)``, concentration.

    Returns:
        ``(...)`` in the dtype of x.

    >>> at = VonMisesFisher(torch.tensor([1.0, 0.0, 0.0]), torch.tensor(1.0))
    >>> log_density(torch.tensor([0.0, 1.0, 0.0]), at)
    tensor(-2.6925)
    """
    cosine = (x * distribution.direction).sum(-1)
    return log_normaliser(x.shape[-1], distribution.concentration).to(x.dtype) + distribution.concentration * cosine


def log_normaliser(dim: int, concentration: Tensor) -> Tensor:
    """log C_D(kappa) = (D/2 - 1) log kappa - D/2 log 2 pi - log I_{D/2 - 1}(kappa), differentiable, in float64.

    The modified Bessel function is summed as its series, in which every term is positive:
    I_v(x) = sum_k (x/2)^(2k + v) / (k! Gamma(k + v + 1)).

    Raises:
        ValueError: D below 2, or a concentration outside of (0, 1e4].
    """
    if dim < 2:
        raise ValueError(f"dim is {dim}, expected at least 2: the sphere in one dimension is two points")
    kappa = concentration.double()
    most = float(kappa.detach().max())
    if not (float(kappa.detach().min()) > 0.0 and most <= MOST_CONCENTRATION):
        raise ValueError(f"concentration is {most:g}, expected a number above 0 and at most {MOST_CONCENTRATION:g}")
    order = 0.5 * dim - 1.0
    k = torch.arange(math.ceil(0.5 * most + 8.0 * most**0.5) + 40, dtype=torch.float64, device=kappa.device)
    terms = (2.0 * k + order) * (0.5 * kappa.unsqueeze(-1)).log() - torch.lgamma(k + 1.0) - torch.lgamma(k + order + 1.0)
    return order * kappa.log() - 0.5 * dim * math.log(2.0 * math.pi) - torch.logsumexp(terms, dim=-1)
