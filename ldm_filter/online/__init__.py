"""One observation at a time: the same filter as over a whole series, at constant cost, with a state that can be put away."""

from __future__ import annotations

from ldm_filter.online.filter import OnlineFilter
from ldm_filter.online.results import OnlineState, Smoothed, StepResult

__all__ = ["OnlineFilter", "OnlineState", "Smoothed", "StepResult"]
