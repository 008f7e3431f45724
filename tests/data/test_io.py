"""Files: what is written is read again; what cannot be read or held is refused with the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from ldm_filter.data import io, parse
from ldm_filter.data.forecasts import forecast_output
from ldm_filter.data.io import read, write
from ldm_filter.data.results import to_dataset
from tests.optional import needs

CHANGE = pd.date_range("2024-10-26 22:00", periods=6, freq="h", tz="Europe/Berlin", name="when")


def frame(index: pd.Index) -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(len(index), dtype=float), "b": 0.5}, index=index)


INDEXES = {
    "naive": pd.DatetimeIndex(pd.date_range("2024-01-01", periods=4, freq="D", name="date"), freq=None),
    "milliseconds": pd.DatetimeIndex(["2024-01-01", "2024-01-01 00:00:00.250", "2024-01-02", "2024-01-02 06:00"], name="time"),
    "numbers": pd.Index([0.0, 0.5, 1.5], name="time"),
    "nameless": pd.Index([3, 4, 7]),
}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("kind", list(INDEXES))
def test_tables_round_trip(tmp_path: Path, suffix, kind):
    write(frame(INDEXES[kind]), tmp_path / f"table{suffix}")
    pd.testing.assert_frame_equal(read(tmp_path / f"table{suffix}"), frame(INDEXES[kind]), check_index_type=False)


def test_zoned_times_keep_their_instants_in_csv_and_their_zone_in_parquet(tmp_path: Path):
    write(frame(CHANGE), tmp_path / "table.csv")
    loaded = read(tmp_path / "table.csv")
    assert (loaded.index == CHANGE).all()
    assert str(loaded.index.tz) == "UTC"
    write(frame(CHANGE), tmp_path / "table.parquet")
    assert str(read(tmp_path / "table.parquet").index.tz) == "Europe/Berlin"


@pytest.mark.parametrize(
    ("text", "dated", "columns"),
    [
        ("2024-01-01,1\n2024-01-02,2\n", True, ["a"]),
        ("2024-01-01T00:00:00Z,1\n2024-01-01T00:00:10Z,2\n", True, ["a"]),
        ("0.1,1\n0.2,2\n", False, ["first", "a"]),
    ],
)
def test_a_first_column_of_dates_is_the_index_whatever_its_name(tmp_path: Path, text, dated, columns):
    (tmp_path / "log.csv").write_text("first,a\n" + text)
    loaded = read(str(tmp_path / "log.csv"))
    assert isinstance(loaded.index, pd.DatetimeIndex) == dated
    assert list(loaded.columns) == columns


def test_a_foreign_csv_reaches_the_model(tmp_path: Path):
    (tmp_path / "log.CSV").write_text("Timestamp,heat,load\n10,1.5,\n20,,3\n50,2.5,4\n")
    sequences, labels = parse(read(tmp_path / "log.CSV"))
    assert labels.channels == ("heat", "load")
    assert labels.times[0].tolist() == [10, 20, 50]
    assert sequences.observed.tolist() == [[[True, False], [False, True], [True, True]]]


def test_a_frame_written_without_index_label(tmp_path: Path):
    frame(INDEXES["nameless"]).to_csv(tmp_path / "table.csv")
    pd.testing.assert_frame_equal(read(tmp_path / "table.csv"), frame(INDEXES["nameless"]))


def test_forecasts_have_readable_columns(tmp_path: Path):
    _, labels = parse(frame(CHANGE))
    forecast = forecast_output(torch.zeros(1, 3, 2), torch.ones(1, 3, 2), (0.8,), labels)
    write(forecast, tmp_path / "forecast.csv")
    assert (tmp_path / "forecast.csv").read_text().splitlines()[0] == "when,a mean,a std,a lo-80,a hi-80,b mean,b std,b lo-80,b hi-80"
    write(forecast, tmp_path / "forecast.parquet")
    pd.testing.assert_frame_equal(read(tmp_path / "forecast.parquet"), forecast, check_freq=False)


def result() -> xr.Dataset:
    sequences, labels = parse(frame(CHANGE))
    cov = torch.arange(4.0).reshape(1, 1, 2, 2)
    fields = {
        "filtered_cov": (("series", "time", "state", "state_aux"), cov),
        "nis": (("series", "time"), torch.ones(1, 6)),
        "transition_matrix": (("state", "state_aux"), torch.eye(2)),
    }
    return to_dataset(fields, sequences, labels, {"config": {"state_dim": 2}})


@pytest.mark.parametrize("hdf5", [True, False])
def test_netcdf_round_trip(tmp_path: Path, monkeypatch, hdf5):
    if hdf5:
        needs("h5netcdf")
        needs("h5py")
    else:
        monkeypatch.setattr(io, "_has_hdf5", lambda: False)
    write(result(), tmp_path / "result.nc")
    assert (tmp_path / "result.nc").read_bytes()[:3] == (b"\x89HD" if hdf5 else b"CDF")
    loaded = read(tmp_path / "result.nc")
    xr.testing.assert_equal(loaded, result())
    assert loaded.attrs["config"] == '{"state_dim": 2}'
    (tmp_path / "result.nc").unlink()  # the file is closed


def test_netcdf_cleans_attributes(tmp_path: Path):
    write(xr.DataArray(np.ones(3), dims="time", name="heat", attrs={"units": "K"}), tmp_path / "a.nc")
    assert parse(read(tmp_path / "a.nc"))[1].channels == ("heat",)
    held = xr.DataArray(np.ones(3), dims="time", name="heat", attrs={"sensor": {"id": 7}})
    write(held, tmp_path / "c.nc")
    assert read(tmp_path / "c.nc").heat.attrs == {"sensor": '{"id": 7}'}
    assert held.attrs == {"sensor": {"id": 7}}
    write(xr.Dataset({"a": ("time", [1.0])}, attrs={"config": {"x": 1}, "none": None}), tmp_path / "b.nc")
    assert read(tmp_path / "b.nc").attrs == {"config": '{"x": 1}'}


def test_a_dataset_of_one_series_flattens_to_a_table(tmp_path: Path):
    write(result(), tmp_path / "result.csv")
    table = read(tmp_path / "result.csv")
    assert list(table.columns) == [*(f"filtered_cov[{i},{j}]" for i in "01" for j in "01"), "nis", "observed[a]", "observed[b]"]
    assert table["filtered_cov[1,0]"].tolist() == [2.0] * 6
    assert table.index[0] == pd.Timestamp("2024-10-26 20:00")


def test_a_dataset_of_many_series_is_refused_in_a_table(tmp_path: Path):
    sequences, labels = parse(np.ones((2, 3, 1)))
    with pytest.raises(ValueError, match=r"which a \.csv table cannot hold; write it as \.nc"):
        write(to_dataset({}, sequences, labels), tmp_path / "result.csv")


def test_numpy_files(tmp_path: Path):
    array, short = np.random.default_rng(0).normal(size=(2, 5, 3)), np.ones((2, 3))
    write(torch.from_numpy(array), tmp_path / "array.npy")
    np.testing.assert_array_equal(read(tmp_path / "array.npy"), array)
    write(array, tmp_path / "array.npz")
    np.testing.assert_array_equal(read(tmp_path / "array.npz"), array)
    write([array[0], torch.from_numpy(short), *[short] * 9], tmp_path / "list.npz")
    assert [len(item) for item in read(tmp_path / "list.npz")] == [5] + [2] * 10
    assert parse(read(tmp_path / "list.npz"))[1].ragged
    write(result(), tmp_path / "result.npz")
    with np.load(tmp_path / "result.npz") as archive:
        assert archive["filtered_cov"].shape == (6, 2, 2)


# --------------------------------------------------------------------------------------------------------------- errors


def test_unknown_suffix_and_missing_files(tmp_path: Path):
    for call in (lambda: read("data.xlsx"), lambda: write(np.ones(3), tmp_path / "data.xlsx")):
        with pytest.raises(ValueError, match=r"suffix '\.xlsx', expected one of \.csv, \.parquet, \.nc, \.npy, \.npz"):
            call()
    with pytest.raises(FileNotFoundError, match="is not a file"):
        read(tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        read(tmp_path / "clips")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write(np.ones(3), tmp_path / "nowhere" / "data.npy")


@pytest.mark.parametrize("suffix", [".parquet", ".nc", ".npy", ".npz"])
def test_a_file_that_is_not_what_its_suffix_says(tmp_path: Path, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"neither this nor that")
    with pytest.raises(ValueError, match=rf"could not be read as \{suffix}"):
        read(path)


def test_pickled_arrays_and_empty_files_are_refused(tmp_path: Path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("time,a\n")
    (tmp_path / "semicolons.csv").write_text("time;a\n2024-12-31;1,5\n")
    (tmp_path / "ambiguous.csv").write_text("date,a\n03/04/2024,1\n")
    np.savez(tmp_path / "empty.npz")
    for name, message in {
        "objects.npy": "could not be read",
        "empty.csv": "could not be read",
        "header.csv": "a header and no rows",
        "semicolons.csv": "split by semicolons, expected commas",
        "ambiguous.csv": "year first",
        "empty.npz": "no array",
    }.items():
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)


def test_containers_that_a_format_cannot_hold(tmp_path: Path):
    cases = [
        ([frame(CHANGE)], "a.csv", "one by one"),
        (np.ones((2, 3, 4)), "a.csv", "as .nc or .npz"),
        (frame(CHANGE), "a.nc", "use .parquet or .csv"),
        ([result()], "a.nc", "one by one"),
        (np.ones(3), "a.nc", "use .npy"),
        (result(), "a.npy", "write it as .npz"),
    ]
    for data, name, message in cases:
        with pytest.raises(ValueError, match=message):
            write(data, tmp_path / name)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(io, "find_spec", lambda package: None)
    with pytest.raises(ImportError, match=r"pyarrow.*ldm-filter\[storage\]"):
        write(frame(CHANGE), tmp_path / "a.parquet")
    (tmp_path / "a.nc").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ImportError, match=r"h5netcdf.*ldm-filter\[storage\]"):
        read(tmp_path / "a.nc")
