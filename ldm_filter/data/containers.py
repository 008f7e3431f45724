"""Every container that users bring, opened into plain blocks of numbers with names and times beside them.

`open_container` is the one door. What it returns is checked for kinds (dtypes, dimensions, time axis) but not yet for
values; `ldm_filter.data.labels` does that and packs the blocks into tensors.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from ldm_filter.data.clips import Clips
from ldm_filter.data.times import check_times

__all__ = ["ACCEPTED", "Opened", "channel_name", "default_names", "from_long", "given_times", "open_container"]

ACCEPTED = (
    "a NumPy array or torch tensor (time,), (time, channel), (series, time, channel), (series, time, y, x[, colour]); a pandas DataFrame or Series; "
    "an xarray DataArray or Dataset; or a list of these with one series each"
)
EVENT_DIMS = {1: ("channel",), 2: ("y", "x"), 3: ("y", "x", "colour")}
# Dimensions of the results: an event dimension of the same name would collide with them.
RESERVED = {"state", "state_aux", "latent", "latent_aux", "level"}


@dataclass
class Opened:
    """A container in pieces.

    Attributes:
        kind: as in `ldm_filter.types.Labels`.
        columns: the channels' labels as the user wrote them, () for frames.
        event_dims: names of the dimensions of one observation.
        series: labels of the series, None for a single one.
        blocks: arrays ``(series, time, *event)``: one for a rectangular container, one per item for a list.
        times: the checked time index of each block.
        time_name: name of the time dimension.
        attrs: what the container says about itself.
        coords: coordinates of the event dimensions of frames.
    """

    kind: str
    columns: tuple[Hashable, ...]
    event_dims: tuple[str, ...]
    series: tuple[Any, ...] | None
    blocks: list[np.ndarray]
    times: list[pd.Index]
    time_name: str = "time"
    attrs: dict[str, Any] = field(default_factory=dict)
    coords: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.blocks[0].shape[2:]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(channel_name(column) for column in self.columns)


def channel_name(column: Hashable) -> str:
    """A column's label as a plain string; the levels of a tuple are joined by a slash."""
    return "/".join(map(str, column)) if isinstance(column, tuple) else str(column)


def default_names(count: int) -> tuple[str, ...]:
    """The names of channels that have none: "0", "1", ..."""
    return tuple(str(i) for i in range(count))


def open_container(data: Any, name: str, rank: int | None, single: bool = False) -> Opened:
    """Open one container that is not a list.

    Args:
        data: what the user passed.
        name: how errors call it.
        rank: number of event dimensions (1 vectors, 2 frames, 3 coloured frames) where it is known from the fit; it settles what
            the axes of a bare array mean.
        single: True for the items of a list, each of which is one series.

    Raises:
        TypeError: an unsupported container, or entries that are no real numbers.
        ValueError: dimensions or time index that make no sense.
    """
    if isinstance(data, torch.Tensor):
        values = data.detach().cpu()
        values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
        return _open_array(values.numpy(), name, rank, single, "tensor")
    if isinstance(data, np.ndarray):
        return _open_array(data, name, rank, single, "array")
    if isinstance(data, pd.Series):
        return _open_frame(data.to_frame(), name)
    if isinstance(data, pd.DataFrame):
        return _open_frame(data, name)
    if isinstance(data, xr.DataArray):
        return _open_dataarray(data, name, single, "dataarray")
    if isinstance(data, xr.Dataset):
        return _open_dataset(data, name, single)
    hint = f"; several sensors become one frame by ldm_filter.data.merge({name}), several series a list by list({name}.values())"
    hint = hint if isinstance(data, dict) else ""
    hint = "; pass one clip at a time, as read_video(path) or to estimator.video.filter_video" if isinstance(data, Clips) else hint
    hint = f"; make numbers an array by np.asarray({name})" if isinstance(data, int | float) else hint
    raise TypeError(f"`{name}` is of type {type(data).__name__}, expected {ACCEPTED}{hint}.")


def from_long(data: Any, name: str) -> tuple[tuple[Any, ...] | None, Any]:
    """A long table of series, rows ``unique_id, ds`` and values: identifiers and a frame per series; anything else as it came, without identifiers.

    Raises:
        ValueError: a row without an identifier.
    """
    if not isinstance(data, pd.DataFrame) or not {"unique_id", "ds"} <= set(data.columns):
        return None, data
    if data["unique_id"].isna().any():
        raise ValueError(f"`{name}` has rows without a `unique_id`; fill or drop them")
    groups = list(data.groupby("unique_id", sort=False))
    return tuple(key for key, _ in groups), [group.drop(columns="unique_id").set_index("ds").rename_axis("time") for _, group in groups]


