"""Reliability: how often the truth lies where a method says it does, level by level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ldm_filter import metrics
from ldm_filter.plots.style import BLUE, GREEN, GREY, SKY, VERMILLION, bare

__all__ = ["draw_reliability", "plot_reliability"]

LEVELS = np.linspace(0.02, 0.98, 49)
COLOURS = (BLUE, VERMILLION, GREEN, SKY, GREY)


def draw_reliability(axes: Axes, pits: Mapping[str, NDArray], colours: Mapping[str, str]) -> None:
    """Share of the truths inside the central interval of each level, against the level; the diagonal is right, below it is overconfident."""
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls="--")
    for name, values in pits.items():
        distance = np.abs(2.0 * np.asarray(values, dtype=float).ravel() - 1.0)
        shares = [float(np.mean(distance <= level)) for level in LEVELS]
        axes.plot(LEVELS, shares, color=colours[name], lw=1.4, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="level of the interval", ylabel="share of truths inside")
    axes.legend(frameon=False, fontsize="small")


def plot_reliability(mean: Any, std: Any, truth: Any, mask: Any = None, *, bins: int = 20, name: str = "predictions") -> Figure:
    """Two views of calibration: the share of truths in central intervals by level, and the PIT's histogram with its 95 % band.

    The band is that of `ldm_filter.metrics.pit_histogram`: series are resampled whole, since neighbouring steps err alike.

    Args:
        mean, std, truth: ``(series, time, ...)`` of Gaussian predictions and what came; the first axis holds what is independent.
        mask: boolean of the same shape, True where an entry counts.
        bins: of the histogram.
        name: in the legend.

    Raises:
        ValueError: shapes differ, or a NaN counts.
    """
    values = metrics.pit(mean, std, truth, mask)
    found = metrics.pit_histogram(values, bins=bins)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_reliability(left, {name: values[~np.isnan(values)]}, {name: BLUE})
    edges = np.linspace(0.0, 1.0, bins + 1)
    right.stairs(found.density, edges, color=BLUE, fill=True, alpha=0.4)
    right.vlines((edges[1:] + edges[:-1]) / 2, found.low, found.high, color=BLUE, lw=1)
    right.axhline(1.0, color=GREY, lw=0.8, ls="--")
    right.set(xlim=(0, 1), xlabel="PIT", ylabel="density, 1 where calibrated")
    for axes in (left, right):
        bare(axes)
    return figure
