"""Results as flat tables, for CSV and Parquet files and for the screen; columns of a table that are known inputs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

__all__ = ["flattened", "means_and_stds", "split_inputs", "summary", "table"]

_MAX_COLUMNS = 1000
_MAX_SHOWN = 50
# In the order of the table: what a reader looks for first.
_ESTIMATES = ("forecast", "reconstruction", "target", "smoothed", "filtered")
_FURTHER = ("forecast_lo", "forecast_hi", "log_likelihood", "nis")


def table(result: Any) -> pd.DataFrame:
    """A result of one series as a flat table: a row per step; means, standard deviations, bounds, log-likelihood and NIS as columns.

    Columns are called ``filtered_mean[0]`` or ``reconstruction_std[heat]``. Times are in the zone of the data. Covariances are left out.

    Args:
        result: a Dataset of ``filter``, ``smooth`` or ``forecast``; a DataFrame comes back as it is.

    Raises:
        ValueError: many series, or more columns than a table can hold (frames); the message names a format that can.
    """
    if isinstance(result, pd.DataFrame):
        return result
    flat = flattened(means_and_stds(result), "flat")
    if isinstance(flat.index, pd.DatetimeIndex) and "time_zone" in result.attrs:
        flat.index = flat.index.tz_localize("UTC").tz_convert(result.attrs["time_zone"])
    return flat


def means_and_stds(result: xr.Dataset) -> xr.Dataset:
    """The estimates of a result with a standard deviation, sqrt(diag(cov)), for every mean; covariances and what is left out of tables go.

    >>> cov = xr.DataArray([[[4.0, 1.0], [1.0, 9.0]]], dims=("time", "state", "state_aux"))
    >>> mean = xr.DataArray([[0.5, 0.7]], dims=("time", "state"))
    >>> means_and_stds(xr.Dataset({"filtered_mean": mean, "filtered_cov": cov})).filtered_std.values.tolist()
    [[2.0, 3.0]]
    """
    kept: dict[str, xr.DataArray] = {}
    for name in _ESTIMATES:
        if f"{name}_mean" not in result:
            continue
        mean = kept[f"{name}_mean"] = result[f"{name}_mean"]
        if f"{name}_cov" in result:
            variances = np.diagonal(result[f"{name}_cov"].to_numpy(), axis1=-2, axis2=-1)
        elif f"{name}_var" in result:
            variances = result[f"{name}_var"].to_numpy()
        else:
            kept[f"{name}_std"] = result[f"{name}_std"]
            continue
        kept[f"{name}_std"] = mean.copy(data=np.sqrt(variances))
    kept |= {name: result[name] for name in _FURTHER if name in result}
    return xr.Dataset(kept, attrs=result.attrs)


def summary(result: Any, rows: int = 5) -> str:
    """A result in a few lines: its head, its size, and how consistent the filter is.

    Args:
        result: as for `table`; of many series, the head is the first one's and the figures are those of all.
        rows: steps to show.
    """
    if isinstance(result, pd.DataFrame):
        return f"{_text(result.head(rows))}\n{len(result)} steps"
    first = means_and_stds(result.isel(series=0) if "series" in result.dims else result)
    frames = [name for name, variable in first.data_vars.items() if np.prod(variable.shape[1:]) > _MAX_SHOWN]
    sizes = ", ".join(f"{size} {dim}" for dim, size in result.sizes.items() if not str(dim).endswith("_aux"))
    lines = [sizes if len(frames) == len(first) else f"{_text(table(first.drop_vars(frames)).head(rows))}\n{sizes}"]
    if "nis" in result:
        seen = np.isfinite(result["nis"].to_numpy())
        nis, likelihood = (float(result[name].to_numpy()[seen].mean()) if seen.any() else np.nan for name in ("nis", "log_likelihood"))
        figures = f"mean NIS {nis:.3f} (1 is consistent), mean log-likelihood {likelihood:.3f} nats per observed step"
        lines.append(figures if seen.any() else "nothing is observed")
    return "\n".join(lines)


def flattened(dataset: xr.Dataset, kind: str) -> pd.DataFrame:
    """One row per time, one column per entry: ``filtered_cov[0,1]``.

    Args:
        dataset: of one series.
        kind: of table, for the error.

    Raises:
        ValueError: many series, no time, or more than 1000 columns.
    """
    time = _time_dim(dataset)
    width = sum(variable.size // variable.sizes[time] for variable in dataset.data_vars.values() if time in variable.dims) if time else 0
    if time is None or "series" in dataset.dims or width > _MAX_COLUMNS:
        raise ValueError(f"`data` is a Dataset with dims {dict(dataset.sizes)}, which a {kind} table cannot hold; write it as .nc.")
    columns: dict[str, np.ndarray] = {}
    for name, variable in dataset.data_vars.items():
        if time not in variable.dims:
            continue  # constants of the model have no place in a table over time
        entries = variable.transpose(time, ...)
        others = [[str(label) for label in dataset.indexes.get(dim, range(entries.sizes[dim]))] for dim in entries.dims[1:]]
        for labels, column in zip(product(*others), entries.to_numpy().reshape(entries.sizes[time], -1).T, strict=True):
            columns[f"{name}[{','.join(labels)}]" if labels else str(name)] = column
    return pd.DataFrame(columns, index=dataset.indexes.get(time, pd.RangeIndex(dataset.sizes[time])).rename(time))


def _time_dim(dataset: xr.Dataset) -> str | None:
    """``time``, or the dimension of dates or durations, or else the only one that all variables share (a numbered index of another name)."""
    dated = [str(dim) for dim, index in dataset.indexes.items() if isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex)]
    shared = [str(dim) for dim in dataset.dims if all(dim in variable.dims for variable in dataset.data_vars.values())]
    candidates = ["time"] if "time" in dataset.dims else dated or (shared if len(shared) == 1 else [])
    return candidates[0] if candidates else None


def _text(head: pd.DataFrame) -> str:
    return head.to_string(max_cols=8, float_format="{:.4g}".format)


def split_inputs(data: Any, names: Sequence[str], horizon: int = 0) -> tuple[Any, Any]:
    """What is observed, and the columns of known inputs beside it; of a list of series two lists, and (data, None) without names.

    Args:
        data: as read from files. names: of the columns that are inputs.
        horizon: steps to forecast: the last rows of each table hold the inputs of these steps and no data, and are left out of the first part.

    Raises:
        ValueError: no table, columns that it has not, nothing left to observe, or data in the rows to forecast.
    """
    if not names:
        return data, None
    if isinstance(data, list):
        parts = [split_inputs(part, names, horizon) for part in data]
        return [part[0] for part in parts], [part[1] for part in parts]
    if not isinstance(data, pd.DataFrame):
        raise ValueError(f"inputs are {list(names)}, columns of a table, and the data are a {type(data).__name__}; use .csv or .parquet files")
    missing = [name for name in names if name not in data.columns]
    if missing:
        raise ValueError(f"inputs {missing} are no columns of the data, which have {list(data.columns)}; check the names, or the file")
    observed, known = data.drop(columns=list(names)), data[list(names)]
    if not observed.columns.size:
        raise ValueError(f"inputs are {list(names)}, all columns of the data; leave at least one that is observed")
    if not horizon:
        return observed, known
    if len(data) <= horizon or observed.iloc[-horizon:].notna().to_numpy().any():
        raise ValueError(f"the model has inputs {list(names)}: the last {horizon} rows must hold those of the steps to forecast, other columns empty")
    return observed.iloc[:-horizon], known
