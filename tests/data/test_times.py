"""Time axes: order, resolution, zones, and what comes after the last stamp."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ldm_filter.data import future_times, median_step, parse, seconds
from ldm_filter.data.times import check_times, grid_step, naive_utc, time_zone
from ldm_filter.types import Labels


def labelled(index: pd.Index) -> Labels:
    return parse(pd.DataFrame({"a": np.arange(len(index), dtype=float)}, index=index))[1]


def ahead(index: pd.Index, horizon: int) -> pd.Index:
    return future_times(labelled(index), horizon)[0]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_seconds_in_every_resolution(unit):
    index = pd.DatetimeIndex(["2024-01-01 00:00:00", "2024-01-01 00:00:02", "2024-01-01 01:00:00"]).as_unit(unit)
    assert seconds(index).tolist() == [0.0, 2.0, 3600.0]
    assert seconds(index.to_numpy()).tolist() == [0.0, 2.0, 3600.0]


def test_seconds_below_a_microsecond_and_across_summer_time():
    index = pd.to_datetime([0, 1500], unit="ns")
    np.testing.assert_allclose(seconds(index), [0.0, 1.5e-6], rtol=1e-12)
    berlin = pd.date_range("2024-03-31 01:00", periods=3, freq="h", tz="Europe/Berlin")
    assert seconds(berlin).tolist() == [0.0, 3600.0, 7200.0]
    assert seconds(pd.date_range("2024-03-30", periods=3, freq="D", tz="Europe/Berlin")).tolist() == [0.0, 86400.0, 86400.0 + 82800.0]


def test_seconds_of_numbers_and_durations():
    assert seconds([3, 5, 9]).tolist() == [0.0, 2.0, 6.0]
    assert seconds(pd.to_timedelta([1, 4], unit="min")).tolist() == [0.0, 180.0]
    assert seconds(pd.RangeIndex(0)).shape == (0,)
    assert seconds(np.array([2**60, 2**60 + 1])).tolist() == [0.0, 1.0]


def test_median_step():
    assert median_step(pd.DatetimeIndex(["2024-01-01", "2024-01-02", "2024-01-03", "2024-02-01"])) == 86400.0
    assert median_step([5]) is None


def test_the_grid_behind_thinned_stamps():
    random, grid = np.random.default_rng(0), pd.date_range("2024", periods=400, freq="10min", tz="Europe/Berlin")
    for share in (0.25, 0.4, 0.5, 0.7, 1.0):
        kept = grid[np.sort(random.permutation(400)[: int(400 * share)])]
        assert grid_step([kept]) == pytest.approx(600.0)
        assert grid_step([kept[:30], kept[50:]]) == pytest.approx(600.0)
    shaken = np.cumsum(random.integers(1, 4, size=200) + random.uniform(-0.02, 0.02, size=200))
    assert grid_step([shaken]) == pytest.approx(1.0, abs=0.02)
    free = np.cumsum(random.uniform(0.5, 3.0, size=200))
    assert grid_step([free]) == median_step(free)
    assert grid_step([pd.date_range("2024", periods=24, freq="MS")]) == median_step(pd.date_range("2024", periods=24, freq="MS"))
    assert grid_step([[7.0], []]) is None


def test_naive_utc_keeps_the_instants():
    berlin = pd.date_range("2024-10-27 01:00", periods=4, freq="h", tz="Europe/Berlin")
    assert naive_utc(berlin)[0] == pd.Timestamp("2024-10-26 23:00")
    assert seconds(naive_utc(berlin)).tolist() == seconds(berlin).tolist()
    assert time_zone(berlin) == "Europe/Berlin"
    assert time_zone(naive_utc(berlin)) is None
    assert naive_utc(pd.RangeIndex(3)).equals(pd.RangeIndex(3))


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("index", "kind", "message"),
    [
        (pd.DatetimeIndex(["2024-01-01", "2024-01-02", "2024-01-02"]), ValueError, "repeats the stamp 2024-01-02 00:00:00 in row 2"),
        (pd.DatetimeIndex(["2024-01-01", "2024-01-03", "2024-01-02"]), ValueError, "not sorted: row 2 .2024-01-02"),
        (pd.RangeIndex(3, 0, -1), ValueError, "not sorted: row 1"),
        (pd.Index([0, 1, 1]), ValueError, "repeats the stamp 1 in row 2"),
        (pd.Index([2, 0, 1], dtype="uint8"), ValueError, "not sorted: row 1"),
        (pd.Index([0.0, np.nan, 1.0]), ValueError, "no valid stamp in row 1"),
        (pd.Index([0.0, 1.0, np.inf]), ValueError, "no valid stamp in row 2"),
        (pd.DatetimeIndex(["2024-01-01", None, "2024-01-02"]), ValueError, r"no valid stamp in row 1 \(NaT\)"),
        (pd.Index(["2024-01-01", "2024-01-02", "2024-01-03"]), TypeError, "pd.to_datetime"),
        (pd.Index([True, False, True]), TypeError, "dtype bool"),
        (pd.period_range("2024-01", periods=3, freq="M"), TypeError, "to_timestamp"),
        (pd.MultiIndex.from_product([["a"], [0, 1, 2]]), TypeError, "2 levels"),
    ],
)
def test_bad_time_index(index, kind, message):
    with pytest.raises(kind, match=message):
        parse(pd.DataFrame({"a": [1.0, 2.0, 3.0]}, index=index))
    with pytest.raises(kind, match=r"`data\[1\]`"):
        parse([pd.DataFrame({"a": [1.0]}), pd.DataFrame({"a": [1.0, 2.0, 3.0]}, index=index)])


def test_repeated_hour_of_a_local_clock_is_explained():
    local = pd.date_range("2024-10-27 01:00", periods=4, freq="h", tz="Europe/Berlin").tz_localize(None)
    with pytest.raises(ValueError, match="summer time ends"):
        check_times(local, "data")


def test_gaps_are_no_error():
    index = pd.DatetimeIndex(["2024-01-01", "2024-01-02", "2025-01-01"])
    assert check_times(index, "data") is index


def test_arrow_stamps_become_a_datetime_index():
    index = pd.Index(pd.date_range("2024", periods=3).astype("timestamp[us][pyarrow]"))
    assert isinstance(check_times(index, "data"), pd.DatetimeIndex)


# --------------------------------------------------------------------------------------------------------------- future

CALENDARS = ["15min", "h", "D", "2D", "B", "W-WED", "MS", "ME", "QS", "YE", "1500ms"]


@pytest.mark.parametrize("zone", [None, "Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize("freq", CALENDARS)
@pytest.mark.parametrize("known", [True, False])
def test_regular_calendars_go_on(freq, zone, known):
    # The ranges start before a change of summer time and end after it.
    whole = pd.date_range("2024-03-08", periods=120, freq=freq, tz=zone, name="when")
    past = whole[:60] if known else pd.DatetimeIndex(list(whole[:60]), name="when")
    pd.testing.assert_index_equal(ahead(past, 60), whole[60:], check_freq=True)


@pytest.mark.parametrize("change", ["2024-03-30 12:00", "2024-10-26 12:00"])
def test_days_stay_on_the_local_clock_and_hours_do_not(change):
    days = pd.date_range(pd.Timestamp(change, tz="Europe/Berlin") - pd.Timedelta(days=3), periods=4, freq="D")
    assert set(ahead(days, 3).hour) == {12}
    hours = pd.date_range(end=pd.Timestamp(change, tz="Europe/Berlin"), periods=5, freq="h")
    assert np.diff(seconds(ahead(hours, 24))).tolist() == [3600.0] * 23


def test_offsets_of_hours_are_absolute_time():
    for change in ("2024-03-30 22:00", "2024-10-26 22:00"):
        start = pd.date_range(change, periods=2, freq=pd.DateOffset(hours=1), tz="Europe/Berlin")
        hourly = pd.date_range(change, periods=12, freq="h", tz="Europe/Berlin")
        assert ahead(start, 10).tolist() == hourly[2:].tolist()
    half_months = pd.date_range("2024-01-15", periods=6, freq=pd.DateOffset(months=1), tz="Europe/Berlin")
    assert ahead(half_months[:3], 3).tolist() == half_months[3:].tolist()


def test_a_daily_log_with_a_gap_stays_on_the_local_clock():
    days = pd.date_range("2024-03-20 02:30", periods=10, freq="D", tz="Europe/Berlin")[[0, 1, 2, 4, 6, 7, 8, 9]]
    future = ahead(days, 4)
    # 02:30 does not exist on 31 March: that stamp moves to the next one that does.
    assert [stamp.strftime("%d %H:%M") for stamp in future] == ["30 02:30", "31 03:00", "01 02:30", "02 02:30"]


def test_irregular_stamps_go_on_with_the_median_step():
    index = pd.DatetimeIndex(["2024-01-01 00:00:00", "2024-01-01 00:00:10", "2024-01-01 00:00:20", "2024-01-01 00:01:00"])
    assert ahead(index, 2).tolist() == [pd.Timestamp("2024-01-01 00:01:10"), pd.Timestamp("2024-01-01 00:01:20")]
    zoned = index.tz_localize("Europe/Berlin")
    assert ahead(zoned, 2).tolist() == [stamp.tz_localize("Europe/Berlin") for stamp in ahead(index, 2)]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_resolution_is_kept(unit):
    index = pd.date_range("2024", periods=4, freq="h", tz="Europe/Berlin").as_unit(unit)
    assert ahead(index, 3).dtype == index.dtype
    assert ahead(index[[0, 1, 3]], 3).dtype == index.dtype
    assert ahead(index - index[0], 2).dtype == (index - index[0]).dtype


def test_numbers_go_on():
    assert future_times(parse(np.ones((2, 3, 1)))[1], 2)[1].equals(pd.RangeIndex(3, 5))
    assert ahead(pd.RangeIndex(0, 10, 5), 2).tolist() == [10, 15]
    assert ahead(pd.Index([1, 2, 4, 5]), 2).tolist() == [6, 7]
    assert ahead(pd.Index([1, 2, 4, 5]), 2).dtype == np.int64
    assert ahead(pd.Index([0, 1, 3]), 2).tolist() == [4, 5]
    assert ahead(pd.Index([0.0, 1.0, 2.7]), 2).tolist() == pytest.approx([4.05, 5.4])
    assert ahead(pd.Index([0.0, 0.5, 1.0], name="t"), 2).tolist() == [1.5, 2.0]
    assert ahead(pd.to_timedelta([0, 2, 4], unit="s"), 1).tolist() == [pd.Timedelta(seconds=6)]


def test_a_single_stamp_needs_the_step_of_the_fit():
    day = pd.DataFrame({"a": [1.0]}, index=pd.DatetimeIndex(["2024-03-30"], tz="Europe/Berlin"))
    with pytest.raises(ValueError, match="one stamp"):
        future_times(parse(day)[1], 1)
    fitted = labelled(pd.date_range("2024-01-01", periods=4, freq="D", tz="Europe/Berlin"))
    future = future_times(parse(day, expected=fitted)[1], 2)[0]
    assert future.tolist() == [pd.Timestamp("2024-03-31", tz="Europe/Berlin"), pd.Timestamp("2024-04-01", tz="Europe/Berlin")]
    number = parse(pd.Series([1.0], index=pd.Index([7])), expected=labelled(pd.Index([0, 2, 4])))[1]
    assert future_times(number, 2)[0].tolist() == [9, 11]
    with pytest.raises(ValueError, match="`horizon` is 0"):
        future_times(fitted, 0)
