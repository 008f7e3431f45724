"""Time indexes: checked once at the boundary, measured in seconds, continued into the future.

A time axis is a `pandas.Index`: a DatetimeIndex, a TimedeltaIndex, or numbers (a RangeIndex counts steps). Gaps are
irregular sampling, not an error. Differences are always taken by division with ``np.timedelta64(1, "s")``, because the
integers behind a stamp are nanoseconds or microseconds depending on the version of pandas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ldm_filter.types import Labels

__all__ = [
    "check_times",
    "future_times",
    "grid_step",
    "intervals",
    "is_calendar",
    "is_whole",
    "median_step",
    "naive_utc",
    "seconds",
    "time_kind",
    "time_zone",
]

_CLOCK = {"hours", "minutes", "seconds", "milliseconds", "microseconds"}
_DAY = pd.Timedelta(days=1)
_MOST_PARTS = 6  # a typical gap may be as many sampling intervals
_WHOLE = 0.1  # of an interval, by which a stamp may lie off its grid


def seconds(times: Any) -> np.ndarray:
    """Time since the first stamp: seconds for dates and durations, the index's own unit for numbers.

    Args:
        times: an index of T stamps.

    Returns:
        ``(T,)`` float64, starting at 0.

    >>> seconds(pd.date_range("2024-03-31 01:00", periods=3, freq="90min", tz="Europe/Berlin")).tolist()
    [0.0, 5400.0, 10800.0]
    """
    index: Any = pd.Index(times)
    if len(index) == 0:
        return np.zeros(0)
    elapsed = index - index[0]
    return np.asarray(elapsed if time_kind(index) == "numbers" else elapsed / np.timedelta64(1, "s"), dtype=np.float64)


def median_step(times: Any) -> float | None:
    """The median distance of neighbouring stamps, in the unit of `seconds`; None for fewer than two stamps.

    >>> median_step([0, 10, 20, 50])
    10.0
    """
    elapsed = seconds(times)
    return float(np.median(np.diff(elapsed))) if len(elapsed) > 1 else None


def is_whole(ratio: np.ndarray) -> bool:
    """Whether gaps in sampling intervals are whole numbers of them, each within a tenth."""
    return bool((np.abs(ratio - np.maximum(np.round(ratio), 1.0)) <= _WHOLE).all())


def grid_step(times: Sequence[Any]) -> float | None:
    """The sampling interval of series of stamps, in the unit of `seconds`; None where no series has two stamps.

    The median gap; or, of stamps so thinned that it is several intervals, the largest part of a typical gap (to a sixth) that all gaps are whole
    multiples of. Stamps on no such grid have their median gap.

    >>> grid_step([[0, 20, 30, 50, 70, 90]]), grid_step([[0, 1, 3, 4]]), grid_step([[0.0, 1.0, 1.7, 3.1]])
    (10.0, 1.0, 1.0)
    """
    return _grid([np.diff(seconds(index)) for index in times if len(index) > 1])


def _grid(gaps: list[np.ndarray]) -> float | None:
    if not gaps:
        return None
    middle, pooled = float(np.median([np.median(part) for part in gaps])), np.concatenate(gaps)
    if is_whole(pooled / middle):
        return middle
    typical = float(np.quantile(pooled, 0.5, method="lower"))  # a gap that there is: the median may be the mean of two
    return next((typical / parts for parts in range(1, _MOST_PARTS + 1) if is_whole(pooled * parts / typical)), middle)


def intervals(times: Sequence[pd.Index], step: float) -> np.ndarray | None:
    """Time from every stamp to the next, in the unit of `seconds`; None where all of them are one ``step``.

    An index that pandas knows as a calendar (months, business days, days of local time) has one step from row to row, however long that is.

    Args:
        times: an index per series.
        step: the sampling interval; it also stands at the first stamp and in the padding.

    Returns:
        ``(series, longest)`` float64, ``(1, longest)`` where all series share one index.

    >>> intervals([pd.Index([0.0, 1.0, 3.5])], 1.0).tolist()
    [[1.0, 1.0, 2.5]]
    """
    distinct = {id(index): index for index in times}
    rows = [next(iter(distinct.values()))] if len(distinct) == 1 else list(times)
    found = np.full((len(rows), max(len(index) for index in rows)), step)
    for row, index in zip(found, rows, strict=True):
        if not is_calendar(index):
            row[1 : len(index)] = np.diff(seconds(index))
    return None if np.allclose(found, step, rtol=1e-6, atol=0.0) else found


def is_calendar(index: pd.Index) -> bool:
    """Regular in the sense of a calendar, whose steps differ in length."""
    if not isinstance(index, pd.DatetimeIndex) or len(index) < 3:
        return False
    offset = pd.DatetimeIndex(index, freq="infer").freq if index.freq is None else index.freq
    return offset is not None and (not isinstance(offset, pd.offsets.Tick) or isinstance(offset, pd.offsets.Day))


def time_zone(times: Any) -> str | None:
    """The name of the zone of a DatetimeIndex, None where there is none."""
    zone = getattr(times, "tz", None)
    return None if zone is None else str(zone)


def time_kind(times: Any) -> str:
    """``"dates"``, ``"durations"`` or ``"numbers"``."""
    return "dates" if isinstance(times, pd.DatetimeIndex) else "durations" if isinstance(times, pd.TimedeltaIndex) else "numbers"


def naive_utc(times: Any) -> pd.Index:
    """Zoned stamps as naive UTC, which a file can hold; any other index as it is."""
    index = pd.Index(times)
    return index.tz_convert("UTC").tz_localize(None) if isinstance(index, pd.DatetimeIndex) and index.tz is not None else index


def check_times(index: pd.Index, name: str) -> pd.Index:
    """Refuse an index that is no strictly increasing time axis.

    Args:
        index: the index of one series.
        name: what to call the data in an error, such as ``"data"`` or ``"data[3]"``.

    Returns:
        The index, a DatetimeIndex also where Arrow held the stamps.

    Raises:
        TypeError: text, objects, periods, several levels.
        ValueError: missing, infinite, duplicated, unsorted or reversed stamps; the first offending one is named.
    """
    index = _supported(index, name)
    missing = np.asarray(index.isna())
    if not isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex | pd.RangeIndex):
        missing = ~np.isfinite(index.to_numpy(dtype=np.float64, na_value=np.nan))
    if missing.any():
        row = int(np.argmax(missing))
        raise ValueError(f"The time index of `{name}` has no valid stamp in row {row} ({index[row]}); drop or repair that row.")
    if not (index.is_monotonic_increasing and index.is_unique):
        raise ValueError(_order_error(index, name))
    return index


def _supported(index: pd.Index, name: str) -> pd.Index:
    if isinstance(index, pd.MultiIndex):
        raise TypeError(
            f"The index of `{name}` has {index.nlevels} levels {list(index.names)}, expected one time index; "
            f"pass a list of series: [part.droplevel(0) for _, part in {name}.groupby(level=0)]."
        )
    if isinstance(index, pd.PeriodIndex):
        raise TypeError(f"The index of `{name}` holds periods, expected points in time; use {name}.to_timestamp().")
    if isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex | pd.RangeIndex):
        return index
    if pd.api.types.is_datetime64_any_dtype(index.dtype):
        return pd.DatetimeIndex(index)
    if pd.api.types.is_numeric_dtype(index.dtype) and not (pd.api.types.is_bool_dtype(index.dtype) or np.iscomplexobj(index[:0].to_numpy())):
        return index
    first = index[0] if len(index) else None
    raise TypeError(
        f"The time index of `{name}` has dtype {index.dtype} (first entry {first!r}), expected dates, durations or numbers; "
        f"convert it, e.g. {name}.index = pd.to_datetime({name}.index)."
    )


def _order_error(index: pd.Index, name: str) -> str:
    ranks = index.asi8 if isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex) else index.to_numpy()
    row = int(np.argmax(ranks[1:] <= ranks[:-1])) + 1
    if ranks[row] == ranks[row - 1]:
        hint = (
            " (local clocks repeat an hour when summer time ends: tz_localize first)"
            if isinstance(index, pd.DatetimeIndex) and index.tz is None
            else ""
        )
        mend = f"keep one row per stamp, e.g. {name}.groupby(level=0).mean()"
        return f"The time index of `{name}` repeats the stamp {index[row]} in row {row}; {mend}{hint}."
    return (
        f"The time index of `{name}` is not sorted: row {row} ({index[row]}) comes before row {row - 1} ({index[row - 1]}) in time; "
        f"sort it with {name}.sort_index() (xarray: .sortby)."
    )


def future_times(labels: Labels, horizon: int) -> tuple[pd.Index, ...]:
    """The stamps of the next ``horizon`` steps of every series.

    A regular calendar is continued as such (months, business days, days of local time across a change of summer time);
    everything else goes on with the series' own sampling interval (see `grid_step`), counted in absolute time.

    Args:
        labels: the labels of the data that the forecast starts from.
        horizon: number of steps, at least 1.

    Returns:
        One index of ``horizon`` stamps per series, of the kind, zone and name of the series' own index.

    Raises:
        ValueError: ``horizon`` below 1, or a series of one stamp whose step nobody knows.
    """
    if horizon < 1:
        raise ValueError(f"`horizon` is {horizon}, expected at least 1 step.")
    # Series of one array share one index object: continue it once.
    known: dict[int, pd.Index] = {}
    for times in labels.times:
        if id(times) not in known:
            known[id(times)] = _continue(pd.Index(times), horizon, labels.attrs.get("step"))
    return tuple(known[id(times)] for times in labels.times)


def _continue(index: pd.Index, horizon: int, step: float | None) -> pd.Index:
    if isinstance(index, pd.RangeIndex):
        last, stride = int(index[-1]), index.step
        return pd.RangeIndex(last + stride, last + stride * (horizon + 1), stride, name=index.name)
    if len(index) < 2 and step is None and getattr(index, "freq", None) is None:
        raise ValueError(f"The step of a time index with one stamp ({index[-1]}) is unknown; pass at least two rows.")
    if isinstance(index, pd.DatetimeIndex):
        return _continue_dates(index, horizon, step)
    counts = np.arange(1, horizon + 1)
    if isinstance(index, pd.TimedeltaIndex):
        stride = _native_step(index, step)
        return (index[-1] + pd.to_timedelta(counts * stride, unit=index.unit)).as_unit(index.unit).rename(index.name)
    own_step = grid_step([index])
    gap = own_step if own_step is not None else step
    assert gap is not None  # refused above
    whole = pd.api.types.is_integer_dtype(index.dtype) and gap.is_integer()
    return pd.Index(index[-1] + counts * (int(gap) if whole else gap), name=index.name)


def _native_step(index: pd.DatetimeIndex | pd.TimedeltaIndex, step: float | None) -> int:
    """The sampling interval in the index's own resolution."""
    own = _grid([np.diff(index.asi8).astype(np.float64)]) if len(index) > 1 else None
    if own is not None:
        return max(1, round(own))
    assert step is not None
    return max(1, round(step / (pd.Timedelta(1, unit=index.unit) / np.timedelta64(1, "s"))))


