"""How honest a Gaussian's uncertainty is. Formulas: Bar-Shalom, Li & Kirubarajan 2001, ch. 5.4; Gneiting & Raftery 2007."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from ldm_filter.metrics.accuracy import mse, r2
from ldm_filter.metrics.arrays import Array, Mask, as_array, as_covariance, check_finite, match, whiten

__all__ = ["chi2_bounds", "coverage", "crps_normal", "gaussian_log_likelihood", "nees", "nis", "nll", "pit", "pit_distance", "scores"]


def _whitened(mean: Any, cov: Any, truth: Any, mask: Any) -> tuple[Array, Array, Mask]:
    """L^-1 (y - mu), log det cov of the entries that count, and the mask ``(..., d)``."""
    x, y, counts = match(mean, truth, mask, ("mean", "truth"))
    white, log_det = whiten(y - x, as_covariance(cov, counts))
    return white, log_det, counts


def _standardised(mean: Any, std: Any, truth: Any, mask: Any) -> tuple[Array, Array, Mask]:
    """(y - mu) / s, s and the mask, each ``(..., d)``."""
    x, y, counts = match(mean, truth, mask, ("mean", "truth"))
    spread = as_array("std", std)
    if np.ndim(mean) == 1 and spread.ndim == 1:
        spread = spread[:, None]
    try:
        spread = np.broadcast_to(spread, x.shape)
    except ValueError:
        raise ValueError(f"std has shape {spread.shape}, mean has {x.shape}; they must be equal or broadcast") from None
    check_finite("std", spread, counts)
    if (spread[counts] <= 0).any():
        raise ValueError(f"std must be positive, its smallest entry is {spread[counts].min()}; leave exact entries out with mask")
    spread = np.where(counts, spread, 1.0)
    return (y - x) / spread, spread, counts


def _shaped(values: Array, counts: Mask, like: Any) -> Array:
    """NaN where nothing counts, in the shape the caller's mean had."""
    return np.where(counts, values, np.nan).reshape(np.shape(like))


def gaussian_log_likelihood(mean: Any, cov: Any, truth: Any, mask: Any = None) -> Array:
    """log N(y; mu, S) = -1/2 [(y - mu)' S^-1 (y - mu) + log det S + d log 2 pi], summed over the d targets, one number per step.

    Args:
        mean: ``(..., d)``.
        cov: ``(..., d, d)`` or one that broadcasts to it.
        truth: ``(..., d)``.
        mask: ``(...)`` or ``(..., d)``; entries that do not count are marginalised out.

    Returns:
        ``(...)``, NaN where no entry of a step counts.

    Raises:
        ValueError: shapes differ, a NaN counts, or a covariance is not positive definite.

    >>> gaussian_log_likelihood([[0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0]]).round(4).tolist()
    [-1.8379]
    """
    white, log_det, counts = _whitened(mean, cov, truth, mask)
    number = counts.sum(-1)
    value = -0.5 * (np.square(white).sum(-1) + log_det + number * np.log(2 * np.pi))
    return np.where(number > 0, value, np.nan)


def nll(mean: Any, cov: Any, truth: Any, mask: Any = None) -> float:
    """Minus `gaussian_log_likelihood`, summed over targets, mean over the steps that count."""
    return float(-np.nanmean(gaussian_log_likelihood(mean, cov, truth, mask)))


def nees(mean: Any, cov: Any, truth: Any, mask: Any = None, *, normalised: bool = False) -> Array:
    """Normalised estimation error squared e' P^-1 e ~ chi2_d of a state, e = truth - mean, one number per step.

    Args:
        mean: ``(..., d)``.
        cov: ``(..., d, d)`` or one that broadcasts to it.
        truth: ``(..., d)``. A learned state has no truth of its own: decode it first (`affine_fit`, `decoded_covariance`).
        mask: ``(...)`` or ``(..., d)``; entries that do not count are marginalised out.
        normalised: divide by the number of entries that count, so that a calibrated filter has mean 1.

    Returns:
        ``(...)``, NaN where no entry of a step counts. Raises as `gaussian_log_likelihood`.

    >>> nees([[0.0, 0.0]], [[4.0, 0.0], [0.0, 1.0]], [[2.0, 3.0]]).tolist()
    [10.0]
    """
    white, _, counts = _whitened(mean, cov, truth, mask)
    number = counts.sum(-1)
    value = np.square(white).sum(-1) / (np.maximum(number, 1) if normalised else 1)
    return np.where(number > 0, value, np.nan)


