"""Weekly CO2 at Mauna Loa, 1958 to 2001: a trend, a season, and 59 weeks that are really missing."""

from __future__ import annotations

import pandas as pd

from datasets.packages import require

__all__ = ["load"]


def load() -> pd.DataFrame:
    """The record as it ships with statsmodels, read in place.

    Returns:
        2284 rows, one a week (Saturdays), ``DatetimeIndex`` named ``time``; one column ``co2`` in parts per million, float64,
        NaN in the 59 weeks without a measurement.

    Raises:
        ModuleNotFoundError: statsmodels is not installed.

    Source:
        Keeling and Whorf (2004), Carbon Dioxide Information Analysis Center, Oak Ridge; public domain.

    >>> load().isna().sum().item()
    59
    """
    table = require("statsmodels.datasets.co2").load_pandas().data
    return table.astype(float).rename_axis(index="time")
