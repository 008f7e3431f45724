"""Labels out as they came in, files that hold them, padding gone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy.stats import norm

from ldm_filter.data import parse
from ldm_filter.data.forecasts import forecast_output
from ldm_filter.data.results import estimate_output, file_attrs, to_dataset
from tests.optional import needs

DAYS = pd.date_range("2024-03-29", periods=5, freq="D", tz="Europe/Berlin", name="when")


def frame(rows: int = 5) -> pd.DataFrame:
    return pd.DataFrame({"a": [1.0, 2.0, np.nan, 4.0, 5.0], "b": np.arange(5.0)}, index=DAYS)[:rows]


def fields(batch: int, steps: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "filtered_mean": (("series", "time", "state"), torch.randn(batch, steps, 3, generator=generator, requires_grad=True)),
        "filtered_cov": (("series", "time", "state", "state_aux"), torch.randn(1, steps, 3, 3, generator=generator)),
        "log_likelihood": (("series", "time"), torch.randn(batch, steps, generator=generator)),
        "transition_matrix": (("state", "state_aux"), torch.eye(3)),
    }


def test_single_dataframe_gives_a_dataset_in_utc():
    sequences, labels = parse(frame())
    result = to_dataset(fields(1, 5), sequences, labels, {"config": {"state_dim": 3}})
    assert result.sizes == {"when": 5, "state": 3, "state_aux": 3, "channel": 2}
    assert result.filtered_mean.dims == ("when", "state")
    assert result.indexes["when"][0] == pd.Timestamp("2024-03-28 23:00")
    assert result.attrs["time_zone"] == "Europe/Berlin"
    assert json.loads(result.attrs["config"]) == {"state_dim": 3}
    assert result.observed.sel(channel="a").values.tolist() == [True, True, False, True, True]
    np.testing.assert_array_equal(result.filtered_mean.values, fields(1, 5)["filtered_mean"][1][0].detach().numpy())


def test_array_of_series_shares_covariances():
    sequences, labels = parse(np.ones((4, 5, 2)))
    result = to_dataset(fields(4, 5), sequences, labels, coords={"state": ["u", "v", "w"]})
    assert result.filtered_cov.shape == (4, 5, 3, 3)
    assert result.filtered_cov.values.strides[0] == 0
    assert result.series.values.tolist() == [0, 1, 2, 3]
    assert result.time.values.tolist() == [0, 1, 2, 3, 4]
    assert result.channel.values.tolist() == [0, 1]
    assert result.state.values.tolist() == ["u", "v", "w"]
    assert "state_aux" not in result.coords


def test_list_gives_a_list_without_padding():
    sequences, labels = parse([frame(), frame(2)])
    results = to_dataset(fields(2, 5), sequences, labels)
    assert [result.sizes["when"] for result in results] == [5, 2]
    assert all("series" not in result.dims for result in results)
    np.testing.assert_array_equal(results[1].filtered_mean.values, fields(2, 5)["filtered_mean"][1][1, :2].detach().numpy())


def test_video_keeps_its_dims_and_coordinates():
    array = xr.DataArray(np.ones((2, 4, 2, 3)), dims=("series", "time", "row", "col"), coords={"series": ["s", "t"], "col": [0.0, 1.0, 3.0]})
    array.values[0, 1] = np.nan
    sequences, labels = parse(array)
    result = to_dataset({"reconstruction_mean": (("series", "time", "row", "col"), sequences.values)}, sequences, labels)
    assert result.reconstruction_mean.sel(col=3.0, series="t").shape == (4, 2)
    assert result.observed.dims == ("series", "time")
    assert result.observed.values[0].tolist() == [True, False, True, True]


@pytest.mark.parametrize("name", ["state", "channel", "series"])
def test_an_index_named_like_a_dim_of_the_results(name):
    sequences, labels = parse(frame().rename_axis(name))
    assert to_dataset(fields(1, 5), sequences, labels).filtered_mean.dims == ("time", "state")
    assert forecast_output(*gaussian(labels, 2), (), labels).index.name == name


def test_wrong_shapes_are_named():
    sequences, labels = parse(np.ones((4, 5, 2)))
    with pytest.raises(ValueError, match=r"`fields\['x'\]` has shape \(4, 3\).*wrong along \['time'\]"):
        to_dataset({"x": (("series", "time"), torch.ones(4, 3))}, sequences, labels)
    with pytest.raises(ValueError, match="one axis for each"):
        to_dataset({"x": (("series",), torch.ones(4, 3))}, sequences, labels)


# ---------------------------------------------------------------------------------------------------------------- netcdf


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
@pytest.mark.parametrize("unit", ["us", "ns"])
@pytest.mark.parametrize("kind", ["frame", "array", "series of strings", "milliseconds", "durations", "floats"])
def test_netcdf_round_trip(tmp_path: Path, engine, unit, kind):
    if engine == "h5netcdf":
        needs("h5py")
    array = np.ones((2, 5, 2))
    data = {
        "frame": frame().set_index(DAYS.as_unit(unit)),
        "array": array,
        "series of strings": xr.DataArray(array, dims=("series", "time", "channel"), coords={"series": ["s", "t"], "channel": ["a", "b"]}),
        "milliseconds": frame().set_index(pd.date_range("2024", periods=5, freq="250ms", tz="UTC").as_unit(unit)),
        "durations": frame().set_index(pd.to_timedelta(np.arange(5) * 90, unit="s").as_unit(unit)),
        "floats": frame().set_index(pd.Index([0.0, 0.1, 0.3, 0.4, 1.0])),
    }[kind]
    sequences, labels = parse(data)
    attrs = {"config": {"state_dim": 3, "levels": [0.8]}, "version": np.int64(1), "nothing": None, "exact": True}
    result = to_dataset(fields(len(labels.times), 5), sequences, labels, attrs)
    result.to_netcdf(tmp_path / "result.nc", engine=engine)
    with xr.open_dataset(tmp_path / "result.nc", engine=engine, decode_timedelta=True) as loaded:
        xr.testing.assert_equal(loaded.load(), result)
        assert {key: loaded.attrs[key] for key in result.attrs} == result.attrs


def test_attributes_of_the_data_are_carried_on():
    dataset = xr.Dataset({"a": ("time", [1.0, 2.0])}, attrs={"station": "north", "lines": [1, 2], "time_zone": "Europe/Berlin"})
    sequences, labels = parse(dataset)
    result = to_dataset({}, sequences, labels, {"version": 2})
    assert result.attrs == {"station": "north", "lines": "[1, 2]", "time_zone": "Europe/Berlin", "version": 2}
    assert file_attrs({"when": pd.Timestamp("2024")}) == {"when": '"2024-01-01 00:00:00"'}


# ------------------------------------------------------------------------------------------------ forecasts and the like


def gaussian(labels, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (len(labels.times), steps, *labels.attrs["event_shape"])
    mean = torch.arange(float(np.prod(shape)), dtype=torch.float64).reshape(shape)
    return mean, mean + 1


def test_forecast_of_a_dataframe():
    _, labels = parse(frame())
    mean, std = gaussian(labels, 3)
    result = forecast_output(mean, std, (0.8, 0.95), labels)
    pd.testing.assert_index_equal(result.index, pd.date_range("2024-04-03", periods=3, freq="D", tz="Europe/Berlin", name="when"), check_freq=True)
    statistics = ["mean", "std", "lo-80", "hi-80", "lo-95", "hi-95"]
    assert list(result.columns) == [(channel, statistic) for channel in "ab" for statistic in statistics]
    np.testing.assert_array_equal(result["b"]["mean"], mean[0, :, 1])
    lower, upper = norm.interval(0.95, loc=mean[0, :, 0], scale=std[0, :, 0])
    np.testing.assert_allclose(result["a", "lo-95"], lower, rtol=1e-12)
    np.testing.assert_allclose(result["a", "hi-95"], upper, rtol=1e-12)


def test_reconstruction_of_a_list_of_dataframes():
    _, labels = parse([frame(), frame(2)])
    results = estimate_output(*gaussian(labels, 5), (0.995,), labels)
    assert [len(result) for result in results] == [5, 2]
    pd.testing.assert_index_equal(results[1].index, DAYS[:2])
    assert results[0].columns.get_level_values(1).unique().tolist() == ["mean", "std", "lo-99.5", "hi-99.5"]


def test_columns_that_are_no_strings_come_back():
    data = pd.DataFrame(np.ones((3, 2)), columns=[10, 20])
    _, labels = parse(data)
    assert (10, "mean") in forecast_output(*gaussian(labels, 1), (), labels).columns
    _, labels = parse(pd.Series([1.0, 2.0], name="heat"))
    assert forecast_output(*gaussian(labels, 2), (), labels)["heat", "mean"].index.tolist() == [2, 3]


@pytest.mark.parametrize("single", [True, False])
def test_forecast_of_an_array(single):
    _, labels = parse(np.ones((5, 2)) if single else np.ones((3, 5, 2)))
    mean, std = gaussian(labels, 4)
    result = forecast_output(mean, std, (0.8, 0.95), labels)
    assert result.time.values.tolist() == [5, 6, 7, 8]
    assert result.forecast_lo.dims == (("time", "channel", "level") if single else ("series", "time", "channel", "level"))
    expected = norm.ppf(0.975, loc=mean, scale=std)
    np.testing.assert_allclose(result.forecast_hi.sel(level=0.95), expected[0] if single else expected, rtol=1e-12)


def test_forecast_of_a_video_and_of_zoned_lists():
    _, labels = parse([np.ones((5, 2, 3)), np.ones((2, 2, 3))])
    results = forecast_output(*gaussian(labels, 2), (), labels)
    assert [result.time.values.tolist() for result in results] == [[5, 6], [2, 3]]
    assert results[0].forecast_mean.dims == ("time", "y", "x")
    assert "forecast_lo" not in results[0]


def test_levels_and_shapes_are_checked():
    _, labels = parse(frame())
    for levels in [(0.0,), (1.0,), (80,), (0.8, 0.8)]:
        with pytest.raises(ValueError, match="`levels`"):
            forecast_output(*gaussian(labels, 2), levels, labels)
    with pytest.raises(ValueError, match=r"`mean` has shape \(1, 2, 3\)"):
        forecast_output(torch.ones(1, 2, 3), torch.ones(1, 2, 3), (), labels)
