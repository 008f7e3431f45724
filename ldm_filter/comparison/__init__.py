"""A fitted model beside classical methods on the same data: what ``LDMFilter.compare`` and ``ldm-filter compare`` run."""

from __future__ import annotations

from ldm_filter.comparison.contest import compare
from ldm_filter.comparison.result import Comparison

__all__ = ["Comparison", "compare"]
