"""Angles as two channels, sine and cosine, which a linear model can carry across the jump from a full turn to zero; and back with a spread."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["angle_moments", "circular_error", "join_angles", "split_angles"]

_FULL = 2.0 * np.pi


def split_angles(frame: pd.DataFrame, channels: Iterable[Any], period: float = _FULL) -> pd.DataFrame:
    """Each of the channels, an angle, as ``<name>:sin`` and ``<name>:cos`` in its place; NaN stays NaN.

    Args:
        frame: of channels. channels: those that are angles.
        period: of a full turn: 2 pi, 360 for degrees, 24 for hours of the day.

    Raises:
        ValueError: a channel that is not there, or a period that is not positive.

    >>> split_angles(pd.DataFrame({"wind": [0.0, 90.0]}), ["wind"], period=360.0).round(3).to_numpy().tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    angles = list(channels)
    missing = [channel for channel in angles if channel not in frame.columns]
    if missing:
        raise ValueError(f"channels {missing} are not in the frame, which has {list(frame.columns)}; check their names")
    if not period > 0:
        raise ValueError(f"period is {period}, expected a positive number, that of a full turn")
    columns: dict[Any, Any] = {}
    for name in frame.columns:
        if name in angles:
            turn = frame[name].to_numpy(dtype=float) * (_FULL / period)
            columns[f"{name}:sin"], columns[f"{name}:cos"] = np.sin(turn), np.cos(turn)
        else:
            columns[name] = frame[name].to_numpy()
    return pd.DataFrame(columns, index=frame.index)


def angle_moments(sine: Any, cosine: Any, sine_std: Any, cosine_std: Any, period: float = _FULL) -> tuple[np.ndarray, np.ndarray]:
    """The angle in [0, period) of estimates of its sine and cosine, and its standard deviation.

    theta = atan2(s, c),   var theta = (c^2 var s + s^2 var c) / (s^2 + c^2)^2      (to first order; at most that of a uniform angle)
    """
    s, c, ds, dc = (np.asarray(x, dtype=float) for x in (sine, cosine, sine_std, cosine_std))
    square = s * s + c * c
    with np.errstate(divide="ignore", invalid="ignore"):
        std = np.sqrt(c * c * ds * ds + s * s * dc * dc) / square
    std = np.where(np.isnan(s), np.nan, np.fmin(std, _FULL / np.sqrt(12.0)))
    return np.mod(np.arctan2(s, c), _FULL) * period / _FULL, std * period / _FULL


def join_angles(forecast: pd.DataFrame, channels: Iterable[Any], period: float = _FULL) -> pd.DataFrame:
    """The inverse of :func:`split_angles` on a forecast: columns ``(<name>, mean)`` and ``(<name>, std)`` for each angle, the rest as it is."""
    kept = forecast
    for name in channels:
        sine, cosine = forecast[f"{name}:sin"], forecast[f"{name}:cos"]
        mean, std = angle_moments(sine["mean"], cosine["mean"], sine["std"], cosine["std"], period)
        kept = kept.drop(columns=[f"{name}:sin", f"{name}:cos"], level=0)
        kept[(name, "mean")], kept[(name, "std")] = mean, std
    return kept


def circular_error(estimate: Any, truth: Any, period: float = _FULL) -> np.ndarray:
    """The signed distance between two angles, in [-period/2, period/2).

    >>> circular_error([359.0, 10.0], [1.0, 350.0], period=360.0).tolist()
    [-2.0, 20.0]
    """
    difference = np.asarray(estimate, dtype=float) - np.asarray(truth, dtype=float)
    return np.mod(difference + period / 2, period) - period / 2
