"""Forecasts in the shape that their reader wants: wide, sktime's, long, or a Dataset with a level dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from ldm_filter.data.results import check_levels, column_labels, estimate_output, normal_width, to_datasets, to_numpy
from ldm_filter.data.times import future_times
from ldm_filter.types import Labels

__all__ = ["FORMATS", "forecast_output"]

FORMATS = ("wide", "sktime", "long", "xarray")
Width = Callable[[float], Any]


class _Asked(NamedTuple):
    levels: tuple[float, ...]
    quantiles: tuple[float, ...]
    width: Width

    def at(self, mean: np.ndarray, std: np.ndarray, probability: float) -> np.ndarray:
        """The quantile at a probability, ``(..., horizon, *event)``."""
        sign = np.sign(probability - 0.5)
        return mean if sign == 0 else mean + sign * np.asarray(self.width(abs(2.0 * probability - 1.0)), dtype=mean.dtype) * std


def forecast_output(
    mean: Tensor,
    std: Tensor,
    levels: Iterable[float],
    labels: Labels,
    *,
    quantiles: Iterable[float] = (),
    width: Width = normal_width,
    format: str | None = None,
) -> Any:
    """Forecasts of the steps that follow the data.

    Args:
        mean: ``(series, horizon, *event)`` in the units of the data.
        std: standard deviation, of the same shape.
        levels: central intervals mean +- width(level) std, each level in (0, 1).
        labels: labels of the data that the forecast starts from.
        quantiles: probabilities p in (0, 1): mean + sign(p - 1/2) width(|2 p - 1|) std.
        width: half the width of a central interval in standard deviations, a number or an array that broadcasts to ``(horizon, *event)``.
        format: ``"wide"``, columns (channel, mean | std | lo-80 | hi-80 | q-10 ...); ``"sktime"``, columns (variable, coverage, lower | upper), or
            (variable, alpha) where quantiles are asked for; ``"long"``, rows ``unique_id, ds[, channel]`` and the statistics as columns;
            ``"xarray"``, a Dataset with dims ``level`` and ``quantile``. None: long for long data, wide for a DataFrame, else a Dataset.

    Returns:
        At the times that continue the data's own; for wide and sktime a list of frames for a list of series.

    Raises:
        ValueError: an unknown format, a level or quantile outside (0, 1), or a table of frames.
    """
    asked = _Asked(check_levels(levels), check_levels(quantiles, "quantiles"), width)
    default = {"frame": "wide", "long": "long"}.get(labels.kind, "xarray")
    chosen = default if format is None else format
    if chosen not in FORMATS:
        raise ValueError(f"`format` is {format!r}, expected one of {', '.join(map(repr, FORMATS))}")
    if chosen != "xarray" and len(labels.event_dims) > 1:
        raise ValueError(f"`format` is {format!r}, which no frame of dims {labels.event_dims} fits in; use format='xarray'")
    times = future_times(labels, mean.shape[1])
    if chosen == "xarray":
        return _dataset(mean, std, asked, labels, times)
    parts = list(zip(to_numpy(mean), to_numpy(std), times, strict=True))
    if chosen == "sktime":
        tables = [_sktime(centre, spread, asked, labels, index) for centre, spread, index in parts]
    elif chosen == "wide" and not asked.quantiles and width is normal_width and labels.kind == "frame":
        return estimate_output(mean, std, asked.levels, labels, times=times, name="forecast")
    else:
        tables = [_wide(centre, spread, asked, labels, index) for centre, spread, index in parts]
    if chosen == "long":
        return _long(tables, labels)
    return tables if labels.ragged or labels.series is not None else tables[0]


def _statistics(mean: np.ndarray, std: np.ndarray, asked: _Asked) -> dict[str, np.ndarray]:
    found = {"mean": mean, "std": std}
    for level in asked.levels:
        found[f"lo-{100 * level:g}"] = asked.at(mean, std, 0.5 - level / 2)
        found[f"hi-{100 * level:g}"] = asked.at(mean, std, 0.5 + level / 2)
    return found | {f"q-{100 * p:g}": asked.at(mean, std, p) for p in asked.quantiles}


def _wide(mean: np.ndarray, std: np.ndarray, asked: _Asked, labels: Labels, index: pd.Index) -> pd.DataFrame:
    found = _statistics(mean, std, asked)
    columns = {(channel, name): values[:, i] for i, channel in enumerate(column_labels(labels)) for name, values in found.items()}
    names = pd.MultiIndex.from_tuples(list(columns), names=["channel", "statistic"])
    return pd.DataFrame(np.stack(list(columns.values()), axis=1), index=index, columns=names)


def _sktime(mean: np.ndarray, std: np.ndarray, asked: _Asked, labels: Labels, index: pd.Index) -> pd.DataFrame:
    """What sktime's ``predict_interval`` and ``predict_quantiles`` return."""
    columns: dict[tuple[Any, ...], np.ndarray] = {}
    for i, channel in enumerate(column_labels(labels)):
        if asked.quantiles:
            columns |= {(channel, p): asked.at(mean, std, p)[:, i] for p in asked.quantiles}
            continue
        for level in asked.levels:
            columns[channel, level, "lower"] = asked.at(mean, std, 0.5 - level / 2)[:, i]
            columns[channel, level, "upper"] = asked.at(mean, std, 0.5 + level / 2)[:, i]
    if not columns:
        raise ValueError("`format` is 'sktime' without levels and quantiles, expected at least one of them")
    return pd.DataFrame(np.stack(list(columns.values()), axis=1), index=index, columns=pd.MultiIndex.from_tuples(list(columns)))


def _long(tables: list[pd.DataFrame], labels: Labels) -> pd.DataFrame:
    """Rows of all series and channels below each other."""
    names = (0,) if labels.series is None else labels.series
    parts = []
    for name, table in zip(names, tables, strict=True):
        for channel in table.columns.get_level_values(0).unique():
            part = table[channel].rename_axis(columns=None)
            part.insert(0, "unique_id", name)
            part.insert(1, "ds", part.index)
            if len(labels.channels) > 1:
                part.insert(2, "channel", channel)
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _dataset(mean: Tensor, std: Tensor, asked: _Asked, labels: Labels, times: tuple[pd.Index, ...]) -> Any:
    dims = ("series", "time", *labels.event_dims)
    centre, spread = to_numpy(mean), to_numpy(std)
    fields: dict[str, Any] = {"forecast_mean": (dims, mean), "forecast_std": (dims, std)}
    coords: dict[str, Any] = {}
    for name, probabilities in (
        ("lo", [0.5 - x / 2 for x in asked.levels]),
        ("hi", [0.5 + x / 2 for x in asked.levels]),
        ("quantile", list(asked.quantiles)),
    ):
        if probabilities:
            dim = "quantile" if name == "quantile" else "level"
            values = np.stack([asked.at(centre, spread, p) for p in probabilities], axis=-1)
            fields[f"forecast_{name}"] = ((*dims, dim), mean.new_tensor(values))
            coords[dim] = list(asked.quantiles) if dim == "quantile" else list(asked.levels)
    return to_datasets(fields, labels, times, coords)
