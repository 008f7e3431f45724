"""Exact Kalman filtering of whatever a network can look at: learned encoders, no labels, honest uncertainty."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm_filter.checkpoint import CheckpointError
    from ldm_filter.core.backends import backend
    from ldm_filter.core.gating import Gate
    from ldm_filter.core.kalman import filter_sequence, forecast
    from ldm_filter.core.smoothing import smooth_sequence
    from ldm_filter.estimator import LDMFilter
    from ldm_filter.training import CollapseError
    from ldm_filter.types import FilterResult, Gaussian, SmootherResult, StateSpace

__all__ = [
    "CheckpointError",
    "CollapseError",
    "FilterResult",
    "Gate",
    "Gaussian",
    "LDMFilter",
    "SmootherResult",
    "StateSpace",
    "__version__",
    "backend",
    "filter_sequence",
    "forecast",
    "smooth_sequence",
]

__version__ = version("ldm-filter")

# Public names are imported when first used: `ldm-filter --help` need not wait for torch.
_HOMES = {
    "CheckpointError": "checkpoint",
    "CollapseError": "training",
    "Gate": "core.gating",
    "LDMFilter": "estimator",
    "backend": "core.backends",
    "filter_sequence": "core.kalman",
    "forecast": "core.kalman",
    "smooth_sequence": "core.smoothing",
    **dict.fromkeys(("FilterResult", "Gaussian", "SmootherResult", "StateSpace"), "types"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    if name == "LDMFilter":
        import_module(f"{__name__}.accessors")  # data.ldm and result.ldm
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
