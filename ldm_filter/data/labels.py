"""From the user's container to tensors and labels: the boundary where NaN becomes a mask and bad input gets its one error.

``Labels.attrs`` holds: ``event_shape`` of one observation; ``columns``, the channels as the user labelled them; ``step``, the median
time step (seconds, or the unit of a numeric index; None where nobody knows); ``coords`` of frames; ``user``, the container's own attributes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ldm_filter.data.containers import ACCEPTED, Opened, default_names, from_long, given_times, open_container
from ldm_filter.data.times import grid_step, time_kind
from ldm_filter.types import Labels, Sequences

__all__ = ["describe", "from_description", "parse"]

_FEWEST_STEPS = 32  # of float32 between the least and the greatest value of a channel


def parse(
    data: Any,
    *,
    expected: Labels | None = None,
    min_steps: int = 1,
    dtype: torch.dtype = torch.float32,
    name: str = "data",
    times: Any = None,
) -> tuple[Sequences, Labels]:
    """Tensors, mask and labels of whatever the user passed.

    A NaN is a missing entry: it becomes 0 in ``values`` and False in ``observed``. A bare array means (time,), (time, channel),
    (series, time, channel), (series, time, y, x) or (series, time, y, x, colour); where ``expected`` holds frames, also a single
    (time, y, x[, colour]). A list holds one series per item, and may be of unequal lengths.

    Args:
        data: ndarray, tensor, DataFrame, Series, DataArray, Dataset, or a list of one kind of these.
        expected: the labels seen in fit. Channels of the same names in another order are reordered; anything else that
            differs is an error. Channels without names are matched by position and take the names of the fit.
        min_steps: fewest steps that a series may have. Above 1 (in fit) every channel must also be observed somewhere.
        dtype: ``torch.float32`` or ``torch.float64``.
        name: the argument's name for errors.
        times: for arrays and tensors, which have no index: their time stamps (seconds or dates), ``(time,)`` for all series, or one per series.

    Returns:
        Sequences with ``values`` ``(B, T, *event)`` padded to the longest series, and the Labels that results carry again.

    Raises:
        TypeError: unsupported container, entries that are no real numbers, mixed kinds in a list, a text index.
        ValueError: wrong channels or event shape, empty data, too few steps, infinite values, nothing observed, in fit a channel whose
            changes the dtype does not tell apart, a time index that is not strictly increasing.

    >>> sequences, labels = parse(np.array([[1.0, np.nan], [2.0, 3.0]]))
    >>> sequences.values.tolist(), sequences.observed.tolist(), labels.channels
    ([[[1.0, 0.0], [2.0, 3.0]]], [[[True, False], [True, True]]], ('0', '1'))
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`dtype` is {dtype}, expected torch.float32 or torch.float64.")
    identifiers, data = from_long(data, name)
    ragged = isinstance(data, list | tuple)
    rank = None if expected is None else len(expected.event_dims)
    opened = _open_list(data, name, rank) if ragged else open_container(data, name, rank)
    if identifiers is not None:
        opened.kind, opened.series = "long", identifiers
    if times is not None:
        opened.times = given_times(times, opened, name)
    if expected is not None:
        opened = _match(opened, expected, name, "as fitted")
    _check_sizes(opened, name, min_steps, ragged)
    sequences = _pack(opened, dtype)
    labels = _labels(opened, expected, ragged)
    _check_finite(sequences, opened, labels, name)
    _check_observed(sequences, labels, name, min_steps)
    if min_steps > 1 and dtype == torch.float32 and labels.channels:
        _check_resolved(opened, labels, name)
    return sequences, labels


def describe(labels: Labels) -> dict[str, Any]:
    """What later data is checked against, as plain JSON: everything but the series and their times.

    >>> from_description(describe(parse(np.ones((3, 2)))[1])).channels
    ('0', '1')
    """
    return {
        "kind": labels.kind,
        "channels": list(labels.channels),
        "event_dims": list(labels.event_dims),
        "event_shape": list(labels.attrs["event_shape"]),
        "time_name": labels.time_name,
        "step": labels.attrs["step"],
        "time_kind": labels.attrs["time_kind"],
    }


def from_description(description: dict[str, Any]) -> Labels:
    """The labels that `describe` wrote, without series; for ``expected`` in `parse`."""
    attrs = {"event_shape": tuple(description["event_shape"]), "step": description["step"], "columns": tuple(description["channels"])}
    attrs["time_kind"] = description.get("time_kind", "numbers")
    channels, event_dims = tuple(description["channels"]), tuple(description["event_dims"])
    return Labels(description["kind"], channels, event_dims, None, (), description["time_name"], False, attrs)


