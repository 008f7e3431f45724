"""Files in and out, for the command line: CSV, Parquet, NetCDF and NumPy, told apart by the suffix."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from ldm_filter.data.containers import channel_name
from ldm_filter.data.results import file_attrs
from ldm_filter.data.tables import flattened
from ldm_filter.data.video import VIDEO_SUFFIXES, read_video

__all__ = ["KNOWN_SUFFIXES", "check_folder", "check_writable", "read", "read_all", "write"]

KNOWN_SUFFIXES = (".csv", ".parquet", ".nc", ".npy", ".npz")
_STORAGE_HINT = "install it with: pip install ldm-filter[storage]"
_TIME_NAMES = {"time", "date", "datetime", "timestamp", "index", "when"}
_LOOKS_DATED = re.compile(r"^\s*\d{4}-\d{1,2}(-\d{1,2})?([T ]\d|\s*$)")


def read(path: str | Path) -> Any:
    """The data in a file, in a container that `ldm_filter.data.parse` accepts.

    The first column of a table becomes its time index where it is called time, date, timestamp or index, or holds dates. Stamps with
    differing offsets from UTC (a local clock across a change of summer time) are read as UTC, which keeps the instants.

    Args:
        path: ``.csv``, ``.parquet`` (a DataFrame), ``.nc`` (a Dataset), ``.npy`` (an array) or ``.npz`` (an array, or a list
            with one series per array in the order of the file); a video file (a DataArray of grey frames, see `ldm_filter.data.video`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown suffix, or content that is not what the suffix says.
        ModuleNotFoundError: the format needs an optional package; the message names the extra.
    """
    path = Path(path)
    if not path.suffix and not path.exists():
        raise FileNotFoundError(f"`path` {str(path)!r} is neither a file nor a folder; check the name.")
    reader = _by_suffix(
        path,
        {".csv": _read_csv, ".parquet": _read_parquet, ".nc": _read_netcdf, ".npy": _read_numpy, ".npz": _read_numpy}
        | dict.fromkeys(VIDEO_SUFFIXES, read_video),
    )
    if not path.is_file():
        raise FileNotFoundError(f"`path` {str(path)!r} is not a file; check the name.")
    try:
        return reader(path)
    except ImportError:
        raise
    except Exception as error:  # parsers raise all sorts: one clear error for a file that is not what its suffix says
        raise ValueError(f"`path` {str(path)!r} could not be read as {path.suffix.lower()}: {error}") from error


def read_all(paths: Sequence[str | Path]) -> Any:
    """One container for one file, a list of series for several. Raises as `read`."""
    if len(paths) == 1:
        return read(paths[0])
    series: list[Any] = []
    for path in paths:
        content = read(path)
        series += content if isinstance(content, list) else [content]
    return series


def write(data: Any, path: str | Path) -> None:
    """Write a result or data set in the format that the suffix names.

    Args:
        data: a DataFrame, Series, DataArray, Dataset, array, tensor, or (``.npz`` only) a list of arrays.
        path: ``.nc`` holds any Dataset. ``.csv`` and ``.parquet`` hold tables: columns (channel, statistic) are joined by a space in CSV,
            and a Dataset of one series is flattened to columns such as ``filtered_mean[0]``. ``.npy`` holds one array, ``.npz`` several.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: an unknown suffix, or a container that this format cannot hold; the message names one that can.
        ModuleNotFoundError: the format needs an optional package; the message names the extra.
    """
    path = Path(path)
    check_writable(path)
    _WRITERS[path.suffix.lower()](data.detach().cpu().numpy() if isinstance(data, torch.Tensor) else data, path)


def check_folder(path: str | Path) -> None:
    """Refuse a path whose folder is not there, before the work whose result should go to it.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"`path` {str(path)!r}: the folder {str(folder)!r} does not exist; create it first.")


def check_writable(path: str | Path) -> None:
    """Refuse what `write` could not write, whatever the data.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: an unknown suffix.
    """
    _by_suffix(Path(path), _WRITERS)
    check_folder(path)


