"""Time as it really is, through LDMFilter: irregular stamps, gaps, zones, resolutions, and known inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from ldm_filter import LDMFilter
from ldm_filter.data import merge

KWARGS: dict[str, Any] = {"epochs": 2, "progress": False}


def swing(
    steps: int = 240, channels: int = 3, start: str = "2024-03-30 20:00", step: str = "10min", zone: str | None = "Europe/Berlin"
) -> pd.DataFrame:
    """Noisy oscillations on a regular clock that runs across a change of summer time."""
    random = np.random.default_rng(0)
    t = np.arange(steps)[:, None]
    values = np.cos(0.25 * t + np.arange(channels)) + 0.1 * random.normal(size=(steps, channels))
    index = pd.date_range("2024-03-30 20:00", periods=steps, freq="10min", tz=zone, name="time")
    return pd.DataFrame(values, index=index, columns=pd.Index([f"c{i}" for i in range(channels)]))


@pytest.fixture(scope="module")
def fitted() -> dict[str, LDMFilter]:
    return {kind: LDMFilter(3, dynamics=kind, dtype=torch.float64).fit(swing(), **KWARGS) for kind in ("linear", "continuous")}


def thinned(frame: pd.DataFrame, share: float = 0.4, seed: int = 1) -> pd.Index:
    kept = np.random.default_rng(seed).random(len(frame)) < share
    kept[0] = True
    return frame.index[kept]


def same(one: xr.Dataset, other: xr.Dataset, atol: float = 1e-9) -> None:
    for name in ("filtered_mean", "filtered_cov", "predicted_mean", "smoothed_mean", "smoothed_cov", "reconstruction_std"):
        np.testing.assert_allclose(one[name].to_numpy(), other[name].to_numpy(), rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("kind", ["linear", "continuous"])
def test_the_thinned_grid_is_the_grid_with_gaps(fitted: dict[str, LDMFilter], kind: str) -> None:
    frame, model = swing(), fitted[kind]
    rows = thinned(frame)
    gaps = frame.copy()
    gaps[~frame.index.isin(rows)] = np.nan
    on_grid, irregular = model.smooth(gaps), model.smooth(frame.loc[rows])
    same(irregular, on_grid.isel(time=frame.index.isin(rows)))
    assert not any(bool(np.isnan(on_grid[name]).any()) for name in on_grid.data_vars if name != "nis")


@pytest.mark.parametrize("kind", ["linear", "continuous"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_zones_resolutions_and_containers_say_the_same(fitted: dict[str, LDMFilter], kind: str, unit: str) -> None:
    frame, model = swing(), fitted[kind]
    part = frame.loc[thinned(frame)]
    expected = model.smooth(part)
    other = part.set_axis(pd.DatetimeIndex(part.index).tz_convert("UTC").as_unit(unit))
    same(model.smooth(other), expected, 1e-12)
    naive = pd.DatetimeIndex(other.index).tz_localize(None).rename("time")
    array = xr.DataArray(part.to_numpy(), dims=("time", "channel"), coords={"time": naive, "channel": list(part.columns)})
    same(model.smooth(array), expected, 1e-12)
    same(model.smooth(part.to_numpy(), times=naive), expected, 1e-12)


def test_seconds_beside_an_array_are_its_clock() -> None:
    frame = swing()
    seconds = np.arange(len(frame)) * 0.02
    model = LDMFilter(3, dynamics="continuous", dtype=torch.float64).fit(frame.to_numpy(), times=seconds, **KWARGS)
    kept = np.flatnonzero(np.random.default_rng(2).random(len(frame)) < 0.5)
    kept[0] = 0
    labelled = frame.iloc[kept].set_axis(pd.Index(seconds[kept], name="time"))
    same(model.smooth(frame.to_numpy()[kept], times=seconds[kept]), model.smooth(labelled), 1e-12)
    stacked = np.stack([frame.to_numpy()[kept]] * 2)
    both = model.smooth(stacked, times=[seconds[kept], seconds[kept] * 2.0])
    same(both.isel(series=0), model.smooth(labelled), 1e-12)
    assert float(abs(both.filtered_mean[0] - both.filtered_mean[1]).max()) > 1e-3
    with pytest.raises(ValueError, match=r"`times` has 3 stamps, `data` 240 steps"):
        model.filter(frame.to_numpy(), times=seconds[:3])
    with pytest.raises(ValueError, match="repeats the stamp"):
        model.filter(frame.to_numpy()[:3], times=[0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="has times of its own"):
        model.filter(labelled, times=seconds[kept])


@pytest.mark.parametrize("kind", ["linear", "continuous"])
def test_a_gap_of_any_length_only_widens_the_band(fitted: dict[str, LDMFilter], kind: str) -> None:
    frame, model, before = swing(), fitted[kind], 0.0
    step = pd.Timedelta("10min")
    for gap in (1, 2, 7, 1000, 10_000_000):
        late = pd.concat([frame.iloc[:100], frame.iloc[100:101].set_axis(frame.index[99:100] + gap * step)])
        result = model.filter(late)
        variance = float(np.trace(result.predicted_cov.to_numpy()[-1]))
        assert variance >= before - 1e-12
        assert np.isfinite(result.filtered_mean.to_numpy()).all()
        before = variance
    prior = float(np.trace(model.filter(frame).predicted_cov.to_numpy()[5]))
    assert before > prior


def test_training_on_irregular_stamps_and_forecasting_from_them() -> None:
    frame = swing(600, zone=None)
    rows = thinned(frame, 0.6)
    model = LDMFilter(4, dynamics="continuous", dtype=torch.float64).fit(frame.loc[rows[:300]], epochs=8, progress=False)
    ahead = model.forecast(frame.loc[rows[:300]], horizon=6)
    assert np.isfinite(ahead.to_numpy()).all()
    assert np.median(np.diff(ahead.index)) == np.median(np.diff(rows[:300]))
    missing = frame.copy()
    missing[~frame.index.isin(rows)] = np.nan
    filled = model.smooth(missing)["reconstruction_mean"].to_numpy()
    hidden = ~frame.index.isin(rows)
    truth = np.cos(0.25 * np.arange(600)[:, None] + np.arange(3))
    assert float(np.sqrt(np.mean((filled - truth)[hidden] ** 2))) < 0.25


@pytest.mark.parametrize("kind", ["linear", "continuous"])
def test_stamps_whose_typical_gap_is_two_intervals_lie_on_the_grid(kind: str) -> None:
    """Fitted on them, the model is that of the grid: motion over one interval, and forecasts from one to the next."""
    frame = swing(900, zone=None)
    kept = np.sort(np.random.default_rng(5).permutation(900)[:380])
    part = frame.iloc[kept]
    assert np.median(np.diff(kept)) == 2
    model = LDMFilter(4, dynamics=kind, dtype=torch.float64, seed=1).fit(part, epochs=30, progress=False)
    assert model.labels_.attrs["step"] == 600.0
    with_gaps = frame.where(frame.index.to_series().isin(part.index), np.nan).loc[part.index[0] : part.index[-1]]
    same(model.smooth(part), model.smooth(with_gaps).isel(time=with_gaps.index.isin(part.index)), 1e-8)
    ahead = model.forecast(part, 12)
    assert list(ahead.index) == list(pd.date_range(part.index[-1], periods=13, freq="10min")[1:])
    truth = np.cos(0.25 * (kept[-1] + np.arange(1, 13))[:, None] + np.arange(3))
    assert float(np.sqrt(np.mean((ahead.xs("mean", axis=1, level=1).to_numpy() - truth) ** 2))) < 0.3


def test_a_forecast_from_a_coarser_grid_goes_as_far_as_its_stamps_say(fitted: dict[str, LDMFilter]) -> None:
    frame = swing()
    past = frame.iloc[:201]
    gaps = past.copy()
    gaps.iloc[1::2] = np.nan
    for model in fitted.values():
        coarse, fine = model.forecast(past.iloc[::2], 5), model.forecast(gaps, 10)
        pd.testing.assert_frame_equal(coarse, fine.iloc[1::2], check_freq=False, rtol=1e-9)


def test_a_calendar_goes_on_step_by_step() -> None:
    """Weekends are no gaps in business days, in the data as in the forecast."""
    frame = swing(240, zone=None)
    days = frame.set_axis(pd.bdate_range("2024-01-01", periods=240, name="time"))
    for kind in ("linear", "continuous"):
        model = LDMFilter(3, dynamics=kind, dtype=torch.float64).fit(frame.reset_index(drop=True), epochs=1, progress=False)
        dated = LDMFilter(3, dynamics=kind, dtype=torch.float64).fit(days, epochs=1, progress=False)
        plain = model.forecast(frame.reset_index(drop=True), 9)
        np.testing.assert_allclose(dated.forecast(days, 9).to_numpy(), plain.to_numpy(), rtol=1e-9)


def test_sensors_of_different_rates_on_one_clock() -> None:
    frame = swing(400, zone=None)
    fast, slow = frame[["c0", "c1"]], frame[["c2"]].iloc[::4].shift(freq="3min")
    both = merge({"fast": fast, "slow": slow})
    model = LDMFilter(4, dynamics="continuous", dtype=torch.float64).fit(both, epochs=6, progress=False)
    result = model.smooth(both)
    assert result.sizes["time"] == 500
    for name in ("smoothed_mean", "smoothed_cov", "reconstruction_mean", "reconstruction_std"):
        assert np.isfinite(result[name].to_numpy()).all(), name


# Inputs.


def heated(steps: int = 600, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A room warmed by a heater that is switched at random, and a second thermometer: the future depends on what the heater will do."""
    random = np.random.default_rng(seed)
    heater = np.repeat((random.random(steps // 20 + 1) < 0.5).astype(float), 20)[:steps]
    room = np.zeros(steps)
    for t in range(1, steps):
        room[t] = 0.9 * room[t - 1] + heater[t] + 0.05 * random.normal()
    index = pd.date_range("2024-01-01", periods=steps, freq="min", name="time")
    seen = np.stack([room, 0.5 * room + heater], axis=1) + 0.05 * random.normal(size=(steps, 2))
    return pd.DataFrame(seen, index=index, columns=pd.Index(["a", "b"])), pd.DataFrame({"heater": heater}, index=index)


@pytest.fixture(scope="module", params=["linear", "continuous"])
def driven(request: Any) -> LDMFilter:
    data, inputs = heated()
    return LDMFilter(2, dynamics=request.param).fit(data, inputs=inputs, epochs=60, progress=False)


def test_a_forecast_follows_its_inputs(driven: LDMFilter) -> None:
    data, inputs = heated(300, seed=1)
    past = data.iloc[:200]
    ahead = inputs.iloc[:230].copy()
    finals = []
    for value in (0.0, 1.0):
        ahead.iloc[200:] = value
        finals.append(driven.forecast(past, 30, inputs=ahead)["a"]["mean"].iloc[-1])
    assert finals[0] == pytest.approx(0.0, abs=1.0)
    assert finals[1] == pytest.approx(10.0, abs=1.5)  # 1 / (1 - 0.9)


def test_inputs_explain_what_the_past_cannot(driven: LDMFilter) -> None:
    data, inputs = heated(400, seed=2)
    plain = LDMFilter(2, dynamics=driven.dynamics).fit(heated()[0], epochs=25, progress=False)
    assert driven.score(data, inputs=inputs) > plain.score(data) + 0.3


def test_inputs_are_matched_by_time_and_asked_for_by_name(driven: LDMFilter) -> None:
    data, inputs = heated(100, seed=3)
    expected = driven.filter(data, inputs=inputs)
    np.testing.assert_array_equal(driven.filter(data, inputs=heated(130, seed=3)[1].loc[: data.index[-1]]).filtered_mean.shape, (100, 2))
    by_row = driven.filter(data, inputs=inputs.to_numpy())
    np.testing.assert_allclose(by_row.filtered_mean, expected.filtered_mean, atol=1e-6)
    many = driven.filter(np.stack([data.to_numpy()] * 3), inputs=inputs.to_numpy())
    np.testing.assert_allclose(many.filtered_mean[2], expected.filtered_mean, atol=1e-5)
    for wrong, message in (
        (None, r"`inputs` is None.*\['heater'\]"),
        (inputs.iloc[:50], "`inputs` has no row at 2024-01-01 00:50"),
        (inputs.to_numpy()[:50], "`inputs` has 50 rows, expected one for each of the 100 steps"),
        (inputs.mask(inputs.index.to_numpy()[:, None] == inputs.index[7]), "`inputs` holds NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            driven.filter(data, inputs=wrong)
    with pytest.raises(ValueError, match="no row at 2024-01-01 01:40"):
        driven.forecast(data, 5, inputs=inputs)
    with pytest.raises(ValueError, match="expected one for each of the 100 steps of the data and the 5 of the horizon"):
        driven.forecast(data, 5, inputs=inputs.to_numpy())
    with pytest.raises(ValueError, match="fitted without"):
        LDMFilter(2).fit(data, epochs=1, progress=False).filter(data, inputs=inputs)


def test_a_model_with_inputs_comes_back_from_a_file(driven: LDMFilter, tmp_path: Any) -> None:
    data, inputs = heated(80, seed=4)
    driven.save(tmp_path / "model.safetensors")
    again = LDMFilter.load(tmp_path / "model.safetensors")
    xr.testing.assert_identical(again.smooth(data, inputs=inputs), driven.smooth(data, inputs=inputs))
    pd.testing.assert_frame_equal(again.forecast(data.iloc[:70], 10, inputs=inputs), driven.forecast(data.iloc[:70], 10, inputs=inputs))
    paths = again.sample(data, num_paths=2, inputs=inputs)
    assert paths.observation_paths.shape == (2, 80, 2)
    assert again.sample(steps=12, inputs=np.ones((12, 1))).observation_paths.shape == (1, 12, 2)
    mean, std = again.decode(np.zeros((5, 2)), inputs=np.ones((5, 1)))
    assert mean.shape == std.shape == (5, 2)