# ----------------------------------------------------------------------------------------------------------------- lists


def _open_list(items: list[Any] | tuple[Any, ...], name: str, rank: int | None) -> Opened:
    if not items:
        raise ValueError(f"`{name}` is empty: a list without series.")
    if any(isinstance(item, list | tuple | int | float) for item in items):
        raise TypeError(f"`{name}` is a list of {type(items[0]).__name__}, expected {ACCEPTED}; make one series an array by np.asarray({name}).")
    parts = [open_container(item, f"{name}[{i}]", rank, single=True) for i, item in enumerate(items)]
    first = parts[0]
    for i, part in enumerate(parts[1:], 1):
        if part.kind != first.kind:
            raise TypeError(f"`{name}` mixes containers: {first.kind} in item 0, {part.kind} in item {i}, expected one kind; convert them alike.")
        kinds = time_kind(first.times[0]), time_kind(part.times[0])
        if kinds[0] != kinds[1]:
            raise ValueError(f"`{name}` mixes time axes: {kinds[0]} in item 0, {kinds[1]} in item {i}; give all series one kind of index.")
        parts[i] = _match(part, _labels(first, None, True), f"{name}[{i}]", f"as in {name}[0]")
    first.series = tuple(range(len(parts)))
    first.blocks = [part.blocks[0] for part in parts]
    first.times = [part.times[0] for part in parts]
    return first


# -------------------------------------------------------------------------------------------------- against other labels


def _match(opened: Opened, expected: Labels, name: str, source: str) -> Opened:
    """The same container with channels (or axes of a frame) in the expected order."""
    if len(opened.event_dims) != len(expected.event_dims):
        raise ValueError(
            f"One observation of `{name}` has dims {opened.event_dims}, expected {expected.event_dims} {source}; pass data of the same layout."
        )
    if opened.kind in ("array", "tensor"):  # bare axes take the names of the fit
        opened.event_dims = expected.event_dims
    if len(expected.event_dims) == 1:
        return _match_channels(opened, expected, name, source)
    if opened.event_dims != expected.event_dims and set(opened.event_dims) == set(expected.event_dims):
        order = [opened.event_dims.index(dim) for dim in expected.event_dims]
        opened.blocks = [block.transpose(0, 1, *(2 + axis for axis in order)) for block in opened.blocks]
        opened.event_dims = expected.event_dims
    if opened.event_shape != tuple(expected.attrs["event_shape"]):
        raise ValueError(
            f"One observation of `{name}` has shape {opened.event_shape}, expected {tuple(expected.attrs['event_shape'])} {source}; "
            f"crop or resize the frames."
        )
    return opened


def _match_channels(opened: Opened, expected: Labels, name: str, source: str) -> Opened:
    names, wanted = opened.names, expected.channels
    if names == wanted:
        return opened
    if len(set(names)) == len(names) and set(names) == set(wanted):
        order = [names.index(channel) for channel in wanted]
        opened.blocks = [block[:, :, order] for block in opened.blocks]
        opened.columns = tuple(opened.columns[i] for i in order)
        return opened
    have = f"`{name}` has {len(names)} channel(s)"
    if default_names(len(names)) == names or default_names(len(wanted)) == wanted:  # one side has no names: by position
        if len(names) != len(wanted):
            raise ValueError(f"{have}, expected {len(wanted)} {source}: {list(wanted)}; pass the same channels in the same order.")
        if default_names(len(names)) == names:
            opened.columns = tuple(expected.attrs["columns"])
        return opened
    missing, extra = [channel for channel in wanted if channel not in names], [channel for channel in names if channel not in wanted]
    mend = "add them (NaN where not measured) or rename" if missing else f"select the others with {name}[{list(wanted)}]"
    raise ValueError(f"{have} {list(names)}, expected {len(wanted)} {source}: {list(wanted)}; missing {missing}, unknown {extra}: {mend}.")


# --------------------------------------------------------------------------------------------------------------- packing


def _pack(opened: Opened, dtype: torch.dtype) -> Sequences:
    """Blocks into one padded batch; NaN stays for the moment only in `observed`."""
    sizes = [block.shape[:2] for block in opened.blocks]
    shape = (sum(series for series, _ in sizes), max(steps for _, steps in sizes), *opened.event_shape)
    values = np.zeros(shape, dtype=np.float64 if dtype == torch.float64 else np.float32)
    observed = np.zeros(shape, dtype=bool)
    lengths = np.repeat([steps for _, steps in sizes], [series for series, _ in sizes])
    start = 0
    for block, (series, steps) in zip(opened.blocks, sizes, strict=True):
        rows = slice(start, start + series)
        with np.errstate(over="ignore"):  # too large for float32: becomes infinite and is refused below
            values[rows, :steps] = block
        np.isnan(values[rows, :steps], out=observed[rows, :steps])
        np.logical_not(observed[rows, :steps], out=observed[rows, :steps])
        start += series
    np.copyto(values, 0.0, where=~observed)
    return Sequences(torch.from_numpy(values), torch.from_numpy(observed), torch.from_numpy(lengths.astype(np.int64)))


