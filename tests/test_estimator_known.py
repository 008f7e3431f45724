"""LDMFilter from known matrices: statsmodels and filterpy say the same, with channels missing, inputs, and back again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from filterpy.kalman import KalmanFilter

from ldm_filter import LDMFilter

RANDOM = np.random.default_rng(0)


def matrices(n: int = 3, m: int = 2) -> dict[str, Any]:
    """Constant velocity and a slow mode: on the edge of stability, as such models are."""
    random = np.random.default_rng(1)
    A = np.eye(n) + np.diag(np.full(n - 1, 0.1), 1)
    A[-1, -1] = 0.9
    noise, spread = random.normal(size=(n, n)), random.normal(size=(m, m))
    return {
        "transition_matrix": A,
        "transition_cov": 0.01 * noise @ noise.T,
        "observation_matrix": random.normal(size=(m, n)),
        "measurement_cov": 0.1 * spread @ spread.T + 0.2 * np.eye(m),
        "initial_mean": random.normal(size=n),
        "initial_cov": np.diag(1.0 + np.arange(n)),
    }


def gappy(steps: int = 80, m: int = 2) -> np.ndarray:
    """Single channels missing, whole steps missing, and the first row with one channel only."""
    data = np.random.default_rng(2).normal(size=(steps, m)).cumsum(0)
    data[np.random.default_rng(3).random((steps, m)) < 0.3] = np.nan
    data[20:27], data[40:60, 1], data[0, 0] = np.nan, np.nan, np.nan
    return data


def test_with_channels_missing_it_is_statsmodels() -> None:
    from statsmodels.tsa.statespace.mlemodel import MLEModel

    known, data = matrices(), gappy()
    model = MLEModel(data, k_states=3, k_posdef=3, initialization="known", constant=known["initial_mean"], stationary_cov=known["initial_cov"])
    model.ssm.initialize_known(known["initial_mean"], known["initial_cov"])
    model["design"], model["obs_cov"] = known["observation_matrix"], known["measurement_cov"]
    model["transition"], model["selection"], model["state_cov"] = known["transition_matrix"], np.eye(3), known["transition_cov"]
    theirs = model.ssm.smooth()
    ours = LDMFilter.from_matrices(**known).smooth(data)
    for mine, other in (
        (ours.filtered_mean, theirs.filtered_state.T),
        (ours.filtered_cov, theirs.filtered_state_cov.transpose(2, 0, 1)),
        (ours.predicted_mean, theirs.predicted_state.T[:-1]),
        (ours.smoothed_mean, theirs.smoothed_state.T),
        (ours.smoothed_cov, theirs.smoothed_state_cov.transpose(2, 0, 1)),
        (ours.log_likelihood, theirs.llf_obs),
    ):
        np.testing.assert_allclose(mine.to_numpy(), other, rtol=0, atol=1e-9)
    forecast = LDMFilter.from_matrices(**known).forecast(data, 7)
    np.testing.assert_allclose(forecast.forecast_mean, model.ssm.smooth().predict(80, 87).forecasts.T, atol=1e-9)
    nis = ours.nis.to_numpy()
    assert np.isnan(nis[20:27]).all()
    one = np.isnan(data[:, 1]) & ~np.isnan(data[:, 0])
    expected = (data[:, 0] - ours.projected_mean[:, 0]) ** 2 / ours.projected_cov[:, 0, 0]
    np.testing.assert_allclose(nis[one], expected.to_numpy()[one], rtol=1e-9)


def test_filterpy_and_back() -> None:
    known, data = matrices(), np.random.default_rng(4).normal(size=(40, 2))
    theirs = KalmanFilter(dim_x=3, dim_z=2)
    theirs.F, theirs.Q = known["transition_matrix"], known["transition_cov"]
    theirs.H, theirs.R = known["observation_matrix"], known["measurement_cov"]
    theirs.x, theirs.P = known["initial_mean"][:, None].copy(), known["initial_cov"].copy()
    ours = LDMFilter.from_filterpy(theirs)
    np.testing.assert_array_equal(theirs.P, known["initial_cov"])
    result = ours.filter(data)
    means, covs, *_ = theirs.batch_filter(list(data[..., None]))
    np.testing.assert_allclose(result.filtered_mean, np.asarray(means)[..., 0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(result.filtered_cov, covs, rtol=0, atol=1e-10)

    back = ours.to_filterpy()
    for t, z in enumerate(data):
        if t:
            back.predict()
        back.update(z[:, None])
        np.testing.assert_allclose(back.x[:, 0], result.filtered_mean[t], rtol=0, atol=1e-10)
        np.testing.assert_allclose(back.P, result.filtered_cov[t], rtol=0, atol=1e-10)
        assert float(back.log_likelihood) == pytest.approx(float(result.log_likelihood[t]), abs=1e-10)
    again = LDMFilter.from_filterpy(ours.to_filterpy(), predict_first=False).filter(data)
    xr.testing.assert_allclose(again, result, rtol=0, atol=1e-12)


def test_filterpys_control_is_our_input() -> None:
    known, data = matrices(), np.random.default_rng(4).normal(size=(30, 2))
    B, u = np.array([[0.0], [1.0], [0.5]]), np.random.default_rng(5).normal(size=(30, 1))
    ours = LDMFilter.from_matrices(**known, input_matrix=B, inputs=["thrust"])
    result, theirs = ours.filter(data, inputs=u), ours.to_filterpy()
    for t, z in enumerate(data):
        if t:
            theirs.predict(u=u[t][:, None])
        theirs.update(z[:, None])
        np.testing.assert_allclose(theirs.x[:, 0], result.filtered_mean[t], rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"fitted with inputs \['thrust'\]"):
        ours.filter(data)
    D = np.array([[1.0], [2.0]])
    through = LDMFilter.from_matrices(**known, feedthrough=D)
    plain = LDMFilter.from_matrices(**known).filter(data)
    np.testing.assert_allclose(through.filter(data + u @ D.T, inputs=u).filtered_mean, plain.filtered_mean, atol=1e-10)
    with pytest.raises(ValueError, match="no place for"):
        through.to_filterpy()


def test_offsets_gaps_on_the_clock_and_files(tmp_path: Any) -> None:
    known, data = matrices(), gappy(60)
    model = LDMFilter.from_matrices(**known, transition_offset=[0.1, 0.0, -0.2], observation_offset=[1.0, 2.0], channels=["a", "b"], step=60.0)
    frame = pd.DataFrame(data, index=pd.date_range("2024-01-01", periods=60, freq="min", name="time"), columns=pd.Index(["a", "b"]))
    kept = ~frame.isna().all(axis=1).to_numpy()
    kept[0] = True
    whole, thin = model.smooth(frame), model.smooth(frame[kept][["b", "a"]])
    np.testing.assert_allclose(thin.smoothed_mean, whole.smoothed_mean[kept], rtol=0, atol=1e-10)
    np.testing.assert_allclose(thin.reconstruction_std, whole.reconstruction_std[kept], rtol=0, atol=1e-10)
    model.save(tmp_path / "known.safetensors")
    again = LDMFilter.load(tmp_path / "known.safetensors")
    xr.testing.assert_identical(again.smooth(frame), whole)
    assert "dynamics='matrices'" in repr(again)
    with pytest.raises(ValueError, match="nothing to fit"):
        again.fit(frame)


def test_what_is_wrong_is_named() -> None:
    known = matrices()
    for name, value, message in (
        ("transition_cov", np.eye(2), r"transition_cov has shape \(2, 2\), expected \(3, 3\)"),
        ("initial_mean", np.zeros((3, 1)), r"no column vectors"),
        ("measurement_cov", -np.eye(2), "measurement_cov is not positive definite"),
        ("measurement_cov", np.array([[1.0, 0.5], [0.0, 1.0]]), "measurement_cov is not symmetric"),
        ("observation_matrix", np.full((2, 3), np.nan), "observation_matrix holds a number that is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            LDMFilter.from_matrices(**(known | {name: value}))
    with pytest.raises(ValueError, match="channels holds 1 names"):
        LDMFilter.from_matrices(**known, channels=["a"])
    with pytest.raises(TypeError, match="source is a dict"):
        LDMFilter.from_filterpy({})  # type: ignore[arg-type]
    fading = KalmanFilter(dim_x=1, dim_z=1)
    fading.alpha = 1.1
    with pytest.raises(ValueError, match="fading memory"):
        LDMFilter.from_filterpy(fading)


def test_float32_batches_and_score() -> None:
    model = LDMFilter.from_matrices(**matrices(), dtype=torch.float32)
    batch = np.stack([gappy()] * 3)
    assert model.filter(batch).filtered_mean.shape == (3, 80, 3)
    assert np.isfinite(model.score(batch))
    assert model.diagnose(batch).nis > 0
