"""Methods side by side: errors, reliability, a forecast of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from ldm_filter.plots.reliability import draw_reliability
from ldm_filter.plots.style import BLACK, BLUE, GREEN, GREY, SKY, VERMILLION, bare

__all__ = ["plot_comparison"]

QUESTIONS = {"rmse": "one step", "imputation_rmse": "gaps", "forecast_rmse": "forecasts"}
COLOURS = (BLUE, VERMILLION, GREEN, SKY, "#CC79A7", "#E69F00", "#F0E442", GREY)


def plot_comparison(table: pd.DataFrame, pits: Mapping[str, NDArray], examples: Mapping[str, Any]) -> Figure:
    """The picture of `ldm_filter.comparison.Comparison`.

    Args:
        table: a row per method, with ``rmse``, ``imputation_rmse`` and ``forecast_rmse``.
        pits: PIT values by method, see `ldm_filter.metrics.pit`.
        examples: by method, with ``past``, ``truth``, ``mean`` and ``std`` of one forecast.
    """
    figure = Figure(figsize=(12, 3.2 + 0.15 * len(table)), layout="constrained")
    errors, reliability, forecasts = figure.subplots(1, 3)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(table.index)}
    places = np.arange(len(table))
    for i, (column, words) in enumerate(QUESTIONS.items()):
        errors.plot(table[column].astype(float), places, "osD"[i], color=(BLACK, GREY, BLUE)[i], label=words)
    errors.set(yticks=places, yticklabels=list(table.index), xlabel="RMSE, standard deviations", xscale="log")
    errors.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
    errors.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    errors.xaxis.set_minor_locator(NullLocator())
    errors.invert_yaxis()
    errors.grid(axis="y", alpha=0.3)
    errors.legend(frameon=False, fontsize="small")
    draw_reliability(reliability, pits, colours)
    first = next(iter(examples.values()))
    known, ahead = np.arange(-len(first.past), 0) + 1, np.arange(1, len(first.mean) + 1)
    forecasts.plot(known, first.past, color=BLACK, lw=1)
    forecasts.plot(ahead, first.truth, color=BLACK, lw=1, ls=":", label="what came")
    for name, example in examples.items():
        forecasts.plot(ahead, example.mean, color=colours[name], lw=1.2)
    best = next(iter(examples))
    low, high = (examples[best].mean + sign * 1.96 * examples[best].std for sign in (-1, 1))
    forecasts.fill_between(ahead, low, high, color=colours[best], alpha=0.2, lw=0, label=f"95 % of {best}")
    forecasts.set(xlabel="steps after the origin", title="a forecast of the first channel")
    forecasts.legend(frameon=False, fontsize="small")
    for axes in (errors, reliability, forecasts):
        bare(axes)
    return figure
