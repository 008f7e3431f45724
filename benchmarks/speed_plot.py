"""How the cost of one filter step grows with each size, drawn log-log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

__all__ = ["draw"]

TITLES = {"batch": "sequences B", "steps": "steps T", "n": "state dimension n", "m": "measurement dimension m"}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel an axis, a line for each competitor and regime: nanoseconds per step and sequence, forward + backward.

    Args:
        rows: of the curves; none are no picture.
        path: of the PNG.
    """
    axes = [axis for axis in TITLES if any(row["axis"] == axis for row in rows)]
    if not axes:
        return
    figure = Figure(figsize=(3.1 * len(axes), 3.2), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        for name, style in _lines(rows).items():
            points = sorted((row["value"], 1e9 / row["rate"]) for row in rows if row["axis"] == axis and _name(row) == name and "rate" in row)
            if points:
                panel.loglog(*zip(*points, strict=True), style, label=name, markersize=4, linewidth=1.2)
        panel.set_xlabel(TITLES[axis])
        values = sorted({row["value"] for row in rows if row["axis"] == axis})
        panel.set_xticks(values, [f"{value:g}" if value < 10_000 else f"{value:.0e}" for value in values])
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("ns per step, forward + backward")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize="small")
    figure.savefig(path, dpi=90)


def _name(row: dict[str, Any]) -> str:
    return f"{row['entrant']}, {row['regime']}"


def _lines(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Name -> style, in the order of first appearance."""
    names = dict.fromkeys(_name(row) for row in rows)
    return dict(zip(names, ("o-", "s-", "^--", "d--", "v:", "x:"), strict=False))
