"""One observation at a time: the same filter as over a whole series, at constant cost, with a state that can be put away.

The door; what is behind it is in `ldm_filter.streams`.
"""

from __future__ import annotations

from ldm_filter.streams.filter import OnlineFilter
from ldm_filter.streams.modules import ModuleStep
from ldm_filter.streams.results import OnlineState, Smoothed, StepResult

__all__ = ["ModuleStep", "OnlineFilter", "OnlineState", "Smoothed", "StepResult"]
