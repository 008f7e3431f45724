"""``.ldm`` on pandas and xarray: the same numbers, units kept, dask only when asked."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure

from ldm_filter import LDMFilter
from tests.optional import needs


def waves(series: int = 1, steps: int = 80) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.sin(0.3 * np.arange(steps)[None, :, None] + np.arange(series)[:, None, None] + np.arange(2.0)) + 0.1 * rng.normal(
        size=(series, steps, 2)
    )


def dataset() -> xr.Dataset:
    return xr.Dataset(
        {"heat": ("time", waves()[0, :, 0], {"units": "K"}), "load": ("time", waves()[0, :, 1], {"units": "kW"})},
        {"time": pd.date_range("2025-01-01", periods=80, freq="h")},
        attrs={"station": "north"},
    )


@pytest.fixture(scope="module")
def model() -> LDMFilter:
    return LDMFilter(2, readout="linear", window=40).fit(dataset(), epochs=1, progress=False)


def test_the_same_numbers_and_units_kept(model: LDMFilter):
    for data in (dataset(), dataset().to_dataframe()):
        for method in ("filter", "smooth"):
            xr.testing.assert_equal(getattr(data.ldm, method)(model), getattr(model, method)(data))
    result = dataset().ldm.filter(model)
    assert json.loads(result.attrs["channel_units"]) == {"heat": "K", "load": "kW"}
    assert result.attrs["station"] == "north"
    ahead = dataset().ldm.forecast(model, 3)
    assert json.loads(ahead.attrs["channel_units"])["heat"] == "K"
    frame = dataset().to_dataframe()
    frame.attrs["units"] = {"heat": "K"}
    pd.testing.assert_frame_equal(frame.ldm.forecast(model, 3), model.forecast(frame, 3))
    assert frame.ldm.forecast(model, 3).attrs["units"] == {"heat": "K"}
    assert "p_value" in frame.ldm.anomalies(model)


def test_fit_and_plot():
    model = dataset().ldm.fit(2, epochs=1, progress=False, readout="linear", window=40)
    assert isinstance(model, LDMFilter)
    figure = dataset().ldm.filter(model).ldm.plot(dataset())
    assert isinstance(figure, Figure)
    assert any("K" in axes.get_ylabel() or "K" in axes.get_title() for axes in figure.axes)
    with pytest.raises(ValueError, match="no reconstruction_mean"):
        dataset().ldm.plot()


def test_chunks_of_series_are_lazy_and_right(model: LDMFilter):
    dask = needs("dask")
    data = xr.DataArray(waves(5), {"series": list("abcde"), "channel": ["heat", "load"]}, ("series", "time", "channel"))
    eager = model.filter(data)
    with dask.config.set(scheduler="synchronous"):
        lazy = data.chunk(series=2).ldm.filter(model)
        assert all(variable.chunks is not None for variable in lazy.data_vars.values())
        for name, variable in eager.data_vars.items():
            np.testing.assert_allclose(lazy[name].compute(), variable, rtol=1e-5, atol=1e-6, err_msg=name)
        assert lazy.series.values.tolist() == list("abcde")
        single = dataset().chunk(time=40).ldm.filter(model)
    xr.testing.assert_equal(single, dataset().ldm.filter(model))


@pytest.mark.parametrize("method", ["filter", "smooth", "forecast", "anomalies"])
def test_only_the_chunks_that_are_asked_for_are_read(model: LDMFilter, method: str):
    dask, array = needs("dask"), needs("dask.array")
    values, asked = waves(6), list[int]()

    def read(block: np.ndarray, block_info: dict | None = None) -> np.ndarray:
        asked.append(block_info[0]["chunk-location"][0])  # type: ignore[index]
        return block

    chunks = array.map_blocks(read, array.from_array(values, chunks=(2, -1, -1)), dtype=float, meta=np.empty((0, 0, 0)))
    data = xr.DataArray(chunks, {"series": list("abcdef"), "channel": ["heat", "load"]}, ("series", "time", "channel"))
    arguments = {"horizon": 5} if method == "forecast" else {}
    whole = getattr(model, method)(data.copy(data=values), **arguments)
    asked.clear()
    with dask.config.set(scheduler="synchronous"):
        lazy = getattr(data.ldm, method)(model, **arguments)
        assert set(asked) <= {0}  # the first series, for the layout of the result
        asked.clear()
        name = next(iter(lazy.data_vars))
        some = lazy[name].sel(series=["e", "f"]).compute()
        assert asked == [2]
        np.testing.assert_allclose(some, whole[name].sel(series=["e", "f"]), rtol=1e-5, atol=1e-6)
        asked.clear()
        everything = lazy.compute()
        assert sorted(asked) == [0, 1, 2]
    assert set(everything.coords) == set(whole.coords)
    for name, variable in whole.data_vars.items():
        np.testing.assert_allclose(everything[name], variable, rtol=1e-5, atol=1e-6, err_msg=str(name))
