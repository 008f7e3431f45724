"""How training went."""

from __future__ import annotations

import re

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ldm_filter.plots.style import BLACK, BLUE, GREEN, GREY, SKY, VERMILLION, bare
from ldm_filter.training import History

__all__ = ["plot_training"]

COSINE_COLOURS = (BLUE, VERMILLION, GREEN, SKY, BLACK)


def plot_training(history: History) -> Figure:
    """Loss per epoch, what it is made of, the health of the latents, and how far other estimators agree: one panel each, where there is one.

        loss = gauge - alignment - entropy     (nats per step)

    The epoch whose weights were kept is marked, and so is every epoch after which a collapse was detected and the weights were set back.

    Args:
        history: ``model.history_``. The gradients' cosines are there after ``fit(..., compare=("knn", "stop-gradient"))``.

    Returns:
        The figure. Health: effective dimension (the participation ratio of the latents' covariance), the least standard deviation of the latents
        in any direction, 0 where they have collapsed, and NIS / m.

    Raises:
        ValueError: no epoch in it.
    """
    if not history.epochs:
        raise ValueError("history holds no epoch; fit the model first and give model.history_")
    table = pd.DataFrame(history.epochs)
    prefix = "validation_" if "validation_loss" in table else ""
    health = [name for name in ("dimension", "spread", "nis") if f"{prefix}{name}" in table]
    cosines = [str(name) for name in table if str(name).startswith("cosine_")]
    count = 2 + bool(health) + bool(cosines)
    figure = Figure(figsize=(4.5 * count, 3.2), layout="constrained")
    axes = figure.subplots(1, count)
    _losses(axes[0], table, history.best_epoch)
    for name, colour in (("alignment", GREEN), ("entropy", BLACK)):
        _curve(axes[1], table, f"{prefix}{name}", name, colour)
    axes[1].set_ylabel(f"{'validation' if prefix else 'training'} (nats per step)")
    if health:
        for name, colour in zip(health, (BLUE, VERMILLION, GREEN), strict=False):
            _curve(axes[2], table, f"{prefix}{name}", {"dimension": "effective dimension", "nis": "NIS / m"}.get(name, name), colour)
        axes[2].set_ylim(bottom=0.0)
        axes[2].set_ylabel("health of the latents")
    for index, name in enumerate(cosines):
        _curve(axes[-1], table, name, name.removeprefix("cosine_"), COSINE_COLOURS[index % len(COSINE_COLOURS)])
    if cosines:
        axes[-1].set_ylim(-1.05, 1.05)
        axes[-1].set_ylabel("cosine of the gradients")
    for panel in axes:
        _finish(panel, history.events)
    return figure


def _losses(axes: Axes, table: pd.DataFrame, best_epoch: int) -> None:
    _curve(axes, table, "loss", "training", BLUE)
    if "validation_loss" in table:
        _curve(axes, table, "validation_loss", "validation", VERMILLION)
    axes.axvline(best_epoch, color=GREY, linewidth=1, linestyle="--", label="weights kept")
    axes.set_ylabel("loss (nats per step)")


def _curve(axes: Axes, table: pd.DataFrame, name: str, label: str, colour: str) -> None:
    axes.plot(table["epoch"], table[name], color=colour, marker="o", markersize=3, label=label)


def _finish(axes: Axes, events: list[str]) -> None:
    collapsed = [int(found.group(1)) for event in events if (found := re.match(r"epoch (\d+): .*at half the rate", event))]
    for index, epoch in enumerate(collapsed):
        axes.axvline(epoch, color=VERMILLION, linewidth=1, linestyle=":", label="_" if index else "collapse, set back")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    bare(axes)
