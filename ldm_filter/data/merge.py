"""Several sensors, each with a clock of its own, on one time axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce

import pandas as pd

from ldm_filter.data.containers import channel_name
from ldm_filter.data.times import check_times, time_kind, time_zone

__all__ = ["merge"]


def merge(sensors: Mapping[str, pd.DataFrame | pd.Series] | Sequence[pd.DataFrame | pd.Series]) -> pd.DataFrame:
    """One frame with the union of all stamps: a sensor that has no row at a stamp is NaN there, which means missing.

    Nothing is resampled or interpolated; irregular steps are what ``dynamics="continuous"`` is for.

    Args:
        sensors: a frame or series per sensor, indexed by time; with a dict, channels whose names occur twice become ``sensor/channel``.

    Returns:
        A DataFrame, its index sorted. Stamps of different zones become UTC; resolutions the finest.

    Raises:
        ValueError: no sensors, times that repeat or run backwards (the sensor is named), dates beside numbers or zoned beside naive
            stamps, or the same channel twice in a list.
        TypeError: something that is no frame or series.

    >>> fast = pd.DataFrame({"ax": [1.0, 2.0, 3.0]}, index=[0.0, 0.1, 0.2])
    >>> slow = pd.DataFrame({"gps": [5.0]}, index=[0.15])
    >>> merge({"imu": fast, "gps": slow})["gps"].tolist()
    [nan, nan, 5.0, nan]
    """
    named = dict(sensors) if isinstance(sensors, Mapping) else {f"sensors[{i}]": sensor for i, sensor in enumerate(sensors)}
    if not named:
        raise ValueError("`sensors` is empty, expected at least one DataFrame")
    frames = {str(key): _frame(sensor, str(key)) for key, sensor in named.items()}
    indexes = {key: check_times(frame.index, key) for key, frame in frames.items()}
    _check_alike(indexes)
    zones = {time_zone(index) for index in indexes.values()}
    for key, index in indexes.items():
        frames[key].index = index.tz_convert("UTC") if isinstance(index, pd.DatetimeIndex) and len(zones) > 1 else index
    counts = Counter(channel_name(column) for frame in frames.values() for column in frame.columns)
    twice = [name for name, count in counts.items() if count > 1]
    if twice and not isinstance(sensors, Mapping):
        raise ValueError(f"`sensors` has channels of the same name {twice}; rename them, or pass a dict, whose keys tell them apart")
    for key, frame in frames.items():
        frame.columns = pd.Index([f"{key}/{column}" if channel_name(column) in twice else column for column in frame.columns])
    union = reduce(lambda one, other: one.union(other), (frame.index for frame in frames.values()))
    return pd.concat([frame.reindex(union) for frame in frames.values()], axis=1)


def _frame(sensor: pd.DataFrame | pd.Series, key: str) -> pd.DataFrame:
    if isinstance(sensor, pd.Series):
        return sensor.to_frame(key if sensor.name is None else sensor.name)
    if isinstance(sensor, pd.DataFrame):
        return sensor.copy()
    raise TypeError(f"{key} is a {type(sensor).__name__}, expected a DataFrame or Series indexed by time")


def _check_alike(indexes: Mapping[str, pd.Index]) -> None:
    first = next(iter(indexes))
    for key, index in indexes.items():
        if time_kind(index) != time_kind(indexes[first]):
            raise ValueError(f"{key} is indexed by {time_kind(index)}, {first} by {time_kind(indexes[first])}; give all sensors one kind of time")
        if (time_zone(index) is None) != (time_zone(indexes[first]) is None):
            raise ValueError(f"one of {first} and {key} has a time zone and the other has none; localise it with tz_localize")