def _by_suffix(path: Path, known: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    if path.suffix.lower() not in known:
        raise ValueError(f"`path` {str(path)!r} has the suffix {path.suffix!r}, expected one of {', '.join(known)}; rename or convert it.")
    return known[path.suffix.lower()]


def _need(package: str, path: Path) -> None:
    if find_spec(package) is None:
        raise ModuleNotFoundError(f"{path.suffix} files need the package {package}, which is not installed; {_STORAGE_HINT}.")


# ---------------------------------------------------------------------------------------------------------------- tables


def _read_csv(path: Path) -> pd.DataFrame:
    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline()
    for name, mark in (("semicolons", ";"), ("tabs", "\t")):
        if mark in header and "," not in header:
            raise ValueError(
                f"its first line is split by {name}, expected commas; write it anew from pandas.read_csv(path, sep={mark!r}, decimal=...)"
            )
    frame = pd.read_csv(path)
    if not len(frame):
        raise ValueError("it holds a header and no rows")
    if frame.columns.size and str(frame.columns[0]).startswith("Unnamed: 0"):  # how pandas writes an index without a name
        frame = frame.rename(columns={frame.columns[0]: "index"})
    return _index_by_time(frame)


def _read_parquet(path: Path) -> pd.DataFrame:
    _need("pyarrow", path)
    frame = pd.read_parquet(path)
    return _index_by_time(frame) if isinstance(frame.index, pd.RangeIndex) and frame.index.name is None else frame


def _index_by_time(frame: pd.DataFrame) -> pd.DataFrame:
    """The first column as index where its name or its entries say that it is time."""
    if not len(frame.columns) or not len(frame):
        return frame
    name, column = frame.columns[0], frame.iloc[:, 0]
    first = column.iloc[0]
    dated = pd.api.types.is_datetime64_any_dtype(column.dtype) or (isinstance(first, str) and bool(_LOOKS_DATED.match(first)))
    if not dated and str(name).strip().lower() not in _TIME_NAMES:
        return frame
    rest = frame.iloc[:, 1:]
    stamps = pd.Index(column) if pd.api.types.is_numeric_dtype(column.dtype) else _stamps(column)
    return rest.set_index(stamps.rename(None if name == "index" else name))


def _stamps(column: Any) -> pd.DatetimeIndex:
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return pd.DatetimeIndex(column)
    offsets = set(column.astype(str).str.extract(r"([+-]\d{2}:?\d{2}|Z)\s*$")[0])
    try:
        return pd.DatetimeIndex(pd.to_datetime(column, utc=len(offsets) > 1, format="ISO8601"))
    except ValueError as error:  # 03/04/2024 could be March or April: not guessed
        raise ValueError(f"column {column.name!r} should hold numbers or times like 2024-12-31 23:59 (year first); {error}") from error


def _as_table(data: Any, path: Path) -> pd.DataFrame:
    if isinstance(data, pd.Series):
        return data.to_frame()
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, np.ndarray) and data.ndim <= 2:
        return pd.DataFrame(data)
    if isinstance(data, xr.DataArray):
        data = data.to_dataset(name=data.name or "value")
    if isinstance(data, xr.Dataset):
        return flattened(data, path.suffix)
    mend = "write its items one by one" if isinstance(data, list | tuple) else "write it as .nc or .npz"
    raise ValueError(f"`data` is a {type(data).__name__}, which a {path.suffix} table cannot hold; {mend}.")


def _joined(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of several levels as one text each: ``temperature lo-80``."""
    if not isinstance(table.columns, pd.MultiIndex):
        return table
    return table.set_axis([" ".join(map(str, column)) for column in table.columns], axis=1)


def _write_csv(data: Any, path: Path) -> None:
    table = _joined(_as_table(data, path))
    table.to_csv(path, index_label=str(table.index.name or "index"))


def _write_parquet(data: Any, path: Path) -> None:
    _need("pyarrow", path)
    table = _as_table(data, path)
    if not isinstance(table.columns, pd.MultiIndex):
        table = table.set_axis([channel_name(column) for column in table.columns], axis=1)
    table.to_parquet(path)


# ---------------------------------------------------------------------------------------------------------------- NetCDF


def _has_hdf5() -> bool:
    return all(find_spec(package) is not None for package in ("h5netcdf", "h5py"))


def _read_netcdf(path: Path) -> xr.Dataset:
    with path.open("rb") as file:
        magic = file.read(4)
    classic = magic.startswith(b"CDF")
    if not classic and magic != b"\x89HDF":
        raise ValueError("it is no NetCDF file")
    if not classic and not _has_hdf5() and find_spec("netCDF4") is None:
        raise ModuleNotFoundError(f"This {path.suffix} file is NetCDF-4, which needs the packages h5netcdf and h5py; {_STORAGE_HINT}.")
    with xr.open_dataset(path, engine="scipy" if classic else None, decode_timedelta=True) as dataset:
        return dataset.load()


def _write_netcdf(data: Any, path: Path) -> None:
    if isinstance(data, pd.DataFrame | pd.Series | list | tuple | np.ndarray):
        mend = {"list": "write its items one by one", "tuple": "write its items one by one", "ndarray": "use .npy"}.get(
            type(data).__name__, "use .parquet or .csv"
        )
        raise ValueError(f"`data` is a {type(data).__name__}, expected an xarray Dataset or DataArray for {path.suffix}; {mend}.")
    dataset = data.to_dataset(name=data.name or "value") if isinstance(data, xr.DataArray) else data
    dataset = dataset.copy(deep=False)
    for part in (dataset, *dataset.data_vars.values()):
        part.attrs = file_attrs(part.attrs)
    # The classic format needs no extra package, only SciPy.
    dataset.to_netcdf(path, engine="h5netcdf" if _has_hdf5() else "scipy")


# ----------------------------------------------------------------------------------------------------------------- NumPy


def _read_numpy(path: Path) -> Any:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded as archive:
        arrays = [archive[key] for key in archive.files]
    if not arrays:
        raise ValueError("the archive holds no array")
    return arrays[0] if len(arrays) == 1 else arrays


def _write_npy(data: Any, path: Path) -> None:
    if isinstance(data, list | tuple | xr.Dataset):
        raise ValueError(f"`data` is a {type(data).__name__}, expected one array for {path.suffix}; write it as .npz.")
    np.save(path, np.asarray(data), allow_pickle=False)


def _write_npz(data: Any, path: Path) -> None:
    if isinstance(data, xr.Dataset):
        arrays = {str(name): variable.to_numpy() for name, variable in data.variables.items()}
    elif isinstance(data, list | tuple):
        width = len(str(len(data) - 1))
        arrays = {f"series_{i:0{width}d}": np.asarray(item.detach().cpu() if isinstance(item, torch.Tensor) else item) for i, item in enumerate(data)}
    else:
        arrays = {"data": np.asarray(data)}
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


_WRITERS: dict[str, Callable[[Any, Path], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".nc": _write_netcdf,
    ".npy": _write_npy,
    ".npz": _write_npz,
}
