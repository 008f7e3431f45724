"""From tensors back to labelled containers: what went in decides what comes out.

Filter results are always an `xarray.Dataset` (a list of them for a list of series). Estimates in the units of the data,
forecasts and reconstructions, are a DataFrame where a DataFrame or Series came in, else a Dataset.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from ldm_filter.data.containers import channel_name
from ldm_filter.data.times import naive_utc, time_zone
from ldm_filter.types import Labels, Sequences

__all__ = ["Fields", "check_levels", "column_labels", "estimate_output", "file_attrs", "normal_width", "to_dataset", "to_datasets", "to_numpy"]

Fields = Mapping[str, tuple[tuple[str, ...], Tensor]]


def to_dataset(
    fields: Fields, sequences: Sequences, labels: Labels, attrs: Mapping[str, Any] | None = None, coords: Mapping[str, Any] | None = None
) -> xr.Dataset | list[xr.Dataset]:
    """Filter results with the labels of the data they came from.

    A variable ``observed`` is added from the mask: per channel for vectors, per step for frames. Time is naive UTC for zoned
    stamps, with the zone's name in the attribute ``time_zone``, so that ``to_netcdf`` accepts the result.

    Args:
        fields: name -> (dims, tensor). Dims are written in full, ``("series", "time", "state")``; a ``series`` or ``time``
            dimension of size 1 is shared and expanded as a read-only view. Padding is cut off.
        sequences: what was filtered.
        labels: its labels.
        attrs: attributes of the result; anything but text and numbers is stored as a JSON string.
        coords: coordinates of further dimensions, ``{"state": [...]}``.

    Returns:
        A Dataset, without a ``series`` dim for a single series; a list of Datasets for a list of series.

    Raises:
        ValueError: a tensor whose shape does not fit its dims.
    """
    mask = sequences.observed if labels.channels else sequences.observed.flatten(2).any(-1)
    dims = ("series", "time", *(labels.event_dims if labels.channels else ()))
    return _datasets({**fields, "observed": (dims, mask)}, labels, labels.times, attrs or {}, coords or {})


def to_datasets(fields: Fields, labels: Labels, times: tuple[pd.Index, ...], coords: Mapping[str, Any]) -> xr.Dataset | list[xr.Dataset]:
    """As :func:`to_dataset`, at other times than the data's."""
    return _datasets(fields, labels, times, {}, coords)


def estimate_output(
    mean: Tensor, std: Tensor, levels: Iterable[float], labels: Labels, *, times: tuple[pd.Index, ...] | None = None, name: str = "reconstruction"
) -> Any:
    """Gaussian estimates of the data itself, in the container that the data came in.

    Args:
        mean: ``(series, time, *event)`` in the units of the data.
        std: standard deviation, of the same shape.
        levels: central intervals mean +- z(level) std, each level in (0, 1).
        labels: labels of the data.
        times: one index per series; the data's own by default.
        name: prefix of the variables of a Dataset.

    Returns:
        For a DataFrame or Series: a DataFrame with its index and zone and columns (channel, mean | std | lo-80 | hi-80 | ...).
        Else a Dataset with ``<name>_mean``, ``_std`` and, where levels are given, ``_lo`` and ``_hi`` along a dim ``level``.
        A list of these for a list of series.

    Raises:
        ValueError: a level outside (0, 1) or given twice; shapes that do not fit the labels.
    """
    levels = check_levels(levels)
    times = labels.times if times is None else times
    if mean.shape != std.shape or mean.shape[0] != len(times) or mean.shape[2:] != tuple(labels.attrs["event_shape"]):
        expected = (len(times), "time", *labels.attrs["event_shape"])
        raise ValueError(f"`mean` has shape {tuple(mean.shape)} and `std` {tuple(std.shape)}, expected both {expected} as the labels say.")
    if labels.kind == "frame":
        frames = [_table(to_numpy(mean)[i, : len(index)], to_numpy(std)[i, : len(index)], levels, labels, index) for i, index in enumerate(times)]
        return frames if labels.ragged else frames[0]
    dims = ("series", "time", *labels.event_dims)
    fields = {f"{name}_mean": (dims, mean), f"{name}_std": (dims, std)}
    if levels:
        half_width = std.unsqueeze(-1) * std.new_tensor([normal_width(level) for level in levels])
        fields[f"{name}_lo"] = ((*dims, "level"), mean.unsqueeze(-1) - half_width)
        fields[f"{name}_hi"] = ((*dims, "level"), mean.unsqueeze(-1) + half_width)
    return _datasets(fields, labels, times, {}, {"level": list(levels)} if levels else {})


