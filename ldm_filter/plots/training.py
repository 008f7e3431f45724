"""How training went."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ldm_filter.plots.style import BLACK, BLUE, GREEN, GREY, VERMILLION, bare
from ldm_filter.training import History

__all__ = ["plot_training"]


def plot_training(history: History) -> Figure:
    """Training and validation loss per epoch, the epoch whose weights were kept, and what the loss is made of.

        loss = gauge - alignment - entropy     (nats per step)

    Args:
        history: ``model.history_``.

    Returns:
        The figure.

    Raises:
        ValueError: no epoch in it.
    """
    if not history.epochs:
        raise ValueError("history holds no epoch; fit the model first and give model.history_")
    table = pd.DataFrame(history.epochs)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = table["epoch"]
    left.plot(epochs, table["loss"], color=BLUE, marker="o", markersize=3, label="training")
    prefix = "validation_" if "validation_loss" in table else ""
    if prefix:
        left.plot(epochs, table["validation_loss"], color=VERMILLION, marker="o", markersize=3, label="validation")
    left.axvline(history.best_epoch, color=GREY, linewidth=1, linestyle="--", label="weights kept")
    right.plot(epochs, table[f"{prefix}alignment"], color=GREEN, marker="o", markersize=3, label="alignment")
    right.plot(epochs, table[f"{prefix}entropy"], color=BLACK, marker="o", markersize=3, label="entropy")
    left.set_ylabel("loss (nats per step)")
    right.set_ylabel(f"{'validation' if prefix else 'training'} (nats per step)")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        bare(axes)
    return figure
