"""Intervals that hold their level whatever the errors' shape, from forecasts of held-out data."""

from __future__ import annotations

from typing import Any

import numpy as np

from ldm_filter.metrics.arrays import Array, as_array

__all__ = ["conformal_widths"]


def conformal_widths(mean: Any, std: Any, truth: Any, level: float) -> Array:
    """Half widths, in standard deviations, of intervals that hold at least ``level`` of further truths like these (split conformal prediction).

        width = the ceil((N + 1) level)-th smallest of |truth - mean| / std      (the largest, where N is too small for the level)

    Args:
        mean, std, truth: ``(N, ...)``: N forecasts that may be exchanged for one another; NaN in truth: not known.
        level: in (0, 1).

    Returns:
        ``(...)``: one width for every step ahead and channel.

    Raises:
        ValueError: shapes that differ, a level out of range, a std that is not positive, or a place where no truth is known.

    Source: Papadopoulos et al. 2002; Lei et al., J. Am. Stat. Assoc. 113 (2018).

    Example:
        >>> float(conformal_widths(np.zeros(9), np.ones(9), np.arange(1.0, 10.0), 0.8))
        8.0
    """
    m, s, x = (as_array(name, value) for name, value in (("mean", mean), ("std", std), ("truth", truth)))
    if not m.shape == s.shape == x.shape:
        raise ValueError(f"mean, std and truth have shapes {m.shape}, {s.shape} and {x.shape}; they must be equal")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}, expected a share between 0 and 1")
    known = ~np.isnan(x)
    if not known.any(0).all():
        raise ValueError("truth is NaN in all forecasts of some place; leave it out or give more of them")
    if not (s[known] > 0).all() or not np.isfinite(m[known]).all():
        raise ValueError("mean must be finite and std positive wherever truth is known")
    residual = np.full(x.shape, np.inf)
    np.divide(np.abs(x - m), s, out=residual, where=known)
    count = known.sum(0)
    rank = np.clip(np.ceil((count + 1) * level).astype(int) - 1, 0, count - 1)
    return np.take_along_axis(np.sort(residual, axis=0), rank[None], axis=0)[0]
