"""LDMFilter as users call it: filter, smooth, forecast, sample, score, encode, diagnose, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from ldm_filter import LDMFilter
from tests.waves import frame, waves


@pytest.fixture(scope="module")
def fitted() -> LDMFilter:
    return LDMFilter(state_dim=4, readout="linear").fit(frame(900), epochs=6, progress=False)


@pytest.fixture(scope="module")
def gaps() -> pd.DataFrame:
    data = frame(150, seed=5)
    data.iloc[40:50] = np.nan
    data.iloc[80:90, 1] = np.nan
    return data


def test_filter_gives_finite_labelled_beliefs(fitted: LDMFilter, gaps: pd.DataFrame) -> None:
    result = fitted.filter(gaps)
    assert result.filtered_mean.dims == ("time", "state")
    assert result.filtered_cov.dims == ("time", "state", "state_aux")
    assert list(result.channel.values) == ["a", "b", "c"]
    seen = gaps.notna().any(axis=1).to_numpy()
    for name, variable in result.data_vars.items():
        values = variable.values[~seen] if name == "nis" else variable.values
        assert np.isnan(values).all() if name == "nis" else np.isfinite(values).all(), name
    assert np.isfinite(result.nis.values[seen]).all()
    assert (result.log_likelihood.values[~seen] == 0).all()
    np.testing.assert_array_equal(result.observed.values, gaps.notna().to_numpy())


def test_filter_beats_the_noise_and_smoothing_beats_filtering_in_gaps(fitted: LDMFilter, gaps: pd.DataFrame) -> None:
    truth = frame(150, seed=5).to_numpy()
    gap = slice(40, 50)
    hold = np.abs(truth[gap] - truth[39])
    filtered = np.abs(fitted.filter(gaps).reconstruction_mean.values[gap] - truth[gap])
    smoothed = np.abs(fitted.smooth(gaps).reconstruction_mean.values[gap] - truth[gap])
    assert smoothed.mean() < filtered.mean() < 0.6 * hold.mean()


def test_uncertainty_widens_in_a_gap_and_with_a_missing_channel(fitted: LDMFilter, gaps: pd.DataFrame) -> None:
    spread = np.trace(fitted.filter(gaps).filtered_cov.values, axis1=1, axis2=2)
    assert (np.diff(spread[40:50]) > 0).all()
    assert spread[85] > 1.02 * spread[75]


def test_forecast_of_a_frame_is_a_frame_with_the_clock_going_on(fitted: LDMFilter) -> None:
    data = frame(20)  # the next day has 23 hours
    forecast = fitted.forecast(data, horizon=12, levels=(0.8,))
    assert forecast.index[0] == data.index[-1] + pd.Timedelta("1h")
    assert str(forecast.index.tz) == "Europe/Berlin"
    assert list(forecast["a"].columns) == ["mean", "std", "lo-80", "hi-80"]
    assert ((forecast["b"]["lo-80"] < forecast["b"]["mean"]) & (forecast["b"]["mean"] < forecast["b"]["hi-80"])).all()


def test_forecast_intervals_hold_their_level(fitted: LDMFilter) -> None:
    series = [waves(120, seed) for seed in range(20, 60)]
    forecasts = fitted.forecast([one[:100] for one in series], horizon=10, levels=(0.95,))
    inside = []
    for one, forecast in zip(series, forecasts, strict=True):
        low, high = forecast.forecast_lo.values[..., 0], forecast.forecast_hi.values[..., 0]
        inside.append((one[100:110] > low) & (one[100:110] < high))
    assert 0.88 < np.mean(inside) < 0.99


def test_score_prefers_the_model_of_the_data(fitted: LDMFilter) -> None:
    ordered, shuffled = waves(300, 7), np.random.default_rng(0).permutation(waves(300, 7))
    assert fitted.score(ordered) > fitted.score(shuffled) + 0.3


def test_sample_paths_scatter_as_the_smoother_says(fitted: LDMFilter, gaps: pd.DataFrame) -> None:
    paths = fitted.sample(gaps, num_paths=400, seed=1).state_paths
    assert paths.dims == ("path", "time", "state")
    smoothed = fitted.smooth(gaps)
    variance = np.diagonal(smoothed.smoothed_cov.values, axis1=1, axis2=2)
    assert np.abs(paths.mean("path").values - smoothed.smoothed_mean.values).max() < 0.3 * np.sqrt(variance.max()) + 0.05
    np.testing.assert_allclose(paths.var("path").values.mean(0), variance.mean(0), rtol=0.2)
    prior = fitted.sample(steps=7, num_paths=3)
    assert prior.observation_paths.shape == (3, 7, 3)


def test_results_round_trip_through_netcdf(fitted: LDMFilter, gaps: pd.DataFrame, tmp_path: Path) -> None:
    result = fitted.smooth(gaps)
    result.to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "result.nc", engine="h5netcdf") as read:
        xr.testing.assert_allclose(read.load(), result)


def test_array_list_and_frame_agree(fitted: LDMFilter) -> None:
    data = frame(60, seed=2)
    alone = fitted.filter(data).filtered_mean.values
    array = fitted.filter(data.to_numpy()).filtered_mean.values
    ragged = fitted.filter([data, frame(33, seed=3)])
    batch = fitted.filter(np.stack([data.to_numpy(), frame(60, seed=4).to_numpy()]))
    assert batch.filtered_mean.dims == ("series", "time", "state")
    np.testing.assert_array_equal(alone, array)
    np.testing.assert_allclose(ragged[0].filtered_mean.values, alone, atol=1e-4)
    np.testing.assert_allclose(batch.filtered_mean.values[0], alone, atol=1e-4)
    assert ragged[1].sizes["time"] == 33


def test_one_row_filters_as_the_first_of_many(fitted: LDMFilter) -> None:
    data = frame(10)
    np.testing.assert_allclose(fitted.filter(data.iloc[:1]).filtered_mean.values[0], fitted.filter(data).filtered_mean.values[0], atol=1e-5)


def test_chunks_carry_the_belief(fitted: LDMFilter, monkeypatch: pytest.MonkeyPatch) -> None:
    data = frame(100, seed=6)
    whole = fitted.filter(data)
    monkeypatch.setattr("ldm_filter.estimator.inference.CHUNK_STEPS", 17)
    pieces = fitted.filter(data)
    for name in ("filtered_mean", "filtered_cov", "log_likelihood", "predicted_mean"):
        np.testing.assert_allclose(pieces[name].values, whole[name].values, atol=2e-4)


def test_encode_and_filterpy_retrace_the_filter(fitted: LDMFilter) -> None:
    data = frame(40, seed=8)
    theirs, latents = fitted.to_filterpy(), fitted.encode(data).latent_mean.values
    means = []
    for t, latent in enumerate(latents):
        if t:
            theirs.predict()
        theirs.update(latent[:, None])
        means.append(theirs.x[:, 0].copy())
    np.testing.assert_allclose(np.stack(means), fitted.filter(data).filtered_mean.values, atol=1e-3)


def test_decode_is_the_readout_of_known_states(fitted: LDMFilter) -> None:
    mean, std = fitted.decode(np.zeros((5, 2, 4)))
    assert mean.shape == std.shape == (5, 2, 3)
    assert (std > 0).all()
    with pytest.raises(ValueError, match="last dimension is the state"):
        fitted.decode(np.zeros((5, 3)))


def test_online_steps_equal_the_batch(fitted: LDMFilter, gaps: pd.DataFrame) -> None:
    online = fitted.online()
    steps = [online.step(row) for row in gaps.to_numpy()[:60]]
    result = fitted.filter(gaps)
    np.testing.assert_allclose(torch.stack([step.mean for step in steps]).numpy(), result.filtered_mean.values[:60], atol=1e-4)
    np.testing.assert_allclose([float(step.nis) for step in steps], result.nis.values[:60], rtol=1e-2, atol=1e-2)


def test_diagnosis_reads_well_and_finds_the_periods(fitted: LDMFilter) -> None:
    found = fitted.diagnose(frame(600, seed=11))
    assert 0.7 < found.nis < 1.3
    periods = [mode.period for mode in found.spectrum]
    assert min(abs(period - 2 * np.pi * 5) for period in periods) < 1.0
    assert "NIS / m" in str(found)


def test_bad_calls_are_named(fitted: LDMFilter) -> None:
    with pytest.raises(ValueError, match="not fitted yet"):
        LDMFilter(state_dim=2).filter(waves(10))
    with pytest.raises(ValueError, match="`inputs` are given"):
        fitted.forecast(frame(10), 2, inputs=np.zeros(3))
    with pytest.raises(ValueError, match="horizon is 0"):
        fitted.forecast(frame(10), 0)
    with pytest.raises(ValueError, match="expected 3"):
        fitted.filter(np.zeros((10, 2)))
    with pytest.raises(ValueError, match="expected at least 2"):
        LDMFilter(state_dim=1).fit(waves(1), progress=False)
    with pytest.raises(ValueError, match="not parameters of LDMFilter"):
        fitted.set_params(colour="red")
    with pytest.raises(ValueError, match=r"data .* or steps"):
        fitted.sample()
