"""The boundary: the only room that knows pandas, xarray, files and NaN."""

from __future__ import annotations

from ldm_filter.data.clips import Clips
from ldm_filter.data.forecasts import forecast_output
from ldm_filter.data.io import read, write
from ldm_filter.data.labels import describe, from_description, parse
from ldm_filter.data.merge import merge
from ldm_filter.data.results import estimate_output, to_dataset
from ldm_filter.data.scaling import statistics
from ldm_filter.data.times import future_times, median_step, seconds
from ldm_filter.data.windows import Windows, split

__all__ = [
    "Clips",
    "Windows",
    "describe",
    "estimate_output",
    "forecast_output",
    "from_description",
    "future_times",
    "median_step",
    "merge",
    "parse",
    "read",
    "seconds",
    "split",
    "statistics",
    "to_dataset",
    "write",
]
