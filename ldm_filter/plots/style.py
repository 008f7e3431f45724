"""What the pictures share: colours, the level of the bands, bare axes, one legend above all panels."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["BLACK", "BLUE", "GREEN", "GREY", "LEVEL", "SKY", "VERMILLION", "bare", "legend"]

# Okabe and Ito 2008
BLACK, BLUE, SKY, GREEN, VERMILLION, GREY = "#000000", "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#666666"
LEVEL = 0.95


def bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, entries: dict[str, Any]) -> None:
    figure.legend(list(entries.values()), list(entries), loc="outside upper center", ncols=len(entries), frameon=False)
