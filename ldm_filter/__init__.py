"""Exact Kalman filtering of whatever a network can look at: learned encoders, no labels, honest uncertainty."""

from __future__ import annotations

from importlib.metadata import version

from ldm_filter.checkpoint import CheckpointError
from ldm_filter.core.kalman import filter_sequence, forecast
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.estimator import LDMFilter
from ldm_filter.training import CollapseError
from ldm_filter.types import FilterResult, Gaussian, SmootherResult, StateSpace

__all__ = [
    "CheckpointError",
    "CollapseError",
    "FilterResult",
    "Gaussian",
    "LDMFilter",
    "SmootherResult",
    "StateSpace",
    "__version__",
    "filter_sequence",
    "forecast",
    "smooth_sequence",
]

__version__ = version("ldm-filter")
