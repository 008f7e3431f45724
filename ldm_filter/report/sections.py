"""What the sections of a report show: tables of numbers and figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ldm_filter.baselines import HoldLast, VARKalman
from ldm_filter.data.labels import parse
from ldm_filter.data.times import time_zone
from ldm_filter.estimator import LDMFilter
from ldm_filter.estimator.diagnosis import Diagnosis, duration
from ldm_filter.metrics import crps_normal
from ldm_filter.plots import plot_filter, plot_training
from ldm_filter.plots.style import BLUE, GREY, VERMILLION, bare
from ldm_filter.types import Labels

__all__ = ["channel_table", "facts", "filter_picture", "forecast_section", "innovation_picture", "single_series", "training_picture"]

LEAST_STEPS = 30
MOST_CHANNELS = 4
MOST_SHOWN = 400
LEVEL = 0.8


def single_series(model: LDMFilter, data: Any) -> tuple[np.ndarray, Labels]:
    """The values ``(time, channel)`` with NaN where missing, and their labels.

    Raises:
        ValueError: frames, several series, or fewer than 30 steps.
    """
    sequences, labels = parse(data, expected=model.labels_, dtype=model.dtype)
    if not labels.channels or labels.ragged or len(sequences.values) > 1:
        raise ValueError(
            f"`data` holds {len(sequences.values)} series of {labels.event_dims}; a report is of one series of channels: pass one of them"
        )
    values = sequences.values[0].double().masked_fill(~sequences.observed[0], np.nan).numpy()
    if len(values) < LEAST_STEPS:
        raise ValueError(f"`data` has {len(values)} steps, a report needs at least {LEAST_STEPS}; give a longer series")
    return values, labels


def facts(values: np.ndarray, labels: Labels) -> dict[str, str]:
    """A few lines about the data."""
    index, step = pd.Index(labels.times[0]), labels.attrs.get("step")
    dated = isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex)
    found = {
        "steps": f"{len(values):,}",
        "channels": f"{values.shape[1]}",
        "from": f"{index[0]}",
        "to": f"{index[-1]}",
        "sampling interval": "unknown" if step is None else duration(step, "s" if dated else ""),
        "missing entries": f"{np.isnan(values).mean():.1%}",
    }
    return found if time_zone(index) is None else found | {"time zone": str(time_zone(index))}


def channel_table(values: np.ndarray, labels: Labels) -> list[tuple[str, ...]]:
    """Per channel: name, mean, standard deviation, least, largest, share missing."""
    seen = [column[~np.isnan(column)] for column in values.T]
    rows = []
    for name, column, kept in zip(labels.channels, values.T, seen, strict=True):
        numbers = (kept.mean(), kept.std(), kept.min(), kept.max()) if len(kept) else (np.nan,) * 4
        rows.append((name, *(f"{number:.4g}" for number in numbers), f"{np.isnan(column).mean():.1%}"))
    return rows


def training_picture(model: LDMFilter) -> Figure:
    """Loss per epoch."""
    return plot_training(model.history_)


def filter_picture(model: LDMFilter, data: Any, steps: int, inputs: Any = None) -> Figure:
    """The last steps of the data, filtered."""
    result = model.filter(data, inputs=_until(inputs, steps))
    last = slice(max(0, steps - MOST_SHOWN), steps)
    dim = str(result["nis"].dims[0])
    return plot_filter(result.isel({dim: last}), _rows(data, last), channels=list(model.labels_.attrs["columns"])[:MOST_CHANNELS])


def forecast_section(model: LDMFilter, data: Any, values: np.ndarray, horizon: int, inputs: Any = None) -> tuple[Figure, list[tuple[str, ...]]]:
    """The forecast of the last ``horizon`` steps from those before, as a picture, and beside classical ones, as a table.

    The baselines are fitted on the steps before; all are averaged over up to ten origins, the last of which is drawn.
    """
    steps = len(values)
    origins = [steps - horizon * k for k in range(1, 11) if steps - horizon * k >= max(LEAST_STEPS, 2 * steps // 3)] or [steps - horizon]
    first = min(origins)
    std = np.maximum(np.nanstd(values[:first], 0), 1e-12)
    rivals: dict[str, Any] = {"hold the last value": HoldLast().fit(values[:first])}
    if first > 60:
        rivals["vector autoregression (3), Kalman filter"] = VARKalman(3).fit(values[:first])
    scores: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ("this model", *rivals)}
    for origin in origins:
        truth = values[origin : origin + horizon]
        frame = model.forecast(_rows(data, slice(0, origin)), horizon=horizon, levels=(LEVEL,), inputs=_until(inputs, origin + horizon))
        mean, spread = _moments(frame, values.shape[1])
        scores["this model"].append(_errors(mean, spread, truth, std))
        for name, rival in rivals.items():
            ahead = rival.forecast(values[:origin], horizon)
            scores[name].append(_errors(ahead.mean, ahead.std, truth, std))
    table = [(name, *(f"{number:.3f}" for number in np.nanmean(rows, 0)), f"{len(origins)}") for name, rows in scores.items()]
    origin = origins[0]
    shown = slice(max(0, origin - 3 * horizon), origin)
    result = model.filter(_rows(data, slice(0, origin)), inputs=_until(inputs, origin))
    frame = model.forecast(_rows(data, slice(0, origin)), horizon=horizon, levels=(LEVEL,), inputs=_until(inputs, origin + horizon))
    figure = plot_filter(
        result.isel({str(result["nis"].dims[0]): shown}),
        _rows(data, shown),
        channels=list(model.labels_.attrs["columns"])[:MOST_CHANNELS],
        truth=values[shown.start : origin + horizon],
        forecast=frame,
    )
    return figure, table


def innovation_picture(found: Diagnosis) -> Figure:
    """Autocorrelation of the innovations with its bound, and the histogram of the PIT."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    lags = np.arange(1, len(found.autocorrelations) + 1)
    left.bar(lags, found.autocorrelations, color=BLUE, width=0.6)
    for bound in (-found.whiteness_bound, found.whiteness_bound):
        left.axhline(bound, color=VERMILLION, linestyle="--", linewidth=1)
    left.axhline(0.0, color=GREY, linewidth=0.8)
    left.set(xlabel="lag (steps)", title="autocorrelation of the innovations; dashed: 95 % bound")
    right.bar(np.arange(10) / 10 + 0.05, np.array(found.pit) * 10, width=0.09, color=BLUE)
    right.axhline(1.0, color=VERMILLION, linestyle="--", linewidth=1)
    right.set(xlabel="probability integral transform", title="calibration; dashed: right")
    for axes in (left, right):
        bare(axes)
        axes.title.set_fontsize(10)
    return figure


