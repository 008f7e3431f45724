"""What all baselines promise alike: predictions from the past, forecasts that continue them, labels as LDMFilter has them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from filterpy.common import Q_continuous_white_noise
from filterpy.kalman import KalmanFilter
from scipy import stats

from ldm_filter import LDMFilter, baselines
from ldm_filter.baselines.registry import NAMES, Method, Sizes, by_name, default_names
from tests.waves import frame, waves

SIZES = Sizes(channels=3, state_dim=4, latent_dim=3, season=31)
ALL = [name.replace("<order>", "4") for name in NAMES if not name.endswith("adaptive")]


@pytest.fixture(scope="module")
def train() -> np.ndarray:
    return np.stack([waves(300, seed) for seed in range(4)])


@pytest.fixture(scope="module")
def gappy() -> np.ndarray:
    data = np.stack([waves(120, seed) for seed in (10, 11)])
    data[:, 40:50] = np.nan
    data[1, 70:78, 1] = np.nan
    return data


@pytest.fixture(scope="module")
def fitted(train: np.ndarray) -> dict[str, Method]:
    return {name: by_name(name, SIZES).fit(train) for name in ALL}


@pytest.mark.parametrize("name", ALL)
def test_a_forecast_of_one_step_is_the_one_step_prediction(name: str, fitted: dict[str, Method], gappy: np.ndarray) -> None:
    method = fitted[name]
    ahead = method.one_step(gappy)
    assert ahead.mean.shape == ahead.std.shape == gappy.shape
    assert np.isfinite(ahead.mean).all() and (ahead.std > 0).all()
    for t in (60, 45, 75):
        one = method.forecast(gappy[:, :t], 1)
        assert one.mean[:, 0] == pytest.approx(ahead.mean[:, t], abs=2e-3), t
        assert one.std[:, 0] == pytest.approx(ahead.std[:, t], rel=2e-3), t
    assert method.one_step(gappy[0]).mean == pytest.approx(ahead.mean[0], abs=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_predictions_hold_what_they_say_and_gaps_are_filled_from_both_sides(name: str, fitted: dict[str, Method], gappy: np.ndarray) -> None:
    truth = np.stack([waves(120, seed) for seed in (10, 11)])
    ahead = fitted[name].one_step(gappy)
    inside = np.abs(ahead.mean - truth)[:, 10:] < 1.96 * ahead.std[:, 10:]
    assert 0.88 < inside.mean() <= 1.0
    if name == "seasonal-naive":
        with pytest.raises(ValueError, match="only forecasts"):
            fitted[name].fill(gappy)
        return
    fill = getattr(fitted[name], "smooth", None) or fitted[name].fill
    held = fitted["hold-last"].fill(gappy).mean
    error = np.square(fill(gappy).mean - truth)[:, 40:50].mean()
    assert error <= np.square(held - truth)[:, 40:50].mean()


def test_structural_models_smooth_their_own_observations_as_statsmodels_does(fitted: dict[str, Method], gappy: np.ndarray) -> None:
    from statsmodels.tsa.statespace.structural import UnobservedComponents as Model

    method = fitted["uc"]
    row = (gappy[1, :, 1] - method.mean_[1]) / method.scale_[1]
    theirs = Model(row, "local linear trend", freq_seasonal=[{"period": 31, "harmonics": 2}]).smooth(method.parameters_[1])
    smoothed = (method.smooth(gappy).mean[1, :, 1] - method.mean_[1]) / method.scale_[1]
    assert smoothed == pytest.approx(theirs.level.smoothed + theirs.freq_seasonal[0].smoothed, abs=1e-6)
    assert method.one_step(gappy).mean[1, :, 1] == pytest.approx(theirs.filter_results.forecasts[0] * method.scale_[1] + method.mean_[1])


def test_constant_acceleration_equals_filterpy(train: np.ndarray) -> None:
    model = baselines.ConstantAcceleration(0.5).fit(train)
    row = train[0, :80].copy()
    row[30:40] = np.nan
    filtered, ahead = model.filter(row, observation_noise=False), model.one_step(row)
    for c in range(3):
        kf = KalmanFilter(dim_x=3, dim_z=1)
        ratio = model.velocity_var_[c] / model.position_var_[c]
        kf.x, kf.P = np.array([model.position_mean_[c], 0.0, 0.0]), model.position_var_[c] * np.diag([1, ratio, ratio**2])
        kf.F, kf.H = np.array([[1, 0.5, 0.125], [0, 1, 0.5], [0, 0, 1]]), np.array([[1.0, 0.0, 0.0]])
        kf.Q, kf.R = Q_continuous_white_noise(3, 0.5, model.process_noise_[c]), model.measurement_noise_[c]
        for t, z in enumerate(row[:, c]):
            assert ahead.mean[t, c] == pytest.approx(kf.x[0], rel=1e-8, abs=1e-8)
            assert ahead.std[t, c] ** 2 == pytest.approx(kf.P[0, 0] + kf.R.item(), rel=1e-8)
            kf.update(None if np.isnan(z) else z)
            assert filtered.mean[t, c] == pytest.approx(kf.x[0], rel=1e-8, abs=1e-8)
            kf.predict()
    state = model.state(row)
    assert state.mean.shape == (1, 80, 9) and state.cov.shape == (1, 80, 9, 9)
    assert state.mean[0, :, 3].numpy() == pytest.approx(filtered.mean[:, 1])
    assert state.cov[0, :, 0, 4].abs().max() == 0  # channels are filtered apart


def test_constant_acceleration_follows_a_parabola_that_constant_velocity_lags_behind() -> None:
    t = np.arange(60.0)
    throws = np.stack([(v * t - 0.05 * t**2)[:, None] for v in (2.0, 3.0, 4.0, 5.0)]) + np.random.default_rng(0).normal(0, 0.1, (4, 60, 1))
    errors = {}
    for model in (baselines.ConstantVelocity(), baselines.ConstantAcceleration()):
        ahead = model.fit(throws[:3]).forecast(throws[3:, :40], 20)
        errors[type(model).__name__] = np.abs(ahead.mean - throws[3:, 40:]).mean()
    assert errors["ConstantAcceleration"] < 0.3 * errors["ConstantVelocity"]


def test_pca_in_the_channels_is_pca_in_the_components() -> None:
    data = np.stack([waves(150, seed, channels=12) for seed in range(6)])
    model = baselines.PCAKalmanSeries(4, 4).fit(data[:5])
    inner = model.model_.filter((data[5:] - model.mean_) / model.scale_)
    state = model.state(data[5:])
    assert state.mean.numpy() == pytest.approx(inner[0], abs=1e-3)
    assert state.cov.expand(1, -1, -1, -1).numpy() == pytest.approx(inner[1], abs=1e-4)
    ahead = model.one_step(data[5])
    assert stats.kstest(stats.norm.cdf((data[5] - ahead.mean)[20:].ravel() / ahead.std[20:].ravel()), "uniform").statistic < 0.06
    wide = np.concatenate([data] * 6, axis=-1) + np.random.default_rng(0).normal(0, 0.2, (6, 150, 72))  # too many for their own measurements
    lost = wide[5:].copy()
    lost[:, 60:70] = np.nan
    for adaptive in (False, True):
        many = baselines.PCAKalmanSeries(4, 4, adaptive).fit(wide[:5])
        assert np.abs(many.smooth(lost).mean - wide[5:])[:, 60:70].mean() < 0.4 * np.abs(wide[5:]).mean()
    with pytest.raises(ValueError, match=r"constant in channels \[0\]"):
        baselines.PCAKalmanSeries(2).fit(data * ([0.0] + 11 * [1.0]))


# --- labels


def test_a_baseline_takes_and_gives_what_the_learned_filter_does() -> None:
    data = frame(300)
    data.iloc[100:110] = np.nan
    learned = LDMFilter(state_dim=4, readout="linear").fit(data, epochs=1, progress=False)
    for name in ("hold-last", "var4", "pca-em-kf"):
        baseline = baselines.Baseline(name).fit(data)
        ahead, theirs = baseline.forecast(data, 12), learned.forecast(data, 12)
        pd.testing.assert_index_equal(ahead.index, theirs.index)
        pd.testing.assert_index_equal(ahead.columns, theirs.columns)
        smoothed = baseline.smooth(data)
        assert smoothed.reconstruction_mean.dims == learned.smooth(data).reconstruction_mean.dims
        result = baseline.filter(data)
        assert list(result.channel.values) == ["a", "b", "c"] and result.attrs["method"] == name
        assert (result.log_likelihood.values[100:110] == 0).all()
        assert baseline.score(data) == pytest.approx(float(result.log_likelihood.sum()) / (290 * 3))


def test_series_of_unequal_length_end_where_they_end() -> None:
    parts = [waves(100, 1), waves(70, 2)]
    baseline = baselines.Baseline("cv-kf").fit(parts)
    both, alone = baseline.forecast(parts, 5), baseline.forecast(parts[1], 5)
    np.testing.assert_allclose(both[1].forecast_mean.values, alone.forecast_mean.values)
    assert baseline.filter(parts)[1].sizes["time"] == 70


def test_names_and_calls_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="baselines holds 'magic', expected names among hold-last"):
        baselines.Baseline("magic").fit(waves(50))
    with pytest.raises(ValueError, match="needs season="):
        baselines.Baseline("seasonal-naive").fit(waves(50))
    with pytest.raises(ValueError, match="not fitted yet"):
        baselines.Baseline("var2").filter(waves(50))
    with pytest.raises(ValueError, match="expected 3"):
        baselines.Baseline("hold-last").fit(waves(50)).filter(waves(50)[:, :2])
    assert {by_name(name, SIZES).__class__.__name__ for name in default_names(SIZES)} <= set(baselines.__all__)
    assert default_names(Sizes(channels=400)) == ("hold-last", "pca-em-kf", "pca-em-kf-adaptive")
