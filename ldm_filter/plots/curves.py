"""From results and data in any container to what can be drawn: times, means, standard deviations, gaps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

__all__ = ["Curve", "beside", "check_single", "choose", "continuation", "gap_steps", "reconstruction"]

MOST_CHANNELS = 6


class Curve(NamedTuple):
    """Values of named channels over time; ``mean`` and ``std`` ``(time, channel)``, ``std`` 0 for data."""

    time: NDArray
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    channels: list[Any]


def check_single(result: Any) -> None:
    if not isinstance(result, xr.Dataset):
        raise TypeError(f"result is a {type(result).__name__}, expected the Dataset of one series; of a list take one, result[0]")
    if "series" in result.dims:
        raise ValueError(f"result holds {result.sizes['series']} series, expected one; take result.isel(series=0)")


def reconstruction(result: xr.Dataset) -> Curve:
    check_single(result)
    for name in ("reconstruction_mean", "reconstruction_std"):
        if name not in result:
            raise ValueError(f"result has no {name}; give the whole Dataset of model.filter(data) or model.smooth(data)")
    mean, std = result["reconstruction_mean"], result["reconstruction_std"]
    if mean.ndim != 2:
        raise ValueError(f"reconstruction_mean has dims {mean.dims}, expected (time, channel); draw frames with plot_video")
    time, names = mean.dims
    channels = mean[names].values.tolist() if names in mean.coords else list(range(mean.sizes[names]))
    steps = mean[time].values if time in mean.coords else np.arange(mean.sizes[time])
    return Curve(steps, mean.values.astype(float), std.values.astype(float), channels)


def choose(channels: Iterable[Any] | None, known: list[Any]) -> list[Any]:
    if channels is None:
        return known[:MOST_CHANNELS]
    chosen = [channels] if isinstance(channels, str) else list(channels)
    unknown = [channel for channel in chosen if channel not in known]
    if unknown or not chosen:
        raise ValueError(f"channels is {chosen}, expected names out of {known}")
    return chosen


def beside(name: str, values: Any, estimate: Curve, time: NDArray) -> Curve:
    """Data or truth beside the estimate: by column name from a DataFrame, else by position."""
    if isinstance(values, pd.DataFrame):
        missing = [channel for channel in estimate.channels if channel not in values.columns]
        if missing:
            raise ValueError(f"{name} has no columns {missing}, expected those of the result, {estimate.channels}")
        values = values[estimate.channels]
    array = np.asarray(values)
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name} must hold numbers (time, channel), got {type(values).__name__} of dtype {array.dtype}")
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] != len(estimate.channels) or not len(estimate.time) <= len(array) <= len(time):
        expected = f"({len(estimate.time)}{f' to {len(time)}' if len(time) > len(estimate.time) else ''}, {len(estimate.channels)})"
        raise ValueError(f"{name} has shape {array.shape}, expected {expected}, (time, channel) as the result; cut it to that")
    return Curve(time[: len(array)], array.astype(float), np.zeros(array.shape), estimate.channels)


def continuation(forecast: Any, estimate: Curve) -> Curve:
    if isinstance(forecast, pd.DataFrame):
        try:
            mean, std = (forecast.xs(name, axis=1, level=1)[estimate.channels].to_numpy(float) for name in ("mean", "std"))
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                "forecast has no columns (channel, mean) and (channel, std); give the DataFrame of model.forecast(data, horizon)"
            ) from error
        index = forecast.index
        stamps = index.tz_convert("UTC").tz_localize(None) if isinstance(index, pd.DatetimeIndex) and index.tz is not None else index
        return Curve(stamps.to_numpy(), mean, std, estimate.channels)
    check_single(forecast)
    if "forecast_mean" not in forecast or "forecast_std" not in forecast:
        raise ValueError("forecast has no forecast_mean and forecast_std; give the Dataset of model.forecast(data, horizon)")
    mean, std = forecast["forecast_mean"], forecast["forecast_std"]
    return Curve(mean[mean.dims[0]].values, mean.values.astype(float), std.values.astype(float), estimate.channels)


def gap_steps(gaps: Any, result: xr.Dataset, chosen: list[Any], estimate: Curve) -> NDArray[np.bool_]:
    if gaps is None:
        if "observed" not in result:
            return np.zeros(len(estimate.time), dtype=bool)
        columns = [estimate.channels.index(channel) for channel in chosen]
        return np.logical_not(result["observed"].values[:, columns]).any(axis=-1)
    mask = np.asarray(gaps)
    if mask.dtype != np.bool_ or mask.shape != estimate.time.shape:
        raise ValueError(f"gaps has dtype {mask.dtype} and shape {mask.shape}, expected bool {estimate.time.shape}, True where shaded")
    return mask
