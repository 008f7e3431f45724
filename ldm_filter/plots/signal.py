"""A signal, its estimate, gaps and forecast over one time axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import norm

from ldm_filter.plots.curves import Curve, beside, choose, continuation, gap_steps, reconstruction
from ldm_filter.plots.style import BLACK, BLUE, GREY, LEVEL, VERMILLION, bare, legend

__all__ = ["plot_filter"]

Z = float(norm.ppf(0.5 + LEVEL / 2))
MOST_SECONDS = 600.0  # a longer recording with time stamps is drawn over its dates


def plot_filter(
    result: xr.Dataset,
    data: Any = None,
    channels: Iterable[Any] | None = None,
    truth: Any = None,
    forecast: Any = None,
    gaps: Any = None,
    *,
    units: Mapping[Any, str] | None = None,
) -> Figure:
    """Signal, estimate with its 95 % band, shaded gaps, and a forecast after a vertical line; one panel per channel, one time axis.

        band = mean +- 1.96 std,   mean and std of the observation given the state

    Args:
        result: of ``model.filter`` or ``model.smooth`` for one series: a Dataset with ``reconstruction_mean`` and ``_std``, ``(time, channel)``.
        data: what was filtered, ``(time, channel)`` in any container, NaN = missing; drawn as dots.
        channels: names of those to draw; default all, at most six.
        truth: values that the filter was not shown, ``(time, channel)``; may go on beyond the data, to be held against the forecast.
        forecast: of ``model.forecast`` for the same series: a DataFrame or a Dataset.
        gaps: bool ``(time,)``, True where shaded; default the steps at which ``result.observed`` is False for a drawn channel.
        units: of the channels, ``{"ax": "g"}``.

    Returns:
        The figure.

    Raises:
        TypeError: a list of results, or data of an unknown kind.
        ValueError: several series, a variable or channel that is not there, or lengths that do not fit.
    """
    estimate = reconstruction(result)
    chosen = choose(channels, estimate.channels)
    ahead = None if forecast is None else continuation(forecast, estimate)
    clock = _Clock(estimate.time)
    shaded = gap_steps(gaps, result, chosen, estimate)
    seen = None if data is None else beside("data", data, estimate, estimate.time)
    following = estimate.time if ahead is None else np.concatenate([estimate.time, ahead.time])
    known = None if truth is None else beside("truth", truth, estimate, following)
    figure = Figure(figsize=(12, 1.2 + 1.6 * len(chosen)), layout="constrained")
    panels = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
    for axes, channel in zip(panels, chosen, strict=True):
        index = estimate.channels.index(channel)
        entries = _draw_points(axes, clock, seen, index, "measured", {"color": BLACK})
        entries |= _draw_points(axes, clock, known, index, "hidden from the filter", {"color": GREY, "markerfacecolor": "white"})
        entries |= _draw_gaps(axes, clock.place(estimate.time), shaded)
        entries |= _draw_curve(axes, clock, estimate, index, "estimate, 95 % band", BLUE)
        if ahead is not None:
            axes.axvline(clock.place(estimate.time[-1:])[0], color=BLACK, linewidth=1)
            entries |= _draw_curve(axes, clock, ahead, index, "forecast, 95 % band", VERMILLION)
        unit = (units or {}).get(channel)
        axes.set_ylabel(f"{channel} ({unit})" if unit else str(channel))
        axes.margins(x=0.005)
        bare(axes)
    clock.label(panels[-1], result)
    legend(figure, entries)
    return figure


class _Clock:
    """Time on the axis: seconds since the first stamp of a short recording, dates of a long one, else the numbers themselves."""

    def __init__(self, time: NDArray) -> None:
        self.start = time[0]
        self.stamped = np.issubdtype(np.asarray(time).dtype, np.datetime64)
        self.seconds = self.stamped and (time[-1] - time[0]) / np.timedelta64(1, "s") <= MOST_SECONDS

    def place(self, time: NDArray) -> NDArray:
        return (time - self.start) / np.timedelta64(1, "s") if self.seconds else time

    def label(self, axes: Axes, result: xr.Dataset) -> None:
        if self.seconds:
            axes.set_xlabel("time (s)")
        elif self.stamped:
            locator = AutoDateLocator()
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
            axes.set_xlabel(f"time ({result.attrs.get('time_zone', 'as recorded')})")
        else:
            name = str(result["reconstruction_mean"].dims[0])
            unit = result[name].attrs.get("units", "steps") if name in result.coords else "steps"
            axes.set_xlabel(f"{name} ({unit})")


def _draw_gaps(axes: Axes, time: NDArray, shaded: NDArray[np.bool_]) -> dict[str, Any]:
    """A grey band per run of missing steps, from the last seen step to the next, where there are such; what to put into the legend."""
    edges = np.flatnonzero(np.diff(shaded, prepend=False, append=False))
    bands = [
        axes.axvspan(time[max(start - 1, 0)], time[min(stop, len(time) - 1)], color="0.9", linewidth=0, zorder=0)
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
    ]
    return {"gap": bands[0]} if bands else {}


def _draw_points(axes: Axes, clock: _Clock, curve: Curve | None, index: int, label: str, style: dict[str, Any]) -> dict[str, Any]:
    if curve is None:
        return {}
    (points,) = axes.plot(clock.place(curve.time), curve.mean[:, index], "o", markersize=2.6, markeredgewidth=0.6, zorder=2, label=label, **style)
    return {label: points}


def _draw_curve(axes: Axes, clock: _Clock, curve: Curve, index: int, label: str, color: str) -> dict[str, Any]:
    time, mean, half = clock.place(curve.time), curve.mean[:, index], Z * curve.std[:, index]
    (line,) = axes.plot(time, mean, color=color, linewidth=1.4, zorder=3, label=label)
    band = axes.fill_between(time, mean - half, mean + half, color=color, alpha=0.25, linewidth=0, zorder=1)
    return {label: (band, line)}