def _labels(opened: Opened, expected: Labels | None, ragged: bool) -> Labels:
    times = tuple(index for block, index in zip(opened.blocks, opened.times, strict=True) for _ in range(block.shape[0]))
    step = grid_step(opened.times)
    if step is None and expected is not None:
        step = expected.attrs["step"]
    attrs = {
        "event_shape": opened.event_shape,
        "columns": opened.columns,
        "step": step,
        "time_kind": time_kind(opened.times[0]),
        "coords": opened.coords,
        "user": opened.attrs,
    }
    return Labels(opened.kind, opened.names, opened.event_dims, opened.series, times, opened.time_name, ragged, attrs)


# ---------------------------------------------------------------------------------------------------------------- checks


def _check_sizes(opened: Opened, name: str, min_steps: int, ragged: bool) -> None:
    if 0 in opened.event_shape or not any(block.size for block in opened.blocks):
        shape = tuple(opened.blocks[0].shape)
        raise ValueError(f"`{name}` is empty: shape {shape} as (series, time, *observation), expected at least one number.")
    for i, block in enumerate(opened.blocks):
        if block.shape[1] < max(min_steps, 1):
            what = f"`{name}[{i}]`" if ragged else f"`{name}`"
            raise ValueError(f"{what} has {block.shape[1]} time step(s), expected at least {max(min_steps, 1)}; pass longer series or drop this one.")


def _check_finite(sequences: Sequences, opened: Opened, labels: Labels, name: str) -> None:
    infinite = torch.isinf(sequences.values)
    if not bool(infinite.any()):
        return
    series, row, *event = infinite.nonzero()[0].tolist()
    original = _original(opened, series, (row, *event))
    where = f"series {series if labels.series is None else labels.series[series]!r}, row {row} (time {labels.times[series][row]})"
    where += f", channel {labels.channels[event[0]]!r}" if labels.channels else f", {dict(zip(labels.event_dims, event, strict=True))}"
    if np.isinf(original):
        raise ValueError(f"`{name}` holds an infinite value ({original}) at {where}; expected finite numbers, or NaN for missing: replace it.")
    raise ValueError(f"`{name}` holds {original} at {where}, too large for {sequences.values.dtype}; rescale the data or use dtype=torch.float64.")


def _check_resolved(opened: Opened, labels: Labels, name: str) -> None:
    """A channel far from zero whose changes are a few steps of float32 at most would be learned from its rounding."""
    wide = [block for block in opened.blocks if block.dtype == np.float64]
    if not wide:
        return
    low, high = (fold.reduce([fold.reduce(fold.reduce(np.asarray(block), 0), 0) for block in wide]).astype(float) for fold in (np.fmin, np.fmax))
    largest = np.maximum(abs(low), abs(high))
    step = largest * np.finfo(np.float32).eps
    lost = (high - low > 1e-12 * largest) & (high - low < _FEWEST_STEPS * step)  # less than that is rounding, of a constant
    if lost.any():
        k = int(lost.argmax())
        raise ValueError(
            f"Channel {labels.channels[k]!r} of `{name}` changes between {low[k]:.12g} and {high[k]:.12g} only, which torch.float32 tells apart in "
            f"steps of {step[k]:.2g}; subtract what is constant, or use dtype=torch.float64."
        )


def _original(opened: Opened, series: int, place: tuple[int, ...]) -> Any:
    for block in opened.blocks:
        if series < block.shape[0]:
            return block[(series, *place)]
        series -= block.shape[0]
    raise IndexError(series)


def _check_observed(sequences: Sequences, labels: Labels, name: str, min_steps: int) -> None:
    if not bool(sequences.observed.any()):
        raise ValueError(f"`{name}` holds only NaN (missing), expected some observed values; check how it was read or joined.")
    if min_steps > 1 and labels.channels:
        seen = sequences.observed.flatten(0, 1).any(0)
        never = [channel for channel, any_seen in zip(labels.channels, seen.tolist(), strict=True) if not any_seen]
        if never:
            raise ValueError(f"Channel(s) {never} of `{name}` are NaN at every step, expected some values to learn from; drop these channels.")
