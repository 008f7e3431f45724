"""Frames with the filtered position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import chi2

from ldm_filter.plots.curves import check_single
from ldm_filter.plots.style import LEVEL, SKY, VERMILLION, legend

__all__ = ["plot_video"]

MOST_FRAMES = 6


def plot_video(frames: Any, result: xr.Dataset, truth: Any = None, steps: Sequence[int] | None = None) -> Figure:
    """A few frames in a row, each with the filtered position, its 95 % ellipse, and the truth.

        ellipse: (p - mean)' cov^-1 (p - mean) = chi2_2^-1(0.95)

    Args:
        frames: ``(time, y, x)``.
        result: of ``model.filter(frames)`` after ``model.fit_readout(frames, positions)``, for one video: ``target_mean (time, target)`` and
            ``target_cov``, the targets being x and y in pixels.
        truth: true positions ``(time, 2)``, x and y in pixels.
        steps: frames to show; default six in a row from the middle.

    Returns:
        The figure.

    Raises:
        TypeError: a list of results.
        ValueError: no read-out of two targets, several videos, lengths that do not fit, or a step that is not there.
    """
    check_single(result)
    for name in ("target_mean", "target_cov"):
        if name not in result:
            raise ValueError(f"result has no {name}; call model.fit_readout(frames, positions in pixels) before model.filter(frames)")
    mean, cov = result["target_mean"].values, result["target_cov"].values
    images = np.asarray(frames, dtype=float)
    if images.ndim != 3 or len(images) != len(mean) or mean.shape[-1] != 2:
        raise ValueError(f"frames have shape {images.shape} and target_mean {mean.shape}; expected (time, y, x) and (time, 2) with one time")
    places = None if truth is None else np.asarray(truth, dtype=float)
    if places is not None and places.shape != mean.shape:
        raise ValueError(f"truth has shape {places.shape}, expected {mean.shape}: x and y of every frame")
    shown = _shown(steps, len(images))
    figure = Figure(figsize=(2.0 * len(shown), 3.2), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    limits = dict(zip(("vmin", "vmax"), np.quantile(images[shown], (0.05, 0.95)), strict=True))
    for axes, step in zip(panels, shown, strict=True):
        axes.imshow(images[step], origin="lower", cmap="gray", **limits)
        _draw_ellipse(axes, mean[step], cov[step])
        axes.plot(*mean[step], "+", color=VERMILLION, markersize=10, markeredgewidth=2, label="filtered position")
        if places is not None:
            axes.plot(*places[step], "o", color=SKY, markerfacecolor="none", markersize=8, markeredgewidth=1.8, label="true position")
        axes.set_title(f"frame {step}", fontsize=10)
        axes.set_xlabel("x (pixels)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlim(-0.5, images.shape[2] - 0.5)
        axes.set_ylim(-0.5, images.shape[1] - 0.5)
    panels[0].set_ylabel("y (pixels)")
    handles, labels = panels[0].get_legend_handles_labels()
    legend(figure, dict(zip(labels, handles, strict=True)))
    return figure


def _shown(steps: Sequence[int] | None, length: int) -> list[int]:
    if steps is None:
        first = max(0, (length - MOST_FRAMES) // 2)
        return list(range(first, min(length, first + MOST_FRAMES)))
    wrong = [step for step in steps if not 0 <= step < length]
    if wrong or not len(steps):
        raise ValueError(f"steps is {list(steps)}, expected frames from 0 to {length - 1}")
    return [int(step) for step in steps]


def _draw_ellipse(axes: Axes, mean: NDArray, cov: NDArray) -> None:
    variances, directions = np.linalg.eigh(cov)
    width, height = 2 * np.sqrt(np.maximum(variances, 0) * chi2.ppf(LEVEL, 2))
    angle = float(np.degrees(np.arctan2(directions[1, 0], directions[0, 0])))
    axes.add_patch(Ellipse(tuple(mean), width, height, angle=angle, fill=False, color=VERMILLION, linewidth=1.6, label="95 % ellipse"))
