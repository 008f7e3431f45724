"""Fits on clips that stay in their files: windows drawn from them, and what the model is to know of their layout."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import xarray as xr

from ldm_filter.data.clips import Clips, ClipWindows
from ldm_filter.data.labels import parse
from ldm_filter.data.windows import Windows, split_spans
from ldm_filter.estimator.fitting import LEAST_SPLIT, window_length
from ldm_filter.types import Labels

__all__ = ["Drawn", "drawn"]

# Of the clips' memory; a quarter is for decoded pieces.
SAMPLE, HELD_SAMPLE = 0.6, 0.15


class Drawn(NamedTuple):
    """Windows of the clips in training and of those held out, and the labels of their frames."""

    training: ClipWindows
    validation: Windows | None
    labels: Labels


def drawn(clips: Clips, validation: Any, window: int | None, seed: int, dtype: torch.dtype, **beside: Any) -> Drawn:
    """Split as data in memory are, by clips where there are at least five.

    Args:
        clips: to fit on. validation: a share of them, other clips, frames in memory, or None. window, seed, dtype: as of the estimator.
        beside: what else ``fit`` was given, which clips cannot be combined with.

    Raises:
        ValueError: inputs, times or targets.
    """
    for name, value in beside.items():
        if value is not None:
            raise ValueError(
                f"{name} is given, but data is Clips, whose frames stay in their files; pass [read_video(path), ...] together with {name}"
            )
    train, held_out, labels = _whole(clips), None, _labels(clips, dtype)
    if isinstance(validation, float) and int(clips.lengths.min()) >= LEAST_SPLIT:
        train, held_out = split_spans(clips.lengths, validation, torch.Generator().manual_seed(seed))
    length = window_length(train[:, 2], window)
    training = ClipWindows(clips, train, length, SAMPLE, dtype)
    if isinstance(validation, float) or validation is None:
        return Drawn(training, None if held_out is None else ClipWindows(clips, held_out, length, HELD_SAMPLE, dtype), labels)
    if isinstance(validation, Clips):
        return Drawn(training, ClipWindows(validation, _whole(validation), length, HELD_SAMPLE, dtype), labels)
    return Drawn(training, Windows(parse(validation, expected=labels, dtype=dtype, name="validation")[0], length), labels)


def _whole(clips: Clips) -> torch.Tensor:
    return torch.stack([torch.arange(len(clips)), torch.zeros_like(clips.lengths), clips.lengths], 1)


def _labels(clips: Clips, dtype: torch.dtype) -> Labels:
    """As of the first frames in memory."""
    pixels, seen = clips.read(0, 0, min(2, int(clips.lengths[0])))
    values = pixels.astype("float32") / 255.0
    dims = ("time", "y", "x", "colour")[: values.ndim]
    frames = xr.DataArray(values, {"time": clips.step * torch.arange(len(seen)).numpy()}, dims, attrs={"units": "share of white"})
    labels = parse([frames], dtype=dtype)[1]
    return labels._replace(attrs=labels.attrs | {"step": clips.step})