def nis(mean: Any, cov: Any, measurement: Any, mask: Any = None, *, normalised: bool = False) -> Array:
    """Normalised innovation squared nu' S^-1 nu ~ chi2_m: `nees` of the measurement under its one-step prediction (with R).

    Args:
        mean: ``(..., m)`` predicted measurement, ``FilterResult.projected.mean``.
        cov: ``(..., m, m)`` its covariance S, R included.
        measurement: ``(..., m)``.
        mask: what was observed, ``(...)`` or ``(..., m)``.
        normalised: divide by the number of observed entries.
    """
    return nees(mean, cov, measurement, mask, normalised=normalised)


def chi2_bounds(dim: int, count: int, level: float = 0.95, *, normalised: bool = False) -> tuple[float, float]:
    """Acceptance interval of the mean of ``count`` independent NEES or NIS values, chi2_{N d}^-1((1 -+ level) / 2) / N.

    Over time it holds for NIS only when the innovations are white (see `whiteness`); NEES values of neighbouring steps are correlated,
    so count independent runs there.

    Args:
        dim: d, degrees of freedom of one value.
        count: N, number of independent values averaged.
        level: probability of the interval, between 0 and 1.
        normalised: also divide by d, so that the interval surrounds 1.

    Raises:
        ValueError: dim or count below 1, or level outside (0, 1).

    >>> [round(bound, 3) for bound in chi2_bounds(2, 50)]
    [1.484, 2.591]
    """
    if dim < 1 or count < 1:
        raise ValueError(f"dim and count must be at least 1, got {dim} and {count}")
    _check_level(level)
    scale = count * (dim if normalised else 1)
    low, high = stats.chi2.ppf([(1 - level) / 2, (1 + level) / 2], dim * count) / scale
    return float(low), float(high)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}; 95 % is 0.95")


def coverage(mean: Any, cov: Any, truth: Any, level: float = 0.95, mask: Any = None, *, per_dim: bool = False) -> float | Array:
    """Share of true values inside the ``level`` region: the ellipse e' P^-1 e <= chi2_d^-1(level), or |e_i| <= z sigma_i per dimension.

    Args:
        mean: ``(..., d)``.
        cov: ``(..., d, d)`` or one that broadcasts to it.
        truth: ``(..., d)``.
        level: nominal probability, between 0 and 1. A calibrated filter returns it.
        mask: ``(...)`` or ``(..., d)``, True where an entry counts.
        per_dim: intervals of each dimension, z = Phi^-1((1 + level) / 2), instead of the joint ellipse.

    Returns:
        float, or ``(d,)``.

    Raises:
        ValueError: level outside (0, 1), and as `gaussian_log_likelihood`.
    """
    _check_level(level)
    if per_dim:
        x, y, counts = match(mean, truth, mask, ("mean", "truth"))
        variance = np.diagonal(as_covariance(cov, counts), axis1=-2, axis2=-1)
        if (variance <= 0).any():
            raise ValueError(f"cov has a variance of {variance.min()}; variances must be positive")
        inside = (np.square(y - x) <= stats.norm.ppf((1 + level) / 2) ** 2 * variance) & counts
        axes = tuple(range(x.ndim - 1))
        if not counts.any(axes).all():
            raise ValueError(f"mask leaves dimensions {np.flatnonzero(~counts.any(axes)).tolist()} without an entry: no coverage there")
        return inside.sum(axes) / counts.sum(axes)
    white, _, counts = _whitened(mean, cov, truth, mask)
    number = counts.sum(-1)
    inside = np.square(white).sum(-1) <= stats.chi2.ppf(level, np.maximum(number, 1))
    return float(inside[number > 0].mean())


