"""Whether what a filter leaves is white. Source: Bar-Shalom, Li & Kirubarajan 2001, ch. 5.4.2."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ldm_filter.metrics.arrays import Array, Mask, as_array, as_covariance, as_mask, check_finite, match, whiten

__all__ = ["Whiteness", "autocorrelation", "whiteness"]


class Whiteness(NamedTuple):
    """Autocorrelation of whitened innovations, lag by lag.

    Attributes:
        lags: 1 ... L, ``(L,)``.
        autocorrelation: rho at each lag, ``(L,)``; N(0, 1 / N) for a consistent filter, N scalar products behind each lag.
        bound: a white sequence stays within +- bound with the asked probability, lag by lag, ``(L,)``.
    """

    lags: Array
    autocorrelation: Array
    bound: Array


def _check_lags(lags: int, steps: int) -> None:
    if not 1 <= lags < steps:
        raise ValueError(f"lags must lie between 1 and {steps - 1} for a series of {steps} steps, got {lags}")


def _lagged(x: Array, counts: Mask, lag: int, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """rho(l) = sum x_t x_{t+l} / sqrt(sum x_t^2 sum x_{t+l}^2) over pairs that both count, and the number of pairs."""
    steps = x.shape[-2]
    both = counts[..., : steps - lag, :] & counts[..., lag:, :]
    early, late = x[..., : steps - lag, :] * both, x[..., lag:, :] * both
    scale = np.sqrt(np.square(early).sum(axes) * np.square(late).sum(axes))
    if not (scale > 0).all():
        raise ValueError(f"at lag {lag} there is no pair of steps that both count and differ from the mean; use fewer lags")
    return (early * late).sum(axes) / scale, both.sum(axes)


def autocorrelation(values: Any, lags: int, mask: Any = None) -> Array:
    """Autocorrelation per channel, pooled over series: rho(l) = sum x_t x_{t+l} / sqrt(sum x_t^2 sum x_{t+l}^2), x = values - mean.

    Args:
        values: ``(..., T, m)``; a vector ``(T,)`` is one channel.
        lags: largest lag L, in steps.
        mask: ``(..., T)`` or ``(..., T, m)``, True where an entry counts.

    Returns:
        ``(L + 1, m)``, row l is lag l and row 0 is 1.

    Raises:
        ValueError: L not below T, a NaN counts, or a channel is constant.
    """
    x = as_array("values", values)
    x = x[:, None] if x.ndim == 1 else x
    _check_lags(lags, x.shape[-2])
    counts = as_mask(mask, x.shape)
    check_finite("values", x, counts)
    axes = tuple(range(x.ndim - 1))
    x = np.where(counts, x, 0.0)
    x = (x - x.sum(axes) / np.maximum(counts.sum(axes), 1)) * counts
    return np.stack([_lagged(x, counts, lag, axes)[0] for lag in range(lags + 1)])


def whiteness(mean: Any, cov: Any, measurement: Any, lags: int = 10, mask: Any = None, *, level: float = 0.95) -> Whiteness:
    """Normalised innovation autocorrelation rho(l) = sum nu_t' nu_{t+l} / sqrt(sum |nu_t|^2 sum |nu_{t+l}|^2), nu whitened by S.

    Innovations of a consistent filter are white; a state that is too small or a wrong Q shows here. The mean is not removed.

    Args:
        mean: ``(..., T, m)`` predicted measurements, ``FilterResult.projected.mean``.
        cov: ``(..., T, m, m)`` their covariance, R included.
        measurement: ``(..., T, m)``.
        lags: largest lag, in steps.
        mask: what was observed, ``(..., T)`` or ``(..., T, m)``.
        level: probability of the bound, z / sqrt(N).

    Raises:
        ValueError: lags not below T, a NaN counts, a covariance that is not positive definite, level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}; 95 % is 0.95")
    x, y, counts = match(mean, measurement, mask, ("mean", "measurement"))
    _check_lags(lags, x.shape[-2])
    white, _ = whiten(y - x, as_covariance(cov, counts))
    pairs = [_lagged(white, counts, lag, tuple(range(x.ndim))) for lag in range(1, lags + 1)]
    rho, number = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    return Whiteness(np.arange(1.0, lags + 1), rho, stats.norm.ppf((1 + level) / 2) / np.sqrt(number))
