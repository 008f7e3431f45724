"""The boundary: the only room that knows pandas, xarray, files and NaN."""

from __future__ import annotations

from ldm_filter.data.labels import describe, from_description, parse
from ldm_filter.data.times import future_times, median_step, seconds

__all__ = ["describe", "from_description", "future_times", "median_step", "parse", "seconds"]
