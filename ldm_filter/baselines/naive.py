"""Forecasts that need no model: hold the last value, interpolate, repeat the last season.

Their standard deviations are the root mean squared errors that the same rule makes on training data, per channel and distance.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch

from ldm_filter.baselines.series import Array, Forecast, Index, Mask, Series, as_series, check_fitted, check_horizon
from ldm_filter.types import Gaussian

__all__ = ["HoldLast", "LinearInterpolation", "SeasonalNaive", "hold_last", "linear_interpolation", "seasonal_naive"]


def hold_last(values: Any, observed: Any = None) -> Array:
    """Fill each missing entry with the last observed one of its channel; before the first, with the first.

    Args:
        values: ``(time, channel)`` or ``(series, time, channel)``, NaN = missing.
        observed: more to hide, boolean, ``(..., time)`` or the shape of ``values``; True = observed.

    Returns:
        The shape of ``values``, without NaN.

    Raises:
        ValueError: a channel of a series was never observed.

    >>> hold_last([[float("nan")], [1.0], [float("nan")], [2.0]]).ravel().tolist()
    [1.0, 1.0, 1.0, 2.0]
    """
    series = as_series(values, observed)
    return series.shaped(_take(series.values, _held(series.observed)))


def linear_interpolation(values: Any, observed: Any = None) -> Array:
    """Fill each missing entry on the line between its two observed neighbours in time; outside them, with the nearest.

    Arguments, result and errors as `hold_last`.

    >>> linear_interpolation([[0.0], [float("nan")], [float("nan")], [3.0]]).ravel().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    series = as_series(values, observed)
    before, after = _neighbours(series.observed)
    return series.shaped(_interpolate(series.values, before, after))


def seasonal_naive(values: Any, period: int, horizon: int, observed: Any = None) -> Array:
    """Forecast x_{T + h} = x_{T + h - k period}, the most recent observed entry of the same phase.

    Args:
        values: ``(time, channel)`` or ``(series, time, channel)``, NaN = missing.
        period: steps of a season.
        horizon: steps to forecast.
        observed: as in `hold_last`.

    Returns:
        ``(horizon, channel)`` or ``(series, horizon, channel)``.

    Raises:
        ValueError: a phase was never observed, or period or horizon below 1.

    >>> seasonal_naive([[1.0], [2.0], [3.0], [4.0]], period=2, horizon=3).ravel().tolist()
    [3.0, 4.0, 3.0]
    """
    series = as_series(values, observed)
    return series.shaped(_take(series.values, _same_phase(series.observed, period, horizon)))


class HoldLast:
    """`hold_last` with standard deviations: the error grows with the distance to the value that is held.

    >>> walk = np.cumsum(np.random.default_rng(0).standard_normal((2000, 1)), axis=0)
    >>> HoldLast().fit(walk).forecast(walk, 4).std.ravel().round(1).tolist()
    [1.0, 1.4, 1.7, 2.0]
    """

    train_: Series
    mean_: Array
    scale_: Array

    def fit(self, values: Any, observed: Any = None) -> Self:
        """Keep training data ``(time, channel)`` or ``(series, time, channel)`` (NaN = missing) to measure the rule's errors on."""
        self.train_ = as_series(values, observed)
        self.scale_ = _spread(self.train_)
        seen = self.train_.observed.sum((0, 1))
        self.mean_ = self.train_.values.sum((0, 1)) / np.maximum(seen, 1)
        return self

    def fill(self, values: Any, observed: Any = None) -> Forecast:
        """Filled values and their standard deviation; 0 where observed."""
        series = self._series(values, observed)
        source = _held(series.observed)
        distance = np.abs(source - np.arange(source.shape[1])[None, :, None])
        return Forecast(series.shaped(_take(series.values, source)), series.shaped(self._std(distance)))

    def forecast(self, values: Any, horizon: int, observed: Any = None) -> Forecast:
        """The last observed value for steps 1 ... horizon after the end, ``(..., horizon, channel)``."""
        check_horizon(horizon)
        series = self._series(values, observed)
        source = np.repeat(_held(series.observed)[:, -1:], horizon, axis=1)
        steps = series.values.shape[1] + np.arange(horizon)[None, :, None]
        return Forecast(series.shaped(_take(series.values, source)), series.shaped(self._std(steps - source)))

    def one_step(self, values: Any, observed: Any = None) -> Forecast:
        """Each value as the last observed one before it would have it; the first ones by the training data's mean."""
        series = self._series(values, observed)
        return self._from(series, _before(_last(series.observed)))

    def state(self, values: Any, observed: Any = None) -> Gaussian:
        """The values held, ``(series, time, channel)``, as if they were exact."""
        series = self._series(values, observed)
        mean = torch.from_numpy(_take(series.values, _held(series.observed)))
        return Gaussian(mean, mean.new_zeros(1, 1, mean.shape[-1], mean.shape[-1]))

    def _from(self, series: Series, source: Index) -> Forecast:
        """Values from earlier steps, ``source`` < 0: the training data's mean and spread."""
        known, here = source >= 0, np.arange(source.shape[1])[None, :, None]
        mean = np.where(known, _take(series.values, np.maximum(source, 0)), self.mean_)
        std = np.where(known, self._std(np.where(known, here - source, 1)), self.scale_)
        return Forecast(series.shaped(mean), series.shaped(std))

    def _series(self, values: Any, observed: Any) -> Series:
        series = as_series(values, observed)
        check_fitted(self, "scale_", series.values.shape[-1])
        return series

    def _std(self, distance: Index) -> Array:
        return _errors(self.train_, self.scale_, distance, np.zeros_like(distance))