def given_times(times: Any, opened: Opened, name: str) -> list[pd.Index]:
    """Time stamps that come beside an array, one index per block, checked.

    Raises:
        TypeError, ValueError: the container has an index of its own; a wrong number of stamps; stamps that do not increase.
    """
    if opened.kind not in ("array", "tensor"):
        raise ValueError(f"`times` are given, but `{name}` has times of its own; leave `times` out")
    per_series = isinstance(times, list | tuple) and len(times) > 0 and np.ndim(times[0]) == 1
    rows = list(times) if per_series or np.ndim(times) == 2 else [times] * len(opened.blocks)
    if len(rows) > len(opened.blocks):  # an array of many series: a block for each
        opened.blocks = [block[None] for blocks in opened.blocks for block in blocks]
    if len(rows) != len(opened.blocks):
        raise ValueError(f"`times` holds {len(rows)} series of stamps, `{name}` {len(opened.blocks)}; give one for each, or one for all")
    found = [check_times(row if isinstance(row, pd.Index) else pd.Index(np.asarray(row)), "times") for row in rows]
    for index, block in zip(found, opened.blocks, strict=True):
        if len(index) != block.shape[1]:
            raise ValueError(f"`times` has {len(index)} stamps, `{name}` {block.shape[1]} steps; give one stamp per step")
    return found


def _is_real(dtype: Any) -> bool:
    """Real numbers and booleans, also pandas' nullable and Arrow-backed ones (none of which is complex)."""
    return dtype.kind in "biuf" if isinstance(dtype, np.dtype) else pd.api.types.is_numeric_dtype(dtype)


def _refuse_dtype(dtype: Any, what: str, where: str) -> None:
    kind = getattr(dtype, "kind", "O")
    mend = f"convert with {where}.astype(float)"
    if kind == "c":
        mend = f"pass real and imaginary part as two channels ({where}.real, {where}.imag)"
    elif kind in "mM":
        mend = "make the time stamps the index, not a channel"
    raise TypeError(f"{what} of dtype {dtype}, expected real numbers (NaN for missing); {mend}.")


def _check_unique(columns: tuple[Hashable, ...], name: str) -> None:
    names = [channel_name(column) for column in columns]
    twice = sorted({channel for channel in names if names.count(channel) > 1})
    if twice:
        raise ValueError(f"`{name}` has channels of the same name {twice}, expected unique names; rename them.")


# ---------------------------------------------------------------------------------------------------------------- arrays


def _open_array(array: np.ndarray, name: str, rank: int | None, single: bool, kind: str) -> Opened:
    if not _is_real(array.dtype):
        _refuse_dtype(array.dtype, f"`{name}` has entries", name)
    if isinstance(array, np.ma.MaskedArray):
        array = np.ma.filled(array.astype(np.float64), np.nan)
    array = np.asarray(array)
    if array.ndim == 1 and rank in (None, 1):
        array = array[:, None]
    rank = _event_rank(array, name, rank, single)
    has_series = array.ndim == rank + 2
    block = array if has_series else array[None]
    columns = tuple(range(block.shape[2])) if rank == 1 else ()
    series = tuple(range(block.shape[0])) if has_series else None
    return Opened(kind, columns, EVENT_DIMS[rank], series, [block], [pd.RangeIndex(block.shape[1])])


def _event_rank(array: np.ndarray, name: str, rank: int | None, single: bool) -> int:
    """How many of the array's trailing axes are one observation."""
    if rank is None:
        # Without a fitted model: 2-d (time, channel), 3-d (series, time, channel), 4-d (series, time, y, x), 5-d with colour.
        rank = array.ndim - 1 if single or array.ndim == 2 else array.ndim - 2
    allowed = (rank + 1,) if single else (rank + 1, rank + 2)
    if rank in EVENT_DIMS and array.ndim in allowed:
        return rank
    if rank not in EVENT_DIMS:
        raise ValueError(f"`{name}` has shape {array.shape}, expected {ACCEPTED}.")
    axes = f"(time, {', '.join(EVENT_DIMS[rank])})" + ("" if single else f" or (series, time, {', '.join(EVENT_DIMS[rank])})")
    raise ValueError(f"`{name}` has shape {array.shape}, expected axes {axes}; add or drop an axis.")


# ---------------------------------------------------------------------------------------------------------------- pandas


