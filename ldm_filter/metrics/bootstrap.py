"""How far a measured figure is to be trusted: a block bootstrap, since neighbouring steps err alike. Source: Efron & Tibshirani 1993, ch. 8."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ldm_filter.metrics.arrays import Array, as_array, as_covariance, match
from ldm_filter.metrics.calibration import crps_normal, gaussian_log_likelihood, nees

__all__ = ["Bounded", "PITHistogram", "bounded_mean", "bounded_scores", "pit_histogram"]


class Bounded(NamedTuple):
    """A mean with the ends of its confidence interval."""

    mean: float
    low: float
    high: float


class PITHistogram(NamedTuple):
    """Density of PIT values in bins of equal width, 1 where calibrated, with the ends of its confidence intervals, ``(bins,)`` each."""

    density: Array
    low: Array
    high: Array


def bounded_mean(values: Any, level: float = 0.95, *, resamples: int = 1000, seed: int = 0) -> Bounded:
    """Mean of what steps contribute (`nis`, `nees`, `crps_normal`, a coverage as 0 and 1), with a block bootstrap interval.

    The blocks are whole series; of a single series, about T^(1/2) stretches of it.

    Args:
        values: ``(series, time, ...)``, or ``(time,)`` of one series; NaN is left out.
        level: of the interval, between 0 and 1.
        resamples, seed: of the bootstrap.

    Raises:
        ValueError: no entry that counts, or a level outside (0, 1).

    >>> bounded_mean(np.random.default_rng(0).normal(1.0, 1.0, (100, 1))).low < 1.0
    True
    """
    sums, counts = _blocks(values)
    draws = _resampled(sums[:, None], counts, resamples, seed)[:, 0]
    low, high = np.quantile(draws, _ends(level))
    return Bounded(float(sums.sum() / counts.sum()), float(low), float(high))


def bounded_scores(
    mean: Any, cov: Any, truth: Any, mask: Any = None, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, Bounded]:
    """``nees`` (per dimension), ``log_likelihood``, ``crps``, ``coverage50``, ``coverage80``, ``coverage95`` (joint), each with its interval.

    Args:
        mean, cov, truth, mask: as `gaussian_log_likelihood`, ``(series, time, d)``.
        level, resamples, seed: as `bounded_mean`.
    """
    x, _, counts = match(mean, truth, mask, ("mean", "truth"))
    std = np.sqrt(np.diagonal(np.broadcast_to(as_covariance(cov, counts), (*x.shape, x.shape[-1])), axis1=-2, axis2=-1))
    squared, number = nees(mean, cov, truth, mask), counts.sum(-1)
    steps: dict[str, Array] = {"nees": squared / np.maximum(number, 1), "log_likelihood": gaussian_log_likelihood(mean, cov, truth, mask)}
    steps["crps"] = crps_normal(mean, std, truth, mask)
    for share in (0.5, 0.8, 0.95):
        inside = squared <= stats.chi2.ppf(share, np.maximum(number, 1))
        steps[f"coverage{round(100 * share)}"] = np.where(number > 0, inside, np.nan)
    return {name: bounded_mean(values, level, resamples=resamples, seed=seed) for name, values in steps.items()}


def pit_histogram(values: Any, bins: int = 20, level: float = 0.95, *, resamples: int = 1000, seed: int = 0) -> PITHistogram:
    """Histogram of PIT values with bootstrap intervals: a calibrated forecast's hold 1 in about ``level`` of the bins.

    A hump: the forecast is too wide; a bowl: too narrow; a slope: it is biased.

    Args:
        values: of `pit`, ``(series, time, ...)``, or ``(time,)`` of one series; NaN is left out.
        bins: at least 2.
        level, resamples, seed: as `bounded_mean`.

    Raises:
        ValueError: fewer than 2 bins, values outside [0, 1], and as `bounded_mean`.

    >>> pit_histogram(np.linspace(0.005, 0.995, 100)[:, None], bins=4).density.tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    if bins < 2:
        raise ValueError(f"bins is {bins}, expected at least 2")
    array = as_array("values", values)
    if ((array < 0) | (array > 1)).any():
        raise ValueError("values of a PIT lie between 0 and 1; pass what metrics.pit returns")
    place = np.minimum((np.nan_to_num(array) * bins).astype(int), bins - 1)
    member = np.where(np.isnan(array)[..., None], np.nan, place[..., None] == np.arange(bins))
    parts = [_blocks(member[..., k]) for k in range(bins)]
    sums, counts = np.stack([part[0] for part in parts], axis=1), parts[0][1]
    low, high = np.quantile(_resampled(sums, counts, resamples, seed), _ends(level), axis=0) * bins
    return PITHistogram(sums.sum(0) / counts.sum() * bins, low, high)


def _blocks(values: Any) -> tuple[Array, Array]:
    """Sum and number of the entries of each block, ``(blocks,)``."""
    array = as_array("values", values)
    rows = array[None] if array.ndim == 1 else array
    if len(rows) == 1:
        steps = rows.shape[1] if rows.ndim > 1 else 1
        parts = np.array_split(rows.reshape(steps, -1), max(1, round(np.sqrt(steps))))
    else:
        parts = list(rows)
    sums, counts = (np.array([function(part) for part in parts], dtype=float) for function in (np.nansum, lambda part: (~np.isnan(part)).sum()))
    if not counts.sum():
        raise ValueError("values hold no entry that counts: all are NaN")
    return sums, counts


def _resampled(sums: Array, counts: Array, resamples: int, seed: int) -> Array:
    """Means of draws of blocks with replacement, ``(resamples, columns)``."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(counts), np.full(len(counts), 1.0 / len(counts)), size=resamples)
    return (drawn @ sums) / np.maximum(drawn @ counts, 1e-300)[:, None]


def _ends(level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}; 95 % is 0.95")
    return (1 - level) / 2, (1 + level) / 2
