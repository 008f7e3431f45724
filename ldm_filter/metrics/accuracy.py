"""How far estimates are from the truth, directly or after the best affine map."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ldm_filter.metrics.arrays import Array, as_array, as_mask, check_finite, match

__all__ = ["AffineMap", "affine_fit", "affine_r2", "db", "mse", "noise_corr", "r2", "rmse"]


def mse(estimate: Any, truth: Any, mask: Any = None) -> float:
    """Mean squared error over all entries that count, mean (x - y)^2.

    Args:
        estimate: ``(..., d)`` array or tensor.
        truth: the same shape.
        mask: ``(...)`` or ``(..., d)``, True where an entry counts.

    Raises:
        ValueError: shapes differ, or a NaN counts.

    >>> mse([1.0, 2.0], [1.0, 4.0])
    2.0
    """
    x, y, counts = match(estimate, truth, mask)
    return float(np.square(x - y).sum() / counts.sum())


def rmse(estimate: Any, truth: Any, mask: Any = None) -> float:
    """Root of the mean squared error, sqrt(mean (x - y)^2), in the units of the data. Arguments as `mse`.

    >>> rmse([1.0, 5.0], [1.0, 1.0], mask=[False, True])
    4.0
    """
    return float(np.sqrt(mse(estimate, truth, mask)))


def db(value: Any) -> float:
    """A squared error in decibel, 10 log10(value).

    Raises:
        ValueError: the value is not positive.

    >>> db(0.01)
    -20.0
    """
    number = float(as_array("value", value))
    if not number > 0 or not np.isfinite(number):
        raise ValueError(f"value must be positive and finite to be told in decibel, got {number}")
    return float(10.0 * np.log10(number))


def r2(estimate: Any, truth: Any, mask: Any = None, *, per_dim: bool = False) -> float | Array:
    """Coefficient of determination, 1 - sum (y - x)^2 / sum (y - mean y)^2 per target dimension, then the mean over dimensions.

    Args:
        estimate: ``(..., d)`` array or tensor.
        truth: the same shape. R2 is not symmetric: the truth comes second.
        mask: ``(...)`` or ``(..., d)``, True where an entry counts.
        per_dim: return ``(d,)`` instead of the mean.

    Raises:
        ValueError: a target dimension is constant (R2 is not defined), shapes differ, or a NaN counts.

    >>> r2([[0.0], [1.0], [2.0]], [[0.0], [1.0], [2.0]])
    1.0
    """
    x, y, counts = match(estimate, truth, mask)
    axes = tuple(range(x.ndim - 1))
    number = counts.sum(axes)
    centre = y.sum(axes) / np.maximum(number, 1)
    total = (np.square(y - centre) * counts).sum(axes)
    # rounding leaves about eps |y|^2 of a constant: that is no spread
    flat = total <= 1e-24 * number * np.square(centre)
    if flat.any():
        raise ValueError(f"truth is constant in target dimensions {np.flatnonzero(flat).tolist()}: R2 is not defined there, leave them out")
    score = 1.0 - np.square(x - y).sum(axes) / total
    return score if per_dim else float(score.mean())


class AffineMap(NamedTuple):
    """y = W x + b + e, the linear read-out of a target.

    Attributes:
        matrix: W, ``(d, n)``.
        offset: b, ``(d,)``.
        residual_cov: Cov(e) on the data of the fit, ``(d, d)``.
    """

    matrix: Array
    offset: Array
    residual_cov: Array

    def apply(self, x: Any) -> Array:
        """W x + b for ``(..., n)``."""
        return as_array("x", x) @ self.matrix.T + self.offset


def affine_fit(x: Any, y: Any, mask: Any = None) -> AffineMap:
    """Least-squares affine map min sum |y - W x - b|^2, and the covariance of what it leaves.

    Args:
        x: ``(..., n)`` learned states.
        y: ``(..., d)`` targets, the same leading axes.
        mask: ``(...)``, True where a step counts.

    Raises:
        ValueError: fewer than n + 2 steps, leading axes differ, or a NaN counts.

    >>> fit = affine_fit([[0.0], [1.0], [2.0]], [[1.0], [3.0], [5.0]])
    >>> fit.matrix.round(6).item(), fit.offset.round(6).item()
    (2.0, 1.0)
    """
    a, b = as_array("x", x), as_array("y", y)
    if a.ndim < 2 or b.ndim < 2 or a.shape[:-1] != b.shape[:-1]:
        raise ValueError(f"x has shape {a.shape} and y has shape {b.shape}; expected (..., n) and (..., d) with the same leading axes")
    keep = as_mask(mask, (*a.shape[:-1], 1))[..., 0]
    a, b = a[keep], b[keep]
    check_finite("x", a)
    check_finite("y", b)
    free = len(a) - a.shape[1] - 1
    if free < 1:
        raise ValueError(f"x has {len(a)} steps for {a.shape[1]} states; an affine fit needs at least {a.shape[1] + 2}")
    centre_x, centre_y = a.mean(0), b.mean(0)
    solution = np.linalg.lstsq(a - centre_x, b - centre_y, rcond=None)[0]
    rest = b - centre_y - (a - centre_x) @ solution
    return AffineMap(solution.T, centre_y - centre_x @ solution, rest.T @ rest / free)


def affine_r2(train_x: Any, train_y: Any, test_x: Any, test_y: Any, *, per_dim: bool = False) -> float | Array:
    """R2 on test data of the affine map fitted on training data: how linearly the states hold the target (identifiability).

    Swap x and y for the other direction, which finds superfluous states. Shapes as in `affine_fit`, result as in `r2`.
    Source: Mikulasch & Zenke 2026 (arXiv 2605.03517), theorem 1: the optimum is affine in the true latents.
    """
    return r2(affine_fit(train_x, train_y).apply(test_x), test_y, per_dim=per_dim)


def noise_corr(noise_cov: Any, true_variance: Any, mask: Any = None, *, rank: bool = False) -> float:
    """Pearson correlation of the filter's mean measurement variance trace(R_t) / m with the true noise variance v_t.

    Args:
        noise_cov: R, ``(..., m, m)``.
        true_variance: v, ``(...)``.
        mask: ``(...)``, True where a step counts.
        rank: Spearman's rank correlation instead, which no monotone change of scale moves.

    Raises:
        ValueError: shapes do not fit, a NaN counts, or one of the two is constant.
    """
    r, v = as_array("noise_cov", noise_cov), as_array("true_variance", true_variance)
    if r.ndim < 3 or r.shape[-1] != r.shape[-2] or r.shape[:-2] != v.shape:
        raise ValueError(f"noise_cov has shape {r.shape}, true_variance {v.shape}; expected (..., m, m) and the same (...)")
    x, y, counts = match(np.trace(r, axis1=-2, axis2=-1)[..., None] / r.shape[-1], v[..., None], mask, ("noise_cov", "true_variance"))
    a, b = x[counts], y[counts]
    for name, value in (("noise_cov", a), ("true_variance", b)):
        if np.ptp(value) <= 1e-12 * np.abs(value).max():
            raise ValueError(f"{name} is constant: a correlation is not defined")
    return float((stats.spearmanr if rank else stats.pearsonr)(a, b).statistic)
