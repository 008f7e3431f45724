"""What the entropy estimators share: checks, covariances, and ways to order and thin samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["LOG_2PI", "check", "check_condition", "covariance", "digamma", "gaussian_entropy", "rank_by", "spread", "thin"]

LOG_2PI = math.log(2.0 * math.pi)


def check(samples: Tensor, least: int) -> None:
    """Refuse samples that are not ``(N, D)``, fewer than ``least``, or not finite."""
    if samples.ndim != 2:
        raise ValueError(f"samples have shape {tuple(samples.shape)}, expected (N, D); flatten series and time first")
    if len(samples) < least:
        raise ValueError(f"samples hold {len(samples)} rows in {samples.shape[-1]} dimensions, at least {least} are needed; use a larger batch")
    if not bool(torch.isfinite(samples).all()):
        row = int((~torch.isfinite(samples).all(-1)).nonzero()[0, 0])
        raise ValueError(f"samples are not finite in row {row} of {len(samples)}; the encoder's output has overflowed or holds NaN")


def check_condition(condition: Tensor, samples: Tensor) -> None:
    """Refuse a level of another length, or one that is not finite."""
    if len(condition) != len(samples):
        raise ValueError(f"condition has {len(condition)} rows, samples have {len(samples)}; give one level for each sample")
    if not bool(torch.isfinite(condition).all()):
        raise ValueError("condition holds a value that is not finite; give the logarithm of a positive noise level")


def gaussian_entropy(groups: Tensor) -> Tensor:
    """Entropy ``(G,)`` of the Gaussians fitted to groups ``(G, N, D)``."""
    factor = torch.linalg.cholesky_ex(covariance(groups)).L
    dim = groups.shape[-1]
    return 0.5 * dim * (1.0 + LOG_2PI) + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def covariance(groups: Tensor) -> Tensor:
    """Covariances ``(G, D, D)`` with a ridge of 1e-10 of each variance, so that a collapsed latent costs a finite, steep amount."""
    centred = groups - groups.mean(1, keepdim=True)
    cov = centred.mT @ centred / groups.shape[1]
    return cov + torch.diag_embed(1e-10 * cov.detach().diagonal(dim1=-2, dim2=-1) + 1e-30)


def rank_by(level: Tensor) -> Tensor:
    """Places in order of the level. Equal levels come in a fixed scrambled order: neighbours in time alike fill no bin of their own."""
    golden = 0.5 * (5.0**0.5 - 1.0)
    scrambled = (torch.arange(len(level), device=level.device, dtype=torch.float64) * golden).frac().argsort()
    return scrambled[level[scrambled].argsort(stable=True)]


def spread(count: int, most: int, device: torch.device) -> Tensor:
    """``most`` places spread evenly over ``range(count)``."""
    return torch.linspace(0, count - 1, most, device=device, dtype=torch.float64).round().long()


def thin(samples: Tensor, most: int) -> Tensor:
    """At most ``most`` samples, evenly spread."""
    return samples if len(samples) <= most else samples[spread(len(samples), most, samples.device)]


def digamma(x: int) -> float:
    return float(torch.digamma(torch.tensor(float(x), dtype=torch.float64)))
