"""A typical year of hourly weather at Greensboro, North Carolina: six channels with a day and a year in them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pandas as pd

__all__ = ["CHANNELS", "load"]

CHANNELS = {
    "Dry-bulb (C)": "temperature",
    "Dew-point (C)": "dew_point",
    "RHum (%)": "humidity",
    "Pressure (mbar)": "pressure",
    "Wspd (m/s)": "wind",
    "GHI (W/m^2)": "sun",
}
FILE = "723170TYA.CSV"


def load() -> pd.DataFrame:
    """The file as it ships with pvlib, read in place.

    Returns:
        8760 rows, one an hour, ``DatetimeIndex`` named ``time``; columns ``temperature`` and ``dew_point`` (degrees Celsius), ``humidity`` (%),
        ``pressure`` (mbar), ``wind`` (m/s), ``sun`` (global horizontal irradiance, W/m^2), float64. The year is made of typical months of several
        years, joined where one month ends; the index counts them through as 2001, local standard time, each row the hour that begins there.

    Raises:
        ModuleNotFoundError: pvlib is not installed.

    Source:
        Wilcox and Marion, Users Manual for TMY3 Data Sets, NREL/TP-581-43156 (2008); ships with pvlib (BSD-3-Clause), the data are NREL's.

    >>> load().shape
    (8760, 6)
    """
    found = find_spec("pvlib")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "this data set ships with the package pvlib, which is not installed; run: pip install ldm-filter[benchmarks]", name="pvlib"
        )
    table = pd.read_csv(Path(found.origin).parent / "data" / FILE, skiprows=1, usecols=list(CHANNELS))
    frame = table[list(CHANNELS)].rename(columns=CHANNELS).astype(float)
    return frame.set_axis(pd.date_range("2001-01-01", periods=len(frame), freq="h", name="time"), axis=0)
