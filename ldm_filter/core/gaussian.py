"""Gaussians: log-density, divergence, samples, and the score of a normal forecast."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm_filter.core.linalg import cholesky, cholesky_psd, matvec
from ldm_filter.types import Gaussian

__all__ = ["crps_normal", "kl", "log_density", "sample"]


def log_density(x: Tensor, gaussian: Gaussian) -> Tensor:
    """``log N(x; mean, cov)`` with all constants, computed in float64.

    Args:
        x: ``(..., D)``; leading dimensions broadcast against those of the Gaussian.
        gaussian: mean ``(..., D)``, cov ``(..., D, D)``, positive definite.

    Returns:
        ``(...)`` in the dtype of x.

    Raises:
        NotPositiveDefiniteError: (a ValueError) where a covariance is not positive definite.

    >>> log_density(torch.zeros(1), Gaussian(torch.zeros(1), torch.eye(1)))
    tensor(-0.9189)
    """
    factor = cholesky(gaussian.cov.double(), "gaussian.cov")
    difference = (x - gaussian.mean).double().unsqueeze(-1)
    squared = torch.linalg.solve_triangular(factor, difference, upper=False).square().sum((-2, -1))
    return (-0.5 * (squared + _log_det(factor) + x.shape[-1] * math.log(2.0 * math.pi))).to(x.dtype)


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    """``KL[p || q] = (tr(Sq^-1 Sp) + d' Sq^-1 d - D + log det Sq - log det Sp) / 2``, ``d`` the difference of means, in nats.

    Args:
        p, q: mean ``(..., D)``, cov ``(..., D, D)``, positive definite; leading dimensions broadcast.

    Returns:
        ``(...)``, at least 0, in the dtype of p; computed in float64.

    Raises:
        NotPositiveDefiniteError: (a ValueError) where a covariance is not positive definite.

    >>> kl(Gaussian(torch.ones(1), torch.eye(1)), Gaussian(torch.zeros(1), torch.eye(1)))
    tensor(0.5000)
    """
    factor_p, factor_q = cholesky(p.cov.double(), "p.cov"), cholesky(q.cov.double(), "q.cov")
    difference = (p.mean - q.mean).double().unsqueeze(-1)
    squared = torch.linalg.solve_triangular(factor_q, difference, upper=False).square().sum((-2, -1))
    trace = torch.linalg.solve_triangular(factor_q, factor_p, upper=False).square().sum((-2, -1))
    return (0.5 * (trace + squared - p.mean.shape[-1] + _log_det(factor_q) - _log_det(factor_p))).to(p.mean.dtype)


def sample(gaussian: Gaussian, generator: torch.Generator, sample_shape: tuple[int, ...] = ()) -> Tensor:
    """Draw ``mean + L e``, ``e ~ N(0, I)``, ``L L' = cov``; differentiable in mean and cov.

    Args:
        gaussian: mean ``(..., D)``, cov ``(..., D, D)``, positive semi-definite: a zero variance gives the mean.
        generator: source of the randomness, on the device of the Gaussian.
        sample_shape: leading shape of independent draws.

    Returns:
        ``(*sample_shape, ..., D)`` in the dtype of the mean.

    Raises:
        NotPositiveDefiniteError: (a ValueError) where a covariance has a negative eigenvalue.
    """
    mean, factor = gaussian.mean, cholesky_psd(gaussian.cov, "gaussian.cov")
    lead = torch.broadcast_shapes(mean.shape[:-1], factor.shape[:-2])
    noise = torch.randn(*sample_shape, *lead, mean.shape[-1], generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + matvec(factor.to(mean.dtype), noise)


def crps_normal(mean: Tensor, std: Tensor, y: Tensor) -> Tensor:
    """Continuous ranked probability score of a normal forecast: ``s (u (2 Phi(u) - 1) + 2 phi(u) - 1 / sqrt(pi))``, ``u = (y - mean) / s``.

    Args:
        mean, std, y: broadcast against one another, in the units of y; std > 0.

    Returns:
        The score in the units of y, lower is better; for std towards 0 it is ``|y - mean|``.

    Raises:
        ValueError: where a std is not positive.

    Source: T. Gneiting and A. E. Raftery, J. Am. Stat. Assoc. 102 (2007), section 4.2.

    >>> crps_normal(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.0))
    tensor(0.2337)
    """
    if not bool((std > 0).all()):
        raise ValueError(f"std has a value of {std.min().item():.6g}; expected positive standard deviations: give the root of the variance")
    u = (y - mean) / std
    density = torch.exp(-0.5 * u.square()) / math.sqrt(2.0 * math.pi)
    return std * (u * torch.erf(u / math.sqrt(2.0)) + 2.0 * density - 1.0 / math.sqrt(math.pi))


def _log_det(factor: Tensor) -> Tensor:
    return 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
