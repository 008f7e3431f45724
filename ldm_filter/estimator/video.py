"""Video through a fitted model, frame by frame: only the states are kept, so a clip may be of any length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from ldm_filter.core.gating import Gate
from ldm_filter.data.video import Frame, frame_step, on_grid, video_frames
from ldm_filter.estimator import LDMFilter
from ldm_filter.online import StepResult
from ldm_filter.types import Gaussian

__all__ = ["Seen", "filter_video", "filtered_frames"]


class Seen(NamedTuple):
    """A frame with what the filter makes of it; target: the supervised read-out, mean ``(k,)`` and cov ``(k, k)``, or None."""

    frame: Frame
    result: StepResult
    target: Gaussian | None


def filtered_frames(model: LDMFilter, path: str | Path, gate: Gate | str | None = None, original: bool = False) -> Iterator[Seen]:
    """Filter a clip while it is read.

    Args:
        model: fitted on frames; the clip is resized to theirs.
        path: of the clip.
        gate: as for ``LDMFilter.filter``. original: also give the frames as they are in the file.

    Raises:
        ValueError: a model of channels, or a clip that cannot be read.
    """
    shape = tuple(model.labels_.attrs["event_shape"])
    if len(shape) < 2:
        raise ValueError(f"the model is of {shape[0]} channels, not of frames; fit one on clips")
    step = model.labels_.attrs.get("step") or frame_step(path)
    online = model.online(gate=gate)
    frames = video_frames(path, (shape[0], shape[1]), len(shape) == 3, original)
    for frame in on_grid(frames, step):
        result = online.step(frame.values)
        yield Seen(frame, result, _target(model, result))


def filter_video(model: LDMFilter, path: str | Path, gate: Gate | str | None = None) -> xr.Dataset:
    """The states of a clip: ``filtered_mean``, ``filtered_cov``, ``log_likelihood``, ``nis``, ``observed`` and, where there is one, the read-out
    ``target_mean`` and ``target_cov``, over the time in seconds. Equal to ``model.filter(read_video(path))``, at the memory of one frame."""
    columns: dict[str, list[Any]] = {name: [] for name in ("time", "observed", "mean", "cov", "log_likelihood", "nis", "target_mean", "target_cov")}
    for frame, result, target in filtered_frames(model, path, gate):
        columns["time"].append(frame.time)
        columns["observed"].append(frame.values is not None)
        for name in ("mean", "cov", "log_likelihood", "nis"):
            columns[name].append(getattr(result, name).numpy())
        if target is not None:
            columns["target_mean"].append(target.mean.numpy())
            columns["target_cov"].append(target.cov.numpy())
    dims = {"filtered_mean": ("state",), "filtered_cov": ("state", "state_aux"), "log_likelihood": (), "nis": (), "observed": ()}
    dims |= {"target_mean": ("target",), "target_cov": ("target", "target_aux")} if columns["target_mean"] else {}
    variables = {name: (("time", *own), np.array(columns[name.removeprefix("filtered_")])) for name, own in dims.items()}
    coords: dict[str, Any] = {"time": columns["time"]}
    if columns["target_mean"]:
        coords |= {"target": model.target_names_, "target_aux": model.target_names_}
    return xr.Dataset(variables, coords, attrs={"source": Path(path).name, "title": "ldm_filter result"})


@torch.no_grad()
def _target(model: LDMFilter, result: StepResult) -> Gaussian | None:
    readout = model.target_readout_
    if readout is None or not readout.full:
        return None
    where = next(readout.parameters(), model.model_.encoder.center).device
    mean, cov = readout(Gaussian(result.mean[None, None].to(where), result.cov[None, None].to(where)))
    return Gaussian(mean[0, 0].cpu(), cov[0, 0].cpu())