def file_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that every file format accepts: text and numbers as they are, None left out, anything else as JSON text.

    >>> file_attrs({"units": "K", "config": {"state_dim": 4}, "none": None, "flag": True})
    {'units': 'K', 'config': '{"state_dim": 4}', 'flag': 1}
    """
    clean: dict[str, Any] = {}
    for key, value in attrs.items():
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, bool):
            value = int(value)
        if value is not None:
            clean[str(key)] = value if isinstance(value, str | int | float) else json.dumps(value, default=str)
    return clean


# -------------------------------------------------------------------------------------------------------------- datasets


def _datasets(
    fields: Fields, labels: Labels, times: Sequence[pd.Index], attrs: Mapping[str, Any], coords: Mapping[str, Any]
) -> xr.Dataset | list[xr.Dataset]:
    sizes = {"series": len(times), "time": max(len(index) for index in times)}
    arrays = {name: (dims, _expanded(name, dims, tensor, sizes)) for name, (dims, tensor) in fields.items()}
    coords = {**_event_coords(labels), **coords}
    if labels.ragged:
        return [_one_dataset(arrays, labels, index, attrs, coords, i) for i, index in enumerate(times)]
    return _one_dataset(arrays, labels, times[0], attrs, coords, None if labels.series is not None else 0)


def _one_dataset(
    arrays: Mapping[str, tuple[tuple[str, ...], np.ndarray]],
    labels: Labels,
    index: pd.Index,
    attrs: Mapping[str, Any],
    coords: Mapping[str, Any],
    series: int | None,
) -> xr.Dataset:
    """The Dataset of all series (``series`` None) or of the one with that number."""
    variables = {}
    for name, (dims, array) in arrays.items():
        if series is not None and "series" in dims:
            array = array[(slice(None),) * dims.index("series") + (series,)]
            dims = tuple(dim for dim in dims if dim != "series")
        if "time" in dims:
            array = array[(slice(None),) * dims.index("time") + (slice(len(index)),)]
        variables[name] = (tuple(labels.time_name if dim == "time" else dim for dim in dims), array)
    used = {dim for dims, _ in variables.values() for dim in dims}
    own: dict[str, Any] = {labels.time_name: naive_utc(index).rename(labels.time_name)}
    if series is None:
        own["series"] = list(labels.series or ())
    kept = {dim: (dim, values) for dim, values in {**own, **coords}.items() if dim in used}
    zone = {} if time_zone(index) is None else {"time_zone": time_zone(index)}
    return xr.Dataset(variables, coords=kept, attrs=file_attrs({**labels.attrs.get("user", {}), **zone, **attrs}))


def _event_coords(labels: Labels) -> dict[str, Any]:
    if labels.channels:
        return {labels.event_dims[0]: column_labels(labels)}
    return dict(labels.attrs.get("coords", {}))


def column_labels(labels: Labels) -> list[Any]:
    """The channels as the user labelled them; tuples by their joined name."""
    return [channel_name(column) if isinstance(column, tuple) else column for column in labels.attrs["columns"]]


def _expanded(name: str, dims: tuple[str, ...], tensor: Tensor, sizes: Mapping[str, int]) -> np.ndarray:
    array = to_numpy(tensor)
    if array.ndim != len(dims):
        raise ValueError(f"`fields[{name!r}]` has shape {array.shape}, expected one axis for each of the dims {dims}.")
    shape = tuple(sizes[dim] if dim in sizes and size == 1 else size for dim, size in zip(dims, array.shape, strict=True))
    wrong = [dim for dim, size in zip(dims, shape, strict=True) if size != sizes.get(dim, size)]
    if wrong:
        raise ValueError(f"`fields[{name!r}]` has shape {array.shape} for dims {dims}, expected {dict(sizes)} (or 1, shared); wrong along {wrong}.")
    return np.broadcast_to(array, shape) if shape != array.shape else array


def to_numpy(tensor: Tensor) -> np.ndarray:
    """On the CPU, half precision as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()


# ---------------------------------------------------------------------------------------------------------------- frames


def _table(mean: np.ndarray, std: np.ndarray, levels: tuple[float, ...], labels: Labels, index: pd.Index) -> pd.DataFrame:
    """Columns (channel, statistic) of one series; ``mean`` and ``std`` are ``(time, channel)``."""
    columns: dict[tuple[Any, str], np.ndarray] = {}
    for i, channel in enumerate(column_labels(labels)):
        columns[channel, "mean"], columns[channel, "std"] = mean[:, i], std[:, i]
        for level in levels:
            half_width = normal_width(level) * std[:, i]
            columns[channel, f"lo-{100 * level:g}"] = mean[:, i] - half_width
            columns[channel, f"hi-{100 * level:g}"] = mean[:, i] + half_width
    names = pd.MultiIndex.from_tuples(list(columns), names=["channel", "statistic"])
    return pd.DataFrame(np.stack(list(columns.values()), axis=1), index=index, columns=names)


def normal_width(level: float) -> float:
    """z such that mean +- z std holds the share ``level`` of a Gaussian."""
    return NormalDist().inv_cdf(0.5 + level / 2)


def check_levels(levels: Iterable[float], name: str = "levels") -> tuple[float, ...]:
    """Different shares between 0 and 1."""
    if isinstance(levels, float | int | str) or not isinstance(levels, Iterable):
        raise TypeError(f"`{name}` is {levels!r}, expected several shares between 0 and 1 such as (0.8, 0.95); one alone is ({levels},)")
    found = tuple(float(level) for level in levels)
    if not all(0 < level < 1 for level in found) or len(set(found)) < len(found):
        raise ValueError(f"`{name}` is {found}, expected different shares between 0 and 1 such as (0.8, 0.95).")
    return found
