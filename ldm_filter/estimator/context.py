"""Time steps and inputs of parsed data, as the dynamics take them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ldm_filter.data.labels import parse
from ldm_filter.data.scaling import statistics
from ldm_filter.data.times import future_times, intervals, is_calendar, is_whole, seconds
from ldm_filter.models.base import Dynamics
from ldm_filter.types import Context, Labels, Sequences

__all__ = ["Inputs", "fit_context", "future_context", "known_inputs", "parse_inputs", "timed", "to_device"]

LABELLED = ("frame", "long", "dataarray", "dataset")


class Inputs(NamedTuple):
    """Inputs beside the data, ``(1 | B, T, u)``, and those of the future steps ``(1 | B, H, u)``, H = 0 where none are asked for."""

    past: Tensor
    future: Tensor


def timed(sequences: Sequences, labels: Labels, fitted: Labels, uses: str) -> Sequences:
    """The sequences with their time steps, as far as the dynamics use them (see :class:`~ldm_filter.models.base.Dynamics`)."""
    step = fitted.attrs["step"]
    if uses == "no" or step is None or fitted.attrs["time_kind"] not in (None, labels.attrs["time_kind"]):
        return sequences
    dt = intervals(labels.times, step)
    if dt is None or (uses == "grid" and not is_whole(dt / step)):
        return sequences
    return sequences._replace(context=sequences.context._replace(dt=torch.from_numpy(dt)))


def parse_inputs(inputs: Any, labels: Labels, sequences: Sequences, expected: Labels | None, horizon: int = 0) -> tuple[Inputs, Labels]:
    """Inputs matched to the data: by time stamp where both have one, else row by row.

    Args:
        inputs: a container like that of the data, with the inputs as its channels; one series of them may serve many.
        labels, sequences: the data's.
        expected: the labels of the inputs in the fit.
        horizon: steps after the data that inputs are needed for as well.

    Raises:
        ValueError: missing values, stamps that the inputs do not cover, or another number of rows than the data (and horizon) have.
    """
    given, found = parse(inputs, expected=expected, dtype=torch.float64, name="inputs")
    if len(found.event_dims) != 1:
        raise ValueError(f"`inputs` has observations of shape {tuple(given.values.shape[2:])}, expected vectors (time, input)")
    steps = torch.arange(given.values.shape[1]) < given.lengths[:, None]
    if not bool(given.observed[steps].all()):
        raise ValueError("`inputs` holds NaN, expected known values at every step; fill the gaps, or make it a channel of the data")
    by_time = labels.kind in LABELLED and found.kind in LABELLED
    ahead = future_times(labels, horizon) if horizon and by_time else None
    past, future = [], []
    for series, length in enumerate(sequences.lengths.tolist()):
        source = series if len(given.lengths) > 1 else 0
        if source >= len(given.lengths):
            raise ValueError(f"`inputs` holds {len(given.lengths)} series, the data {len(sequences.lengths)}; give one for each, or one for all")
        values = given.values[source, : int(given.lengths[source])]
        if by_time:
            wanted = labels.times[series] if ahead is None else labels.times[series].append(ahead[series])
            values = values[_rows(pd.Index(found.times[source]), wanted)]
        elif len(values) != length + horizon:
            what = f"{length} steps of the data and the {horizon} of the horizon" if horizon else f"{length} steps of the data"
            raise ValueError(f"`inputs` has {len(values)} rows, expected one for each of the {what}")
        past.append(values[:length])
        future.append(values[length:])
    padded = torch.nn.utils.rnn.pad_sequence(past, batch_first=True)
    return Inputs(padded, torch.stack(future)), found


def _rows(index: pd.Index, wanted: pd.Index) -> np.ndarray:
    try:
        rows = index.get_indexer(wanted)
    except TypeError:  # naive beside zoned stamps
        rows = np.full(len(wanted), -1)
    if (rows < 0).any():
        first = wanted[int(np.argmax(rows < 0))]
        raise ValueError(f"`inputs` has no row at {first}; expected one at every stamp of the data, and of the horizon where one is forecast")
    return rows


def known_inputs(inputs: Any, labels: Labels, sequences: Sequences, expected: Labels | None, horizon: int = 0) -> Inputs | None:
    """As :func:`parse_inputs`; None where the model has no inputs and none are given.

    Raises:
        ValueError: inputs for a model without, or none for a model with.
    """
    if expected is None:
        if inputs is not None:
            raise ValueError("`inputs` are given, but the model was fitted without; call fit(data, inputs=...) first")
        return None
    if inputs is None:
        future = f" and the {horizon} steps after it" if horizon else ""
        raise ValueError(f"`inputs` is None, but the model was fitted with inputs {list(expected.channels)}; pass them for the data{future}")
    return parse_inputs(inputs, labels, sequences, expected, horizon)[0]


def fit_context(dynamics: Dynamics, sequences: Sequences, labels: Labels) -> Sequences:
    """Tell the dynamics what a sampling interval and an input's scale are; the sequences with their time steps."""
    if labels.attrs["step"] is not None:
        dynamics.set_interval(labels.attrs["step"])
    inputs = sequences.context.inputs
    if inputs is not None:
        inside = torch.arange(inputs.shape[1]) < sequences.lengths[:, None]
        mean, std = statistics(Sequences(inputs, inside[..., None].expand_as(inputs), sequences.lengths))
        dynamics.set_input_scale(mean, std)
    return timed(sequences, labels, labels, dynamics.uses_time)


def future_context(dynamics: Dynamics, labels: Labels, fitted: Labels, horizon: int, inputs: Inputs | None) -> Context:
    """Time steps and inputs of the steps that a forecast is for."""
    dt = None
    step = fitted.attrs["step"]
    if dynamics.uses_time != "no" and step is not None and labels.attrs["time_kind"] == fitted.attrs["time_kind"]:
        future = future_times(labels, horizon)
        joined = [pd.Index(times[-1:]).append(ahead) for times, ahead in zip(labels.times, future, strict=True)]
        rows = zip(labels.times, joined, strict=True)
        gaps = np.stack([np.full(horizon, step) if is_calendar(times) else np.diff(seconds(index)) for times, index in rows])
        same = bool((np.abs(gaps - step) <= 1e-6 * step).all())
        dt = None if same or (dynamics.uses_time == "grid" and not is_whole(gaps / step)) else torch.from_numpy(gaps)
    return Context(dt, None if inputs is None else inputs.future)


def to_device(context: Context, device: torch.device) -> Context:
    return Context(*(None if part is None else part.to(device) for part in context))
