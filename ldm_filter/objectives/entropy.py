"""Differential-entropy estimators of the latents: the *uniformity* term of the objective, in nats.

Every estimator maps samples ``(N, D)`` to a scalar and is differentiable. Sources: Kozachenko and Leonenko (1987) for the
nearest-neighbour estimator, Mikulasch and Zenke (arXiv 2605.03517), eqs. 32-34, for their use as an objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ldm_filter.objectives.samples import LOG_2PI, check, check_condition, covariance, digamma, gaussian_entropy, rank_by, spread, thin
from ldm_filter.objectives.scale_mixture import scale_mixture

__all__ = ["ENTROPIES", "conditional_log_det", "kde", "knn", "log_det", "nearest_neighbour_entropy", "variance_covariance"]


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
    check(samples, samples.shape[-1] + 1)
    return gaussian_entropy(samples.double().unsqueeze(0)).mean().to(samples.dtype)


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
    check(samples, samples.shape[-1] + 1)
    check_condition(condition, samples)
    if bins < 1:
        raise ValueError(f"bins is {bins}, expected at least 1")
    bins = max(1, min(bins, len(samples) // (4 * (samples.shape[-1] + 1))))
    per_bin = len(samples) // bins
    # A remainder smaller than one bin is left out at evenly spread ranks, so that no noise level is favoured.
    order = rank_by(condition.detach().reshape(len(condition), -1).mean(-1))[spread(len(samples), per_bin * bins, samples.device)]
    return gaussian_entropy(samples[order].double().reshape(bins, per_bin, -1)).mean().to(samples.dtype)


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
    return nearest_neighbour_entropy(samples, samples.shape[-1], k, max_samples)


def nearest_neighbour_entropy(samples: Tensor, dim: int, k: int, max_samples: int) -> Tensor:
    """The estimator of :func:`knn` for samples ``(N, D)`` that lie on a surface of ``dim`` dimensions."""
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1: the nearest other sample")
    check(samples, k + 1)
    z = thin(samples, max_samples)
    n = len(z)
    with torch.no_grad():  # the neighbour's identity carries no gradient; its distance, computed again below, does
        neighbour = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf).kthvalue(k, dim=-1).indices
    squared = (z - z[neighbour]).square().sum(-1)
    log_distance = 0.5 * squared.clamp_min(torch.finfo(z.dtype).tiny).log()
    log_ball = 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1.0)
    return dim * log_distance.mean() + log_ball + digamma(n) - digamma(k)


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
    check(samples, samples.shape[-1] + 1)
    z = thin(samples, max_samples).double()
    n, dim = z.shape
    h = (4.0 / (n * (dim + 2.0))) ** (1.0 / (dim + 4.0)) if bandwidth is None else bandwidth
    if not h > 0.0:
        raise ValueError(f"bandwidth is {bandwidth}, expected a positive number; leave it out for Silverman's rule")
    factor = h * torch.linalg.cholesky_ex(covariance(z.unsqueeze(0))[0]).L
    white = torch.linalg.solve_triangular(factor, (z - z.mean(0)).mT, upper=False).mT
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a'b: a difference of all pairs would need D times the memory; float64 bears the cancellation.
    norm = 0.5 * white.square().sum(-1)
    energy = (white @ white.mT - norm - norm[:, None]).to(samples.dtype).fill_diagonal_(-torch.inf)
    log_scale = math.log(n - 1) + 0.5 * dim * LOG_2PI + factor.diagonal().log().sum()
    return (log_scale - torch.logsumexp(energy, dim=-1).mean()).to(samples.dtype)


def variance_covariance(
    samples: Tensor, condition: Tensor | None = None, variance_weight: float = 25.0, covariance_weight: float = 1.0, floor: float = 1e-4
) -> Tensor:
    """VICReg's stand-in for an entropy: it holds the spread of every latent up to 1 and their covariances down.

        -(mu v + nu c),   v = 1/D sum_d max(0, 1 - sqrt(Var z_d + floor)),   c = 1/D sum_{d != e} Cov(z_d, z_e)^2

    Near unit covariance c is the log-determinant's second-order term, 1/2 log det C = 1/2 sum_d log C_dd - D/4 c + ... . It is no
    entropy: not in nats, without the law of scale, blind to a spread above 1. Prefer log-det; this is here to reproduce the method.

    Args:
        samples: ``(N, D)``, N at least 2.
        condition: ignored.
        variance_weight, covariance_weight: mu and nu.
        floor: added to the variances.

    Source:
        Bardes, Ponce and LeCun, arXiv 2105.04906, eqs. 1-4.
    """
    check(samples, 2)
    cov = (samples - samples.mean(0)).mT @ (samples - samples.mean(0)) / (len(samples) - 1)
    spread_lost = (1.0 - (cov.diagonal() + floor).sqrt()).clamp_min(0.0).mean()
    shared = (cov.square().sum() - cov.diagonal().square().sum()) / samples.shape[1]
    return -variance_weight * spread_lost - covariance_weight * shared


ENTROPIES: dict[str, Callable[..., Tensor]] = {
    "log-det": log_det,
    "conditional-log-det": conditional_log_det,
    "scale-mixture": scale_mixture,
    "knn": knn,
    "kde": kde,
}
"""Estimators by the name that ``LDMFilter(objective=...)`` takes."""
