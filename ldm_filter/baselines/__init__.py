"""Classical methods, to be shown beside every learned result: no gradient descent, no network.

`Baseline` takes and gives what `LDMFilter` does, and ``LDMFilter.compare`` puts them side by side. The methods themselves take ndarrays
``(time, channel)`` or ``(series, time, channel)``, NaN = missing, and their results have the same shape: ``fit``, ``one_step``, ``smooth`` (or
``fill``), ``forecast``, and ``state`` for what a read-out of targets takes. `PCAKalman` takes whole observations ``(series, time, ...)``, such as
frames. `EKF`, `UKF` and `ParticleFilter` take `StateEquations` that the user knows.
"""

from __future__ import annotations

from ldm_filter.baselines.em_series import PCAKalmanSeries
from ldm_filter.baselines.kinematic import ConstantAcceleration, ConstantVelocity, constant_velocity_smoother
from ldm_filter.baselines.known import EKF, UKF, ParticleFilter, StateEquations
from ldm_filter.baselines.labelled import Baseline
from ldm_filter.baselines.naive import HoldLast, LinearInterpolation, SeasonalNaive, hold_last, linear_interpolation, seasonal_naive
from ldm_filter.baselines.pca import PCAKalman
from ldm_filter.baselines.series import Forecast
from ldm_filter.baselines.structural import DynamicFactor, UnobservedComponents
from ldm_filter.baselines.var import VARKalman

__all__ = [
    "EKF",
    "UKF",
    "Baseline",
    "ConstantAcceleration",
    "ConstantVelocity",
    "DynamicFactor",
    "Forecast",
    "HoldLast",
    "LinearInterpolation",
    "PCAKalman",
    "PCAKalmanSeries",
    "ParticleFilter",
    "SeasonalNaive",
    "StateEquations",
    "UnobservedComponents",
    "VARKalman",
    "constant_velocity_smoother",
    "hold_last",
    "linear_interpolation",
    "seasonal_naive",
]
