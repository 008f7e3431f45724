"""``data.ldm`` and ``result.ldm``: the filter as a method of pandas and xarray objects. Registered when LDMFilter is first used.

>>> import numpy as np, pandas as pd, ldm_filter
>>> walk = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)).cumsum(0), columns=["a", "b"])
>>> model = walk.ldm.fit(state_dim=2, epochs=1, progress=False)
>>> walk.ldm.filter(model).filtered_mean.shape
(200, 2)
"""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from ldm_filter.estimator import LDMFilter
from ldm_filter.plots import plot_filter

__all__ = ["LDMAccessor"]


class LDMAccessor:
    """Methods of :class:`~ldm_filter.LDMFilter` on the data, and plots of results.

    Args:
        data: a DataFrame, a DataArray or Dataset of channels, or a Dataset that ``filter`` or ``smooth`` returned.
    """

    def __init__(self, data: Any) -> None:
        self._data = data

    def fit(self, state_dim: int | str, *, epochs: int | None = None, progress: bool = True, validation: Any = 0.1, **arguments: Any) -> LDMFilter:
        """``LDMFilter(state_dim, **arguments)`` fitted on this data (data in chunks is loaded)."""
        return LDMFilter(state_dim, **arguments).fit(_loaded(self._data), epochs=epochs, progress=progress, validation=validation)

    def filter(self, model: LDMFilter, **arguments: Any) -> Any:
        """``model.filter``; where the series are chunks of dask, lazily, chunk by chunk."""
        return self._apply(model, "filter", arguments)

    def smooth(self, model: LDMFilter, **arguments: Any) -> Any:
        """``model.smooth``; where the series are chunks of dask, lazily, chunk by chunk."""
        return self._apply(model, "smooth", arguments)

    def forecast(self, model: LDMFilter, horizon: int, **arguments: Any) -> Any:
        """``model.forecast``; where the series are chunks of dask, lazily, chunk by chunk."""
        return self._apply(model, "forecast", {"horizon": horizon} | arguments)

    def anomalies(self, model: LDMFilter, **arguments: Any) -> Any:
        """``model.anomalies``; where the series are chunks of dask, lazily, chunk by chunk."""
        return self._apply(model, "anomalies", arguments)

    def plot(self, data: Any = None, **arguments: Any) -> Figure:
        """Estimate with band, gaps and what else :func:`~ldm_filter.plots.plot_filter` draws, in the units of the data.

        Raises:
            ValueError: this is no result of ``filter`` or ``smooth``.
        """
        if not (isinstance(self._data, xr.Dataset) and "reconstruction_mean" in self._data):
            raise ValueError(
                "there is no reconstruction_mean here to draw; call plot on what filter or smooth returned: data.ldm.filter(model).ldm.plot()"
            )
        units = json.loads(self._data.attrs.get("channel_units", "{}"))
        if isinstance(data, xr.Dataset):
            data = data.to_dataarray("channel").transpose(..., "channel")
        return plot_filter(self._data, data, **({"units": units} if units else {}) | arguments)

    def _apply(self, model: LDMFilter, method: str, arguments: dict[str, Any]) -> Any:
        units = _units(self._data)
        if not _in_chunks(self._data) or "series" not in self._data.dims:
            return _with_units(getattr(model, method)(_loaded(self._data), **arguments), units)
        whole = self._data.chunk({dim: -1 for dim in self._data.dims if dim != "series"})

        def block(part: Any) -> xr.Dataset:
            result = getattr(model, method)(part.reset_coords(drop=True) if isinstance(part, xr.DataArray) else part, **arguments)
            return xr.Dataset(result.variables, attrs={})

        first = block(whole.isel(series=[0]).compute())
        count = {"series": self._data.sizes["series"]}
        variables = {name: _stretched(variable, whole) for name, variable in first.data_vars.items()}
        template = xr.Dataset(variables, {name: part for name, part in first.coords.items() if "series" not in part.dims}, attrs=first.attrs)
        template = template.assign_coords({name: whole[name] for name in ("series",) if name in whole.coords})
        assert template.sizes["series"] == count["series"]
        return _with_units(xr.map_blocks(block, whole, template=template), units)


def _stretched(variable: xr.DataArray, whole: Any) -> xr.DataArray:
    """One series' result as a lazy placeholder for all of them, in the chunks of the data."""
    if "series" not in variable.dims:
        return variable.chunk()
    sizes = whole.chunksizes["series"]
    wide = variable.isel(series=0, drop=True).expand_dims(series=sum(sizes))
    return wide.chunk({"series": sizes} | {dim: -1 for dim in wide.dims if dim != "series"}).transpose(*variable.dims)


def _in_chunks(data: Any) -> bool:
    return isinstance(data, xr.DataArray | xr.Dataset) and bool(data.chunksizes)


def _loaded(data: Any) -> Any:
    return data.compute() if _in_chunks(data) else data


def _units(data: Any) -> dict[str, str]:
    """Units by channel: of the variables of a Dataset, of a DataArray's coordinate, or of a DataFrame's attributes."""
    if isinstance(data, xr.Dataset):
        return {str(name): str(variable.attrs["units"]) for name, variable in data.data_vars.items() if "units" in variable.attrs}
    given = data.attrs.get("units")
    if isinstance(given, dict):
        return {str(name): str(unit) for name, unit in given.items()}
    if given is None or not isinstance(data, xr.DataArray) or "channel" not in data.coords:
        return {}
    return {str(name): str(given) for name in data.coords["channel"].to_numpy()}


def _with_units(result: Any, units: dict[str, str]) -> Any:
    if units and isinstance(result, xr.Dataset):
        result.attrs["channel_units"] = json.dumps(units)
    elif units and isinstance(result, pd.DataFrame):
        result.attrs["units"] = units
    return result


pd.api.extensions.register_dataframe_accessor("ldm")(LDMAccessor)
xr.register_dataset_accessor("ldm")(LDMAccessor)
xr.register_dataarray_accessor("ldm")(LDMAccessor)
