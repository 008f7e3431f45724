"""LDMFilter as users call it: fit, filter, smooth, forecast, sample, score, save, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import ldm_filter
from ldm_filter import LDMFilter, metrics
from ldm_filter.data.labels import parse
from ldm_filter.data.windows import Windows
from ldm_filter.estimator.fitting import common_scale


def waves(steps: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Two oscillations mixed into noisy channels."""
    rng = np.random.default_rng(seed)
    t = np.arange(steps) + rng.integers(0, 100)
    sources = np.stack([np.sin(t / 5), np.cos(t / 5), np.sin(t / 2.3), np.cos(t / 2.3)], axis=1)
    mixing = np.random.default_rng(1).normal(size=(4, channels))
    return sources @ mixing + 0.2 * rng.normal(size=(steps, channels))


def frame(steps: int, seed: int = 0) -> pd.DataFrame:
    index = pd.date_range("2025-03-29", periods=steps, freq="1h", tz="Europe/Berlin", name="time")
    return pd.DataFrame(waves(steps, seed), index=index, columns=["a", "b", "c"])


@pytest.fixture(scope="module")
def fitted() -> LDMFilter:
    return LDMFilter(state_dim=4, readout="linear").fit(frame(900), epochs=6, progress=False)


@pytest.fixture(scope="module")
def gaps() -> pd.DataFrame:
    data = frame(150, seed=5)
    data.iloc[40:50] = np.nan
    data.iloc[80:90, 1] = np.nan
    return data


def test_public_names_are_the_listed_ones() -> None:
    assert sorted(ldm_filter.__all__) == sorted(
        [
            "CheckpointError",
            "CollapseError",
            "FilterResult",
            "Gate",
            "Gaussian",
            "LDMFilter",
            "SmootherResult",
            "StateSpace",
            "__version__",
            "backend",
            "filter_sequence",
            "forecast",
            "smooth_sequence",
        ]
    )
    assert all(hasattr(ldm_filter, name) for name in ldm_filter.__all__)


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


def test_targets_are_read_out_with_covariance(fitted: LDMFilter) -> None:
    data = frame(400, seed=9)
    sources = pd.DataFrame(data.to_numpy() @ np.ones((3, 2)), columns=["u", "v"], index=data.index)
    fitted.fit_readout(data, sources, kind="linear")
    result = fitted.filter(data)
    assert list(result.target.values) == ["u", "v"]
    assert result.target_cov.dims == ("time", "target", "target_aux")
    assert np.corrcoef(result.target_mean.values[:, 0], sources["u"])[0, 1] > 0.9
    with pytest.raises(ValueError, match="one row per step"):
        fitted.fit_readout(data, sources.iloc[:100])


def test_the_covariance_of_targets_may_turn_with_the_state(fitted: LDMFilter, tmp_path: Path) -> None:
    """Two targets on a circle, told with errors along it: the ellipse follows, and a saved model keeps it."""
    model = LDMFilter.load(_saved(fitted, tmp_path))
    data = waves(3000, 21)
    phase = np.arctan2(*model.filter(data).filtered_mean.values[:, :2].T)
    slip = phase + 0.2 * np.random.default_rng(0).normal(size=3000)
    places = np.stack([np.cos(slip), np.sin(slip)], axis=1)
    held = {}
    for covariance in ("constant", "state-dependent"):
        model.fit_readout(data[:2000], places[:2000], kind="linear", covariance=covariance)
        result = model.filter(data)
        error = places[2000:] - result.target_mean.values[2000:]
        held[covariance] = float(metrics.gaussian_log_likelihood(0 * error, result.target_cov.values[2000:], error).mean())
    assert held["state-dependent"] > held["constant"] + 0.1
    xr.testing.assert_equal(LDMFilter.load(_saved(model, tmp_path)).smooth(data), model.smooth(data))
    with pytest.raises(ValueError, match="covariance is 'round', expected one of 'constant', 'state-dependent'"):
        model.fit_readout(data, places, covariance="round")
    with pytest.raises(ValueError, match="40 targets are too many"):
        model.fit_readout(data, np.tile(places, 20), kind="linear", covariance="state-dependent")


def _saved(model: LDMFilter, folder: Path) -> Path:
    model.save(folder / "turned.safetensors")
    return folder / "turned.safetensors"