class LinearInterpolation(HoldLast):
    """`linear_interpolation` with standard deviations per distance to the neighbours; a forecast holds the last value."""

    def fill(self, values: Any, observed: Any = None) -> Forecast:
        """Filled values and their standard deviation; 0 where observed."""
        series = self._series(values, observed)
        before, after = _neighbours(series.observed)
        here = np.arange(before.shape[1])[None, :, None]
        left, right = np.abs(here - before), np.abs(after - here)
        std = _errors(self.train_, self.scale_, left, np.where(after > before, right, 0))
        return Forecast(series.shaped(_interpolate(series.values, before, after)), series.shaped(std))


class SeasonalNaive(HoldLast):
    """`seasonal_naive` with standard deviations per number of seasons looked back.

    Args:
        period: steps of a season, at least 1.
    """

    def __init__(self, period: int) -> None:
        self.period = period

    def fill(self, values: Any, observed: Any = None) -> Forecast:
        """Not offered: a season before the gap may be missing as well."""
        raise ValueError("SeasonalNaive only forecasts; fill gaps with HoldLast, LinearInterpolation or a Kalman smoother")

    def one_step(self, values: Any, observed: Any = None) -> Forecast:
        """Each value as the most recent observed one of its phase would have it; the first ones by the training data's mean."""
        series = self._series(values, observed)
        steps = series.values.shape[1]
        source = np.full(series.values.shape, -1)
        for phase in range(min(self.period, steps)):
            rows = np.arange(phase, steps, self.period)
            place = _before(_last(series.observed[:, rows]))
            source[:, rows] = np.where(place >= 0, rows[np.maximum(place, 0)], -1)
        return self._from(series, source)

    def forecast(self, values: Any, horizon: int, observed: Any = None) -> Forecast:
        """The last season again for steps 1 ... horizon after the end, ``(..., horizon, channel)``."""
        series = self._series(values, observed)
        source = _same_phase(series.observed, self.period, horizon)
        steps = series.values.shape[1] + np.arange(horizon)[None, :, None]
        return Forecast(series.shaped(_take(series.values, source)), series.shaped(self._std(steps - source)))


def _take(values: Array, source: Index) -> Array:
    return np.take_along_axis(values, source, axis=1)


def _neighbours(observed: Mask) -> tuple[Index, Index]:
    """Index of the nearest observed entry at or before, and at or after, each step; where there is none, of the other one."""
    lost = ~observed.any(1)
    if lost.any():
        index = tuple(int(i) for i in np.argwhere(lost)[0])
        raise ValueError(f"values has no observed entry in channel {index[1]} of series {index[0]}: nothing to fill it from, drop that channel")
    steps = observed.shape[1]
    here = np.arange(steps)[None, :, None]
    before = np.maximum.accumulate(np.where(observed, here, -1), axis=1)
    after = np.minimum.accumulate(np.where(observed, here, steps)[:, ::-1], axis=1)[:, ::-1]
    return np.where(before < 0, after, before), np.where(after == steps, before, after)


