"""How good forecasts from many origins within a series were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ldm_filter import metrics
from ldm_filter.data.results import check_levels, column_labels
from ldm_filter.estimator.forecasting import Origins
from ldm_filter.types import Labels, Sequences

__all__ = ["Backtest", "backtest"]


@dataclass(frozen=True)
class Backtest:
    """What :meth:`ldm_filter.LDMFilter.backtest` found; ``print`` it.

    Attributes:
        table: a row per (channel, step ahead) with ``crps``, ``mae``, ``rmse`` in the channel's units, ``mase`` and ``coverage-80`` and so on.
        origins: number of forecasts.
        crps, mase: means of the table; crps after division by the channels' naive error, so that channels of all units count alike.
        coverage: level -> share of the observations inside.
    """

    table: pd.DataFrame
    origins: int
    crps: float
    mase: float
    coverage: dict[float, float]

    def __str__(self) -> str:
        inside = ", ".join(f"{level:.0%}: {share:.1%}" for level, share in self.coverage.items())
        head = f"{self.origins} forecasts; CRPS {self.crps:.3f} and MASE {self.mase:.3f} of the naive error; coverage {inside}"
        return f"{head}\n{self.table.to_string(float_format='{:.4g}'.format, max_rows=40)}"


def backtest(found: Origins, sequences: Sequences, labels: Labels, levels: tuple[float, ...], season: int, width: Callable[[float], Any]) -> Backtest:
    """Judge forecasts.

        MASE = mean |x - mean| / mean_t |x_t - x_{t - season}|        (Hyndman & Koehler 2006; the scale is that of the data given)

    Raises:
        ValueError: a season below 1 or as long as the data, or a channel that never changes over it.
    """
    levels = check_levels(levels)
    vectors = len(labels.event_dims) == 1
    channels = column_labels(labels) if vectors else ["all"]
    scale = _naive_error(sequences, season, vectors)
    mean, std, truth = (part.double().numpy() for part in found[:3])
    seen = found.observed.numpy()
    fields = {"crps": metrics.crps_normal(mean, np.maximum(std, 1e-300), np.where(seen, truth, mean))}
    fields |= {"mae": np.abs(truth - mean), "mse": (truth - mean) ** 2}
    for level in levels:
        fields[f"coverage-{100 * level:g}"] = (np.abs(truth - mean) <= np.asarray(width(level)) * std).astype(float)
    axes = (0,) if vectors else (0, *range(2, mean.ndim))
    steps = {name: np.sum(np.where(seen, value, 0.0), axis=axes) / np.maximum(seen.sum(axis=axes), 1) for name, value in fields.items()}
    steps = {name: value.reshape(len(value), -1) for name, value in steps.items()}
    steps["rmse"], steps["mase"] = np.sqrt(steps.pop("mse")), steps["mae"] / scale
    index = pd.MultiIndex.from_product([channels, range(1, mean.shape[1] + 1)], names=["channel", "step"])
    order = ["crps", "mae", "rmse", "mase", *(name for name in steps if name.startswith("coverage"))]
    table = pd.DataFrame({name: steps[name].T.ravel() for name in order}, index=index)
    coverage = {level: float(steps[f"coverage-{100 * level:g}"].mean()) for level in levels}
    return Backtest(table, len(mean), float((steps["crps"] / scale).mean()), float(steps["mase"].mean()), coverage)


def _naive_error(sequences: Sequences, season: int, vectors: bool) -> np.ndarray:
    """Mean |x_t - x_{t - season}| of every channel, ``(channel,)``; one for all pixels of frames."""
    longest = sequences.values.shape[1]
    if not 1 <= season < longest:
        raise ValueError(f"season is {season}, expected at least 1 and below the {longest} steps of the data")
    both = (sequences.observed[:, season:] & sequences.observed[:, :-season]).numpy()
    change = np.abs(sequences.values[:, season:].double().numpy() - sequences.values[:, :-season].double().numpy()) * both
    axes = (0, 1) if vectors else tuple(range(change.ndim))
    error = np.atleast_1d(change.sum(axis=axes) / np.maximum(both.sum(axis=axes), 1))
    if not (error > 0).all():
        raise ValueError(f"channel(s) {np.flatnonzero(error <= 0).tolist()} do not change over {season} step(s), and the naive error is 0; drop them")
    return error