def crps_normal(mean: Any, std: Any, truth: Any, mask: Any = None) -> Array:
    """Continuous ranked probability score of N(mu, s^2), s [z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)], z = (y - mu) / s.

    In the units of the data, smaller is better. Source: Gneiting & Raftery 2007, eq. 21.

    Args:
        mean: ``(..., d)``.
        std: ``(..., d)`` or one that broadcasts to it, positive.
        truth: ``(..., d)``.
        mask: ``(...)`` or ``(..., d)``, True where an entry counts.

    Returns:
        One number per entry, NaN where it does not count.

    Raises:
        ValueError: shapes differ, a NaN counts, or a std is not positive.

    >>> crps_normal([0.0], [1.0], [0.0]).round(4).tolist()
    [0.2337]
    """
    z, spread, counts = _standardised(mean, std, truth, mask)
    value = spread * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    return _shaped(value, counts, mean)


def pit(mean: Any, std: Any, truth: Any, mask: Any = None) -> Array:
    """Probability integral transform Phi((y - mu) / s): uniform on [0, 1] when the forecast is calibrated. Arguments as `crps_normal`.

    >>> pit([0.0, 0.0], [1.0, 1.0], [0.0, 1.96]).round(3).tolist()
    [0.5, 0.975]
    """
    z, _, counts = _standardised(mean, std, truth, mask)
    return _shaped(stats.norm.cdf(z), counts, mean)


def pit_distance(mean: Any, std: Any, truth: Any, mask: Any = None) -> float:
    """Kolmogorov-Smirnov distance of the PIT values from uniform, max_u |F_N(u) - u|, of the dimension where it is largest.

    0 where the forecast is calibrated; a forecast that is biased, too wide or too narrow raises it. Chance alone leaves about 0.9 N^(-1/2) of N
    independent values, and more of steps that err alike. Arguments as `crps_normal`, a dimension without an entry that counts takes no part.

    >>> z = stats.norm.ppf((np.arange(100) + 0.5) / 100)
    >>> [round(pit_distance(np.zeros(100), std * np.ones(100), z), 3) for std in (1.0, 3.0)]
    [0.005, 0.247]
    """
    z, _, counts = _standardised(mean, std, truth, mask)
    ranks = stats.norm.cdf(z)
    return max(_from_uniform(ranks[..., d][counts[..., d]]) for d in range(ranks.shape[-1]))


def _from_uniform(values: Array) -> float:
    """max |F_N(u) - u| of values in [0, 1], on both sides of every step of F_N; 0 of none."""
    number = len(values)
    gaps = np.arange(number + 1) / max(number, 1)
    ranks = np.sort(values)
    return float(np.maximum(gaps[1:] - ranks, ranks - gaps[:-1]).max(initial=0.0))


def scores(mean: Any, cov: Any, truth: Any, mask: Any = None) -> dict[str, float]:
    """The standard row of a results table: mse, r2, nll, crps, nees (per dimension), coverage50, coverage80, coverage95 (joint), pit_distance.

    Arguments as `gaussian_log_likelihood`; ``mean`` needs at least two axes.
    """
    x, _, counts = match(mean, truth, mask, ("mean", "truth"))
    std = np.sqrt(np.diagonal(np.broadcast_to(as_covariance(cov, counts), (*x.shape, x.shape[-1])), axis1=-2, axis2=-1))
    return {
        "mse": mse(mean, truth, mask),
        "r2": float(r2(mean, truth, mask)),
        "nll": nll(mean, cov, truth, mask),
        "crps": float(np.nanmean(crps_normal(mean, std, truth, mask))),
        "nees": float(np.nanmean(nees(mean, cov, truth, mask, normalised=True))),
        **{f"coverage{round(100 * level)}": float(coverage(mean, cov, truth, level, mask)) for level in (0.5, 0.8, 0.95)},
        "pit_distance": pit_distance(mean, std, truth, mask),
    }