def _last(observed: Mask) -> Index:
    """The last observed step up to each, -1 where there was none."""
    steps = np.arange(observed.shape[1])[None, :, None]
    return np.maximum.accumulate(np.where(observed, steps, -1), axis=1)


def _before(source: Index) -> Index:
    """What was known one step earlier."""
    return np.concatenate([np.full_like(source[:, :1], -1), source[:, :-1]], axis=1)


def _held(observed: Mask) -> Index:
    return _neighbours(observed)[0]


def _interpolate(values: Array, before: Index, after: Index) -> Array:
    here = np.arange(values.shape[1])[None, :, None]
    share = (here - before) / np.maximum(after - before, 1)
    low, high = _take(values, before), _take(values, after)
    return np.where(after > before, low + share * (high - low), low)


def _same_phase(observed: Mask, period: int, horizon: int) -> Index:
    """Index of the most recent observed entry of the phase of each of the next ``horizon`` steps."""
    check_horizon(horizon)
    steps = observed.shape[1]
    if int(period) != period or not 1 <= period <= steps:
        raise ValueError(f"period must be a whole number of steps between 1 and the series' {steps}, got {period}")
    columns = []
    for step in range(steps, steps + period):
        phase = np.arange(step % period, steps, period)
        found = np.where(observed[:, phase], phase[None, :, None], -1).max(1)
        if (found < 0).any():
            raise ValueError(f"values has no observed entry at phase {step % period} of period {period} in some channel: nothing to repeat")
        columns.append(found)
    return np.stack([columns[h % period] for h in range(horizon)], axis=1)


def _spread(train: Series) -> Array:
    """Standard deviation per channel: the error to fall back on where training data has no pair so far apart."""
    count = train.observed.sum((0, 1))
    if (count < 2).any():
        raise ValueError(f"training values have fewer than 2 observed entries in channels {np.flatnonzero(count < 2).tolist()}")
    mean = train.values.sum((0, 1)) / count
    return np.sqrt((np.square(train.values - mean) * train.observed).sum((0, 1)) / count)


def _rms(error: Array, both: Mask, fallback: Array) -> Array:
    count = both.sum((0, 1))
    return np.where(count > 0, np.sqrt((np.square(error) * both).sum((0, 1)) / np.maximum(count, 1)), fallback)


def _lag_error(train: Series, lag: int, scale: Array) -> Array:
    """Root mean square of x_{t + lag} - x_t per channel; sqrt(2) standard deviations where there is no such pair."""
    x, seen = train.values, train.observed
    stop = x.shape[1] - lag
    if stop <= 0:
        return np.sqrt(2.0) * scale
    return _rms(x[:, lag:] - x[:, :stop], seen[:, lag:] & seen[:, :stop], np.sqrt(2.0) * scale)


def _line_error(train: Series, left: int, right: int, scale: Array) -> Array:
    """Root mean square of x_t - (right x_{t - left} + left x_{t + right}) / (left + right); sqrt(3/2) standard deviations where there is none."""
    x, seen = train.values, train.observed
    stop = x.shape[1] - left - right
    if stop <= 0:
        return np.sqrt(1.5) * scale
    a, b, c = slice(0, stop), slice(left, left + stop), slice(left + right, None)
    line = (right * x[:, a] + left * x[:, c]) / (left + right)
    return _rms(x[:, b] - line, seen[:, a] & seen[:, b] & seen[:, c], np.sqrt(1.5) * scale)


def _errors(train: Series, scale: Array, left: Index, right: Index) -> Array:
    """Standard deviations per entry ``(series, time, channel)`` from its distances to the two values used; ``right`` 0: one value is held.

    Each distinct pair is measured once. Distances above 32 are rounded to a twentieth, so that long gaps stay cheap.
    """
    near, far = _rounded(left), _rounded(right)
    base = int(far.max()) + 1
    distinct, place = np.unique(near * base + far, return_inverse=True)
    table = np.empty((len(distinct), scale.size))
    for row, (a, b) in enumerate(zip(*np.divmod(distinct, base), strict=True)):
        table[row] = _line_error(train, int(a), int(b), scale) if b else (_lag_error(train, int(a), scale) if a else 0.0)
    return table[place.reshape(left.shape), np.arange(scale.size)]


def _rounded(distance: Index) -> Index:
    coarse = np.exp(np.round(np.log(np.maximum(distance, 1)) * 20) / 20)
    return np.where(distance > 32, np.round(coarse), distance).astype(np.intp)