def _rows(data: Any, rows: slice) -> Any:
    if isinstance(data, pd.DataFrame | pd.Series):
        return data.iloc[rows]
    if hasattr(data, "isel"):
        return data.isel(time=rows) if "time" in data.dims else data.isel({str(next(iter(data.dims))): rows})
    return data[rows] if np.ndim(data) < 3 else data[:, rows]


def _until(inputs: Any, stop: int) -> Any:
    """The inputs of the steps before ``stop``: a row for each step of the data."""
    return None if inputs is None else _rows(inputs, slice(0, stop))


def _moments(forecast: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation ``(horizon, channel)``."""
    if isinstance(forecast, pd.DataFrame):
        return forecast.xs("mean", axis=1, level=1).to_numpy(), forecast.xs("std", axis=1, level=1).to_numpy()
    return forecast["forecast_mean"].to_numpy().reshape(-1, channels), forecast["forecast_std"].to_numpy().reshape(-1, channels)


def _errors(mean: np.ndarray, std: np.ndarray, truth: np.ndarray, scale: np.ndarray) -> tuple[float, float, float]:
    """RMSE and CRPS in standard deviations of the data, and the share of the truth inside the interval."""
    seen = ~np.isnan(truth)
    if not seen.any():
        return (np.nan,) * 3
    error = (mean - truth) / scale
    crps = np.asarray(crps_normal((mean / scale)[seen], (np.maximum(std, 1e-9) / scale)[seen], (truth / scale)[seen]))
    inside = np.abs(mean - truth) <= 1.2815515655446004 * std
    return float(np.sqrt(np.square(error[seen]).mean())), float(crps.mean()), float(inside[seen].mean())
