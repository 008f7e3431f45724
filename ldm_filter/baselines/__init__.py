"""Classical filters, to be shown beside every learned result: no gradient descent, no network.

Series are ndarrays ``(time, channel)`` or ``(series, time, channel)``, NaN = missing; results have the same shape. `PCAKalman` takes whole
observations ``(series, time, ...)``, such as frames.
"""

from __future__ import annotations

from ldm_filter.baselines.constant_velocity import ConstantVelocity, constant_velocity_smoother
from ldm_filter.baselines.naive import HoldLast, LinearInterpolation, SeasonalNaive, hold_last, linear_interpolation, seasonal_naive
from ldm_filter.baselines.pca import PCAKalman
from ldm_filter.baselines.series import Forecast
from ldm_filter.baselines.var import VARKalman

__all__ = [
    "ConstantVelocity",
    "Forecast",
    "HoldLast",
    "LinearInterpolation",
    "PCAKalman",
    "SeasonalNaive",
    "VARKalman",
    "constant_velocity_smoother",
    "hold_last",
    "linear_interpolation",
    "seasonal_naive",
]