def test_save_and_load_give_the_same_results(fitted: LDMFilter, gaps: pd.DataFrame, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model.safetensors")
    loaded = LDMFilter.load(tmp_path / "model.safetensors")
    xr.testing.assert_equal(loaded.smooth(gaps), fitted.smooth(gaps))
    assert loaded.get_params() == fitted.get_params()
    pd.testing.assert_frame_equal(loaded.forecast(gaps, 3), fitted.forecast(gaps, 3))


def test_the_same_seed_gives_the_same_model() -> None:
    fits = [LDMFilter(state_dim=2, seed=seed, readout="linear").fit(waves(200), epochs=2, progress=False) for seed in (3, 3, 4)]
    weights = [torch.cat([tensor.flatten() for tensor in fit.model_.state_dict().values()]) for fit in fits]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_state_is_canonical_and_the_latents_have_unit_variance(fitted: LDMFilter) -> None:
    latents = fitted.encode(frame(900)).latent_mean.values
    np.testing.assert_allclose(latents.std(0), 1.0, atol=0.15)
    ssm = fitted.model_.dynamics()
    transition, noise = ssm.transition_matrix.double(), ssm.transition_cov.double()
    np.testing.assert_allclose((transition @ transition.mT + noise).detach().numpy(), np.eye(4), atol=1e-4)
    assert float(ssm.transition_offset.detach().abs().max()) < 1e-5


def test_the_common_scale_is_that_of_the_greatest_likelihood_on_held_out_windows(fitted: LDMFilter) -> None:
    model = copy.deepcopy(fitted.model_)
    held_out = Windows(parse(waves(800, 31), expected=fitted.labels_)[0], 100)
    values = next(held_out.batches(8, shuffle=False))

    def likelihood() -> float:
        return float(model(values.values, values.observed).log_likelihood.detach().double().sum())

    assert model.scale_covariances(3.0)
    assert model.scale_covariances(common_scale(model, held_out))
    assert common_scale(model, held_out) == pytest.approx(1.0, abs=1e-3)
    best = likelihood()
    for factor in (0.9, 1.1 / 0.9):
        model.scale_covariances(factor)
        assert likelihood() < best - 1.0


def test_diagnosis_reads_well_and_finds_the_periods(fitted: LDMFilter) -> None:
    found = fitted.diagnose(frame(600, seed=11))
    assert 0.7 < found.nis < 1.3
    periods = [mode.period for mode in found.spectrum]
    assert min(abs(period - 2 * np.pi * 5) for period in periods) < 1.0
    assert "NIS / m" in str(found)


def test_frames_and_input_noise() -> None:
    rng = np.random.default_rng(0)
    t = np.arange(30)[None, :] / 4 + rng.uniform(0, 6, size=(12, 1))
    y, x = np.mgrid[:8, :8]
    video = np.exp(-((x - 3.5 - 2 * np.cos(t)[..., None, None]) ** 2 + (y - 3.5 - 2 * np.sin(t)[..., None, None]) ** 2) / 2)
    level = rng.uniform(0.02, 0.6, size=(12, 30, 1, 1))
    model = LDMFilter(state_dim=2, noise="input", readout="linear").fit(video + level * rng.normal(size=video.shape), epochs=4, progress=False)
    result = model.filter(video + level * rng.normal(size=video.shape))
    assert result.reconstruction_mean.dims == ("series", "time", "y", "x")
    noise = np.trace(result.latent_cov.values, axis1=-2, axis2=-1)
    assert np.corrcoef(np.log(noise).ravel(), np.log(level).ravel())[0, 1] > 0.6
    single = model.filter(list(video[:1]))
    assert single[0].filtered_mean.shape == (30, 2)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"state_dim": 0}, "state_dim is 0, expected at least 1"),
        ({"state_dim": 2, "latent_dim": 3}, "latent_dim is 3, expected at most state_dim = 2"),
        ({"state_dim": 2, "dynamics": "particle"}, "dynamics is 'particle', expected one of 'linear'"),
        ({"state_dim": 2, "noise": "loud"}, "noise is 'loud'"),
        ({"state_dim": 2, "objective": "magic"}, "objective is 'magic'"),
        ({"state_dim": 2, "encoder": "transformer"}, "encoder is 'transformer'"),
        ({"state_dim": 2, "readout": "forest"}, "readout is 'forest'"),
        ({"state_dim": 2, "learning_rate": -1.0}, "learning_rate is -1.0"),
    ],
)
def test_bad_parameters_are_named(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LDMFilter(**params).fit(waves(50), epochs=1, progress=False)  # type: ignore[arg-type]


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


def test_get_and_set_params_and_repr() -> None:
    model = LDMFilter(state_dim=3).set_params(noise="input", seed=7)
    assert model.get_params()["noise"] == "input"
    assert repr(model) == "LDMFilter(state_dim=3, noise='input', seed=7)"
    assert repr(LDMFilter(**model.get_params())) == repr(model)
