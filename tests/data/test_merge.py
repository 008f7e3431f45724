"""Several sensors on one clock: every stamp kept, nothing invented, and what cannot be merged named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ldm_filter.data import merge


def sensor(name: str, times: pd.Index, first: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame({name: first + np.arange(len(times), dtype=float)}, index=times)


def test_every_row_of_every_sensor_is_there_and_the_rest_is_nan() -> None:
    fast = sensor("ax", pd.date_range("2024-05-01", periods=50, freq="20ms"))
    slow = sensor("gps", pd.date_range("2024-05-01 00:00:00.013", periods=7, freq="137ms"), 100.0)
    both = merge({"imu": fast, "gps": slow})
    assert both.index.is_monotonic_increasing
    assert both.index.is_unique
    for frame in (fast, slow):
        pd.testing.assert_frame_equal(both.loc[frame.index, frame.columns], frame, check_freq=False)
    assert int(both.notna().to_numpy().sum()) == 57
    assert both.equals(merge([fast, slow]))


def test_equal_names_are_told_apart_by_the_keys_of_a_dict() -> None:
    one, two = sensor("x", pd.Index([0.0, 1.0])), sensor("x", pd.Index([1.0, 2.0]))
    assert list(merge({"a": one, "b": two}).columns) == ["a/x", "b/x"]
    assert list(one.columns) == ["x"]
    with pytest.raises(ValueError, match=r"same name \['x'\]"):
        merge([one, two])
    assert list(merge({"a": one["x"].rename(None), "b": two}).columns) == ["a", "x"]


def test_zones_meet_in_utc() -> None:
    there = sensor("x", pd.date_range("2024-10-27 00:00", periods=30, freq="h", tz="Europe/Berlin"))
    here = sensor("y", pd.date_range("2024-10-26 22:30", periods=4, freq="h", tz="UTC"))
    both = merge([there, here])
    assert str(both.index.tz) == "UTC"
    assert len(both) == 34
    with pytest.raises(ValueError, match="time zone and the other has none"):
        merge([there, sensor("y", pd.date_range("2024-01-01", periods=2))])


def test_what_cannot_be_merged_is_named() -> None:
    good = sensor("x", pd.Index([0.0, 1.0]))
    with pytest.raises(ValueError, match="`gps` repeats the stamp"):
        merge({"imu": good, "gps": sensor("y", pd.Index([0.5, 0.5]))})
    with pytest.raises(ValueError, match="`gps` is not sorted"):
        merge({"imu": good, "gps": sensor("y", pd.Index([1.5, 0.5]))})
    with pytest.raises(ValueError, match="indexed by dates, imu by numbers"):
        merge({"imu": good, "gps": sensor("y", pd.date_range("2024-01-01", periods=2))})
    with pytest.raises(TypeError, match="imu is a ndarray"):
        merge({"imu": np.zeros(3)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="empty"):
        merge([])
