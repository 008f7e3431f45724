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
        Scalar, nats, in the samples' dtype (computed in float64: a covariance squares the condition number). A latent without
        spread costs about 34 nats, one that copies others about 11: low, but finite, with a steep gradient back.

    Raises:
        ValueError: fewer samples than dimensions, so that the covariance is singular, or a sample that is not finite.

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
        ValueError: fewer samples than dimensions, a condition of another length, no bin, or a number that is not finite.
    """
    if condition is None:
        return log_det(samples)
    _check(samples, samples.shape[-1] + 1)
    if len(condition) != len(samples):
        raise ValueError(f"condition has {len(condition)} rows, samples have {len(samples)}; give one level for each sample")
    if not bool(torch.isfinite(condition).all()):
        raise ValueError("condition holds a value that is not finite; give the logarithm of a positive noise level")
    if bins < 1:
        raise ValueError(f"bins is {bins}, expected at least 1")
    bins = max(1, min(bins, len(samples) // (4 * (samples.shape[-1] + 1))))
    per_bin = len(samples) // bins
    # A remainder smaller than one bin is left out at evenly spread ranks, so that no noise level is favoured.
    order = _order(condition.detach().reshape(len(condition), -1).mean(-1))[_spread(len(samples), per_bin * bins, samples.device)]
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
        ValueError: k below 1, k + 1 samples are not there, or a sample that is not finite.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1: the nearest other sample")
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

    with Sigma the samples' covariance, so that the estimate moves with any linear map of z as an entropy should.

    Args:
        samples: ``(N, D)``.
        condition: ignored.
        bandwidth: h; default Silverman's ``(4 / (N (D + 2)))^(1 / (D + 4))``.
        max_samples: more samples than this are thinned evenly, as the cost is quadratic.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: fewer samples than dimensions, one that is not finite, or a bandwidth that is not positive.
    """
    _check(samples, samples.shape[-1] + 1)
    z = _thin(samples, max_samples).double()
    n, dim = z.shape
    h = (4.0 / (n * (dim + 2.0))) ** (1.0 / (dim + 4.0)) if bandwidth is None else bandwidth
    if not h > 0.0:
        raise ValueError(f"bandwidth is {bandwidth}, expected a positive number; leave it out for Silverman's rule")
    factor = h * torch.linalg.cholesky_ex(_covariance(z.unsqueeze(0))[0]).L
    white = torch.linalg.solve_triangular(factor, (z - z.mean(0)).mT, upper=False).mT
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a'b: a difference of all pairs would need D times the memory; float64 bears the cancellation.
    norm = 0.5 * white.square().sum(-1)
    energy = (white @ white.mT - norm - norm[:, None]).to(samples.dtype).fill_diagonal_(-torch.inf)
    log_scale = math.log(n - 1) + 0.5 * dim * LOG_2PI + factor.diagonal().log().sum()
    return (log_scale - torch.logsumexp(energy, dim=-1).mean()).to(samples.dtype)


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
    """Covariances ``(G, D, D)`` with a ridge of 1e-10 of each variance, so that a collapsed latent costs a finite, steep amount."""
    centred = groups - groups.mean(1, keepdim=True)
    cov = centred.mT @ centred / groups.shape[1]
    return cov + torch.diag_embed(1e-10 * cov.detach().diagonal(dim1=-2, dim2=-1) + 1e-30)


def _order(level: Tensor) -> Tensor:
    """Ranks samples by level. Equal levels come in a fixed scrambled order: neighbours in time alike fill no bin of their own."""
    golden = 0.5 * (5.0**0.5 - 1.0)
    scrambled = (torch.arange(len(level), device=level.device, dtype=torch.float64) * golden).frac().argsort()
    return scrambled[level[scrambled].argsort(stable=True)]


def _spread(count: int, most: int, device: torch.device) -> Tensor:
    """``most`` places spread evenly over ``range(count)``."""
    return torch.linspace(0, count - 1, most, device=device, dtype=torch.float64).round().long()


def _thin(samples: Tensor, most: int) -> Tensor:
    return samples if len(samples) <= most else samples[_spread(len(samples), most, samples.device)]


def _digamma(x: int) -> float:
    return float(torch.digamma(torch.tensor(float(x), dtype=torch.float64)))


def _check(samples: Tensor, least: int) -> None:
    if samples.ndim != 2:
        raise ValueError(f"samples have shape {tuple(samples.shape)}, expected (N, D); flatten series and time first")
    if len(samples) < least:
        raise ValueError(f"samples hold {len(samples)} rows in {samples.shape[-1]} dimensions, at least {least} are needed; use a larger batch")
    if not bool(torch.isfinite(samples).all()):
        row = int((~torch.isfinite(samples).all(-1)).nonzero()[0, 0])
        raise ValueError(f"samples are not finite in row {row} of {len(samples)}; the encoder's output has overflowed or holds NaN")
