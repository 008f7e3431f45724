"""Differential-entropy estimators of the latents: the *uniformity* term of the objective, in nats.

Every estimator maps samples ``(N, D)`` to a scalar and is differentiable. Sources: Kozachenko and Leonenko (1987) for the
nearest-neighbour estimator, Mikulasch and Zenke (arXiv 2605.03517), eqs. 32-34, for their use as an objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ENTROPIES", "conditional_log_det", "kde", "knn", "log_det"]

LOG_2PI = math.log(2.0 * math.pi)


def log_det(samples: Tensor, condition: Tensor | None = None) -> Tensor:
    """Entropy of the Gaussian with the samples' covariance, an upper bound that is exact for a Gaussian.

        H = D/2 (1 + log 2 pi) + 1/2 log det Cov(z)                                            (eq. 34)

    Args:
        samples: ``(N, D)``, N > D.
        condition: ignored; there so that every estimator is called alike.

    Returns:
        Scalar, nats, in the samples' dtype (computed in float64: a covariance squares the condition number).

    Raises:
        ValueError: fewer samples than dimensions, so that the covariance is singular.

    Example:
        >>> z = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0))
        >>> abs(float(log_det(z)) - (1 + LOG_2PI)) < 0.02
        True
    """
    _check(samples, samples.shape[-1] + 1)
    return _gaussian_entropy(samples.double().unsqueeze(0)).mean().to(samples.dtype)


def conditional_log_det(samples: Tensor, condition: Tensor | None = None, bins: int = 12) -> Tensor:
    """Entropy given a noise level: the log-determinant estimator within bins of the level, averaged.

        H[z | s] = mean_b H_log-det[z | s in bin b]

    A Gaussian fitted to a heavy-tailed z overstates its entropy, which a learned measurement covariance exploits by sending
    noisy observations far out. Within a bin of equal noise z is close to Gaussian again and nothing is to be gained.

    Args:
        samples: ``(N, D)``.
        condition: ``(N,)`` or ``(N, C)``, the level (usually log R); detached, several columns are averaged. ``None``: unconditional.
        bins: number of equally filled bins; fewer are used where a bin would hold under ``4 (D + 1)`` samples.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: fewer samples than dimensions, or a condition of another length.
    """
    if condition is None:
        return log_det(samples)
    _check(samples, samples.shape[-1] + 1)
    level = condition.detach().reshape(len(condition), -1).mean(-1)
    if len(level) != len(samples):
        raise ValueError(f"condition has {len(level)} rows, samples have {len(samples)}; give one level for each sample")
    bins = max(1, min(bins, len(samples) // (4 * (samples.shape[-1] + 1))))
    per_bin = len(samples) // bins
    # A remainder smaller than one bin is left out at evenly spread ranks, so that no noise level is favoured.
    ranks = torch.linspace(0, len(samples) - 1, per_bin * bins, device=samples.device, dtype=torch.float64).round().long()
    order = level.argsort()[ranks]
    return _gaussian_entropy(samples[order].double().reshape(bins, per_bin, -1)).mean().to(samples.dtype)


def knn(samples: Tensor, condition: Tensor | None = None, k: int = 3, max_samples: int = 2048) -> Tensor:
    """Kozachenko-Leonenko nearest-neighbour entropy.

        H = D/N sum_i log eps_{i,k} + log V_D + psi(N) - psi(k)                                (eq. 33)

    with eps_{i,k} the distance from z_i to its k-th neighbour and V_D the volume of the unit ball. The factor D, absent from the
    authors' code, is kept: without it the entropy is under-weighted against the alignment.

    Args:
        samples: ``(N, D)``.
        condition: ignored.
        k: which neighbour; small k has little bias, large k little variance.
        max_samples: more samples than this are thinned evenly, as the cost is quadratic.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: k + 1 samples are not there.
    """
    _check(samples, k + 1)
    z = _thin(samples, max_samples)
    n, dim = z.shape
    with torch.no_grad():  # the neighbour's identity carries no gradient; its distance, computed again below, does
        neighbour = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf).kthvalue(k, dim=-1).indices
    squared = (z - z[neighbour]).square().sum(-1)
    log_distance = 0.5 * squared.clamp_min(torch.finfo(z.dtype).tiny).log()
    log_ball = 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1.0)
    return dim * log_distance.mean() + log_ball + _digamma(n) - _digamma(k)


def kde(samples: Tensor, condition: Tensor | None = None, bandwidth: float | None = None, max_samples: int = 2048) -> Tensor:
    """Leave-one-out Gaussian kernel-density entropy.

        H = -1/N sum_i log 1/(N - 1) sum_{j != i} N(z_i; z_j, h^2 Sigma)                       (eq. 32)

    with Sigma the samples' (detached) covariance, so that the estimate moves with any linear map of z as an entropy should.

    Args:
        samples: ``(N, D)``.
        condition: ignored.
        bandwidth: h; default Silverman's ``(4 / (N (D + 2)))^(1 / (D + 4))``.
        max_samples: more samples than this are thinned evenly, as the cost is quadratic.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: fewer samples than dimensions, or a bandwidth that is not positive.
    """
    _check(samples, samples.shape[-1] + 1)
    z = _thin(samples, max_samples)
    n, dim = z.shape
    h = (4.0 / (n * (dim + 2.0))) ** (1.0 / (dim + 4.0)) if bandwidth is None else bandwidth
    if not h > 0.0:
        raise ValueError(f"bandwidth is {bandwidth}, expected a positive number; leave it out for Silverman's rule")
    with torch.no_grad():
        factor = torch.linalg.cholesky(_covariance(z.double().unsqueeze(0))[0] * h**2).to(z.dtype)
    white = torch.linalg.solve_triangular(factor, z.mT, upper=False).mT
    energy = -0.5 * (white.unsqueeze(0) - white.unsqueeze(1)).square().sum(-1)
    energy = energy.masked_fill(torch.eye(n, dtype=torch.bool, device=z.device), -torch.inf)
    log_kernel = energy - 0.5 * dim * LOG_2PI - factor.diagonal().log().sum()
    return -(torch.logsumexp(log_kernel, dim=-1) - math.log(n - 1)).mean()


ENTROPIES: dict[str, Callable[..., Tensor]] = {
    "log-det": log_det,
    "conditional-log-det": conditional_log_det,
    "knn": knn,
    "kde": kde,
}
"""Estimators by the name that ``LDMFilter(objective=...)`` takes."""


def _gaussian_entropy(groups: Tensor) -> Tensor:
    """Entropy ``(G,)`` of the Gaussians fitted to groups ``(G, N, D)``."""
    factor = torch.linalg.cholesky_ex(_covariance(groups)).L
    dim = groups.shape[-1]
    return 0.5 * dim * (1.0 + LOG_2PI) + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _covariance(groups: Tensor) -> Tensor:
    """Covariances ``(G, D, D)`` with a relative ridge of 1e-10, so that a collapsed latent costs a finite, steep amount."""
    centred = groups - groups.mean(1, keepdim=True)
    cov = centred.mT @ centred / groups.shape[1]
    ridge = 1e-10 * cov.diagonal(dim1=-2, dim2=-1).mean(-1).detach() + 1e-30
    return cov + ridge[:, None, None] * torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)


def _thin(samples: Tensor, most: int) -> Tensor:
    if len(samples) <= most:
        return samples
    return samples[torch.linspace(0, len(samples) - 1, most, device=samples.device).round().long()]


def _digamma(x: int) -> float:
    return float(torch.digamma(torch.tensor(float(x), dtype=torch.float64)))


def _check(samples: Tensor, least: int) -> None:
    if samples.ndim != 2:
        raise ValueError(f"samples have shape {tuple(samples.shape)}, expected (N, D); flatten series and time first")
    if len(samples) < least:
        raise ValueError(f"samples hold {len(samples)} rows in {samples.shape[-1]} dimensions, at least {least} are needed; use a larger batch")
