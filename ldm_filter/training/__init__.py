"""Training: :func:`~ldm_filter.training.loop.train` is the loop, read top to bottom."""

from __future__ import annotations

from ldm_filter.training.loop import train
from ldm_filter.training.options import CollapseError, History, TrainingOptions

__all__ = ["CollapseError", "History", "TrainingOptions", "train"]