def _open_frame(frame: pd.DataFrame, name: str) -> Opened:
    columns = tuple(frame.columns)
    wrong = [column for column, dtype in zip(columns, frame.dtypes, strict=True) if not _is_real(dtype)]
    if wrong:
        dtype = frame.dtypes.iloc[columns.index(wrong[0])]
        _refuse_dtype(dtype, f"Column(s) {wrong} of `{name}` hold entries", f"{name}[{wrong}]")
    _check_unique(columns, name)
    times = check_times(frame.index, name)
    block = frame.to_numpy(dtype=np.float64, na_value=np.nan)[None]
    time_name = "time" if times.name is None or str(times.name) in RESERVED | {"series", "channel"} else str(times.name)
    return Opened("frame", columns, ("channel",), None, [block], [times], time_name, {str(key): value for key, value in frame.attrs.items()})


# ---------------------------------------------------------------------------------------------------------------- xarray


def _open_dataset(dataset: xr.Dataset, name: str, single: bool) -> Opened:
    """Each variable is a channel; a lone variable may also be a whole array of channels or frames."""
    if not dataset.data_vars:
        raise ValueError(f"`{name}` is empty: a Dataset without variables.")
    variables = {str(key): variable for key, variable in dataset.data_vars.items()}
    if len(variables) == 1:
        opened = _open_dataarray(next(iter(variables.values())), name, single, "dataset")
        opened.attrs = dict(dataset.attrs) | opened.attrs
        return opened
    time_name = _time_dim(dataset, name)
    for key, variable in variables.items():
        extra = set(variable.dims) - {time_name, "series"}
        if extra or time_name not in variable.dims:
            mend = f"drop it with {name}.drop_vars({key!r}), or pass one DataArray"
            if len(extra) == 1 and set(variable.dims) == extra | {time_name}:
                mend = f"if it numbers series, rename it with {name}.rename({{{extra.pop()!r}: 'series'}}); else {mend}"
            raise ValueError(
                f"Variable {key!r} of `{name}` has dims {variable.dims}, expected ({time_name!r},) or ('series', {time_name!r}) for each channel; "
                f"{mend}."
            )
        if not _is_real(variable.dtype):
            _refuse_dtype(variable.dtype, f"Variable {key!r} of `{name}` holds entries", f"{name}[{key!r}]")
    stacked = dataset.reset_coords(drop=True).to_dataarray(dim="channel")
    opened = _open_dataarray(stacked, name, single, "dataset")
    opened.attrs = dict(dataset.attrs)
    return opened


def _open_dataarray(array: xr.DataArray, name: str, single: bool, kind: str) -> Opened:
    if not _is_real(array.dtype):
        _refuse_dtype(array.dtype, f"`{name}` has entries", name)
    time_name = _time_dim(array, name)
    has_series = "series" in array.dims
    if has_series and single:
        raise ValueError(f"`{name}` has a `series` dim, expected one series per item of a list; use [{name}.isel(series=i) for i in ...].")
    event_dims = tuple(str(dim) for dim in array.dims if dim not in (time_name, "series"))
    clash = RESERVED.intersection(event_dims)
    if clash or len(event_dims) not in (0, *EVENT_DIMS):
        raise ValueError(
            f"`{name}` has dims {array.dims}, expected time, series and one to three others, not called {sorted(RESERVED)}; rename them."
        )
    block = array.transpose(*(("series",) if has_series else ()), time_name, *event_dims).to_numpy()
    block = block if has_series else block[None]
    columns: tuple[Hashable, ...] = ()
    if not event_dims:
        block, event_dims, columns = block[..., None], ("channel",), (0 if array.name is None else array.name,)
    elif len(event_dims) == 1:
        columns = tuple(_coordinate(array, event_dims[0]).tolist())
        _check_unique(columns, name)
    coords = {dim: _coordinate(array, dim) for dim in event_dims if len(event_dims) > 1 and dim in array.indexes}
    times = array.indexes[time_name] if time_name in array.indexes else pd.RangeIndex(array.sizes[time_name])
    series = tuple(_coordinate(array, "series").tolist()) if has_series else None
    return Opened(kind, columns, event_dims, series, [block], [check_times(times, name)], time_name, dict(array.attrs), coords)


def _coordinate(array: xr.DataArray, dim: str) -> np.ndarray:
    return array.indexes[dim].to_numpy() if dim in array.indexes else np.arange(array.sizes[dim])


def _time_dim(data: xr.DataArray | xr.Dataset, name: str) -> str:
    if "time" in data.dims:
        return "time"
    dated = [str(dim) for dim, index in data.indexes.items() if isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex) and dim in data.dims]
    if len(dated) == 1:
        return dated[0]
    raise ValueError(f"`{name}` has dims {tuple(data.dims)}, expected one called 'time'; use {name}.rename({{<yours>: 'time'}}).")
