"""How often the truth lies inside the regions that the learned filters give, drawn against how often it should."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from benchmarks.families import TASKS, conditions_of, family_of
from benchmarks.records import Row, newest

__all__ = ["draw", "shares"]

LEVELS = (0.5, 0.8, 0.95)
VARIANTS = {"": "as the filter gives it", "_turned": "turned with the estimate", "_scaled": "scaled by one factor"}


def shares(rows: Sequence[Row], variant: str) -> dict[str, list[tuple[float, float]]]:
    """Task and condition -> pairs (level, share of true values inside, mean over seeds) of the family's own method, in the ``cpu`` budget."""
    found: dict[str, list[tuple[float, float]]] = {}
    for task in TASKS:
        for condition in conditions_of(task)[:1]:
            method = family_of(task, condition).default_methods(task, condition)[0]
            asked = (task, condition, method, "cpu")
            metrics = [row["metrics"] for row in newest(rows) if (row["task"], row["condition"], row["method"], row["budget"]) == asked]
            names = {level: f"coverage{100 * level:.0f}{variant}" for level in LEVELS}
            pairs = [(level, mean(one[name] for one in metrics)) for level, name in names.items() if metrics and all(name in one for one in metrics)]
            if pairs:
                found[task] = pairs
    return found


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for each covariance that is given, a line for each task; on the diagonal a filter says of itself what is true.

    Args:
        rows: runs, see `records.read`; where none says a share there is no picture.
        path: of the PNG.
    """
    panels = {title: found for variant, title in VARIANTS.items() if (found := shares(rows, variant))}
    if not panels:
        return
    names = [task for task in TASKS if any(task in found for found in panels.values())]
    figure = Figure(figsize=(3.6 * len(panels) + 1.8, 4.0), layout="constrained")
    for axes, (title, found) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True):
        axes.plot([0.4, 1.0], [0.4, 1.0], color="0.6", linewidth=1.0)
        axes.axhspan(0.92, 0.97, xmin=(0.93 - 0.4) / 0.6, xmax=(0.97 - 0.4) / 0.6, color="0.85", label="92 to 97 % at 95 %")
        for task, pairs in found.items():
            k = names.index(task)
            axes.plot(
                *zip(*pairs, strict=True), "o-v-s-^-"[2 * (k // 10) : 2 * (k // 10) + 2], color=f"C{k % 10}", label=task, markersize=4, linewidth=1
            )
        axes.set(title=title, xlabel="level of the region", xlim=(0.4, 1.0), ylim=(0.4, 1.0), xticks=LEVELS)
        axes.title.set_fontsize("medium")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of the truth inside")
    labelled = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled.keys(), loc="outside right center", frameon=False, fontsize="x-small")
    figure.savefig(path, dpi=90)
