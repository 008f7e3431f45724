"""Baselines by name, with what a name leaves open chosen from the data."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ldm_filter.baselines.em_series import MOST_CHANNELS, PCAKalmanSeries
from ldm_filter.baselines.kinematic import ConstantAcceleration, ConstantVelocity
from ldm_filter.baselines.naive import HoldLast, LinearInterpolation, SeasonalNaive
from ldm_filter.baselines.series import Forecast
from ldm_filter.baselines.structural import DynamicFactor, UnobservedComponents
from ldm_filter.baselines.var import VARKalman

__all__ = ["NAMES", "Method", "Sizes", "by_name", "default_names"]

NAMES = (
    *("hold-last", "linear-interpolation", "seasonal-naive", "cv-kf", "ca-kf", "var<order>", "pca-em-kf", "pca-em-kf-adaptive"),
    *("uc", "dynamic-factor"),
)


class Method(Protocol):
    """What every baseline can do with series ``(series, time, channel)``, NaN = missing. ``smooth`` or ``fill`` fills gaps; ``state``, where there
    is one, gives the filtered state that a read-out of targets takes."""

    def fit(self, values: Any, observed: Any = None) -> Any: ...

    def one_step(self, values: Any, observed: Any = None) -> Forecast: ...

    def forecast(self, values: Any, horizon: int, observed: Any = None) -> Forecast: ...


class Sizes(NamedTuple):
    """What names leave open.

    Attributes:
        channels: of the data. state_dim, latent_dim: of the learned filter, which `PCAKalmanSeries` takes as well.
        season: steps of a season, None for none.
        dt: seconds (or any unit) of a step.
    """

    channels: int
    state_dim: int = 4
    latent_dim: int | None = None
    season: int | None = None
    dt: float = 1.0


def by_name(name: str, sizes: Sizes) -> Method:
    """A new baseline: one of ``NAMES``, as ``"var6"`` with an order.

    Raises:
        ValueError: an unknown name, or ``"seasonal-naive"`` without a season.
    """
    if match := re.fullmatch(r"var(\d+)", name):
        return VARKalman(int(match[1]))
    if name == "seasonal-naive" and sizes.season is None:
        raise ValueError("baselines holds 'seasonal-naive', which needs season=, the steps of a season")
    latent = None if sizes.latent_dim is None else min(sizes.latent_dim, sizes.channels)
    makers: dict[str, Callable[[], Any]] = {
        "hold-last": HoldLast,
        "linear-interpolation": LinearInterpolation,
        "seasonal-naive": lambda: SeasonalNaive(int(sizes.season or 1)),
        "cv-kf": lambda: ConstantVelocity(sizes.dt),
        "ca-kf": lambda: ConstantAcceleration(sizes.dt),
        "pca-em-kf": lambda: PCAKalmanSeries(sizes.state_dim, latent),
        "pca-em-kf-adaptive": lambda: PCAKalmanSeries(sizes.state_dim, latent, adaptive_noise=True),
        "uc": lambda: UnobservedComponents(sizes.season),
        "dynamic-factor": lambda: DynamicFactor(min(2, sizes.channels)),
    }
    if name not in makers:
        raise ValueError(f"baselines holds {name!r}, expected names among {', '.join(NAMES)}, or objects with their methods")
    made: Method = makers[name]()
    return made


def default_names(sizes: Sizes) -> tuple[str, ...]:
    """Those that cost seconds: all but statsmodels' for channels, and what is sensible for frames."""
    if sizes.channels > MOST_CHANNELS:
        return ("hold-last", "pca-em-kf", "pca-em-kf-adaptive")
    seasonal = () if sizes.season is None else ("seasonal-naive",)
    order = "var6" if sizes.channels <= 10 else "var2"
    return ("hold-last", "linear-interpolation", *seasonal, "cv-kf", "ca-kf", order, "pca-em-kf")