def _continue_dates(index: pd.DatetimeIndex, horizon: int, step: float | None) -> pd.DatetimeIndex:
    offset = _calendar(index, step)
    if isinstance(offset, pd.offsets.Tick) and not isinstance(offset, pd.offsets.Day):  # hours and shorter: absolute time
        return pd.date_range(index[-1], periods=horizon + 1, freq=offset, name=index.name)[1:].as_unit(index.unit)
    wall = index[-1:].tz_localize(None)
    future = pd.date_range(wall[0], periods=horizon + 1, freq=offset)[1:].as_unit(index.unit)
    if index.tz is not None:
        future = future.tz_localize(index.tz, nonexistent="shift_forward", ambiguous=np.ones(horizon, dtype=bool))
    try:
        return pd.DatetimeIndex(future, freq=offset, name=index.name)
    except ValueError:  # a stamp in the hour that does not exist was moved: no longer regular
        return pd.DatetimeIndex(future, name=index.name)


def _calendar(index: pd.DatetimeIndex, step: float | None) -> Any:
    """The rule by which the index goes on, as a pandas offset."""
    offset: Any = index.freq
    if type(offset) is pd.DateOffset and set(offset.kwds) <= _CLOCK:  # DateOffset(hours=1) is absolute time, as pandas adds it
        return pd.tseries.frequencies.to_offset(pd.Timedelta(**offset.kwds) * offset.n)
    if offset is not None:
        return offset
    inferred = pd.DatetimeIndex(index, freq="infer").freq if len(index) > 2 else None
    if inferred is not None:
        return inferred
    # A log of about one row a day stays on the local clock, so that a change of summer time moves no row.
    wall_gap = pd.Timedelta(_native_step(index.tz_localize(None), step), unit=index.unit)
    if wall_gap % _DAY == pd.Timedelta(0):
        return pd.offsets.Day(wall_gap // _DAY)
    return pd.tseries.frequencies.to_offset(pd.Timedelta(_native_step(index, step), unit=index.unit))
