"""LDMFilter with dynamics that are not linear and noise that is not fixed: everything that a linear one does."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ldm_filter import LDMFilter, metrics
from ldm_filter.checkpoint import load_checkpoint, save_checkpoint
from ldm_filter.core.settling import steady_cov, steps_to_settle
from tests.waves import frame, waves

CHOICES = [
    ("locally-linear", "constant"),
    ("ekf", "input"),
    ("ukf", "constant"),
    ("linear", "adaptive"),
    ("linear", "jump"),
    ("continuous", "state"),
    ("ekf", "adaptive"),
    ("locally-linear", "state"),
]


@cache
def fitted(dynamics: str, noise: str) -> LDMFilter:
    model = LDMFilter(4, 2, dynamics=dynamics, noise=noise, readout="linear", window=25)
    return model.fit(frame(300), epochs=2, progress=False)


@pytest.fixture(params=CHOICES, ids="-".join)
def model(request: pytest.FixtureRequest) -> LDMFilter:
    return fitted(*request.param)


def test_filter_and_smooth(model: LDMFilter) -> None:
    data = frame(80, seed=3)
    data.iloc[30:35] = np.nan
    data.iloc[50:60, 1] = np.nan
    result = model.smooth(data)
    for name in ("predicted", "filtered", "smoothed", "projected"):
        assert np.isfinite(result[f"{name}_mean"]).all()
        assert np.linalg.eigvalsh(result[f"{name}_cov"].values.astype(float)).min() > 0.0
    assert int(np.isnan(result.nis).sum()) == 5
    error = (result.reconstruction_mean - data.to_numpy()).values[~data.isna().to_numpy()]
    assert error.std() < np.nanstd(data.to_numpy())
    online_part = model.filter(data.iloc[:40])
    np.testing.assert_allclose(online_part.filtered_mean, model.filter(data).filtered_mean[:40], rtol=0, atol=1e-5)


def test_training_improved_on_its_start(model: LDMFilter) -> None:
    assert model.history_.best_epoch >= 0
    assert np.isfinite(model.score(frame(100, seed=4)))


def test_a_filter_of_jumps_settles_within_the_steps_that_are_asked_for(tmp_path: Path) -> None:
    free = fitted("linear", "jump")
    model = LDMFilter(4, 2, noise="jump", readout="linear", window=25, settle_within=3).fit(frame(300), epochs=2, progress=False)
    path = tmp_path / "model.safetensors"
    model.save(path)
    assert LDMFilter.load(path).settle_within == 3
    reached = []
    for found in (free, model):
        dynamics, R = found.model_.dynamics, found.model_.encoder.complete_cov()
        with torch.no_grad():
            space, calm = dynamics.state_space(), dynamics.base.exact()
            parts, matrix = (calm.transition_matrix, calm.transition_cov, calm.observation_matrix, R), space.matrix.double()
            reached.append(steps_to_settle(matrix @ steady_cov(*parts) @ matrix.mT + space.cov.double(), *parts))
    assert reached[1] <= 3 < reached[0]


def test_noise_of_the_state_is_learned_with_the_encoder_fixed() -> None:
    assert any("the encoder fixed" in event for event in fitted("locally-linear", "state").history_.events)
    assert not fitted("ekf", "adaptive").history_.events


def test_forecast(model: LDMFilter) -> None:
    ahead = model.forecast(frame(60, seed=3), 12)
    assert ahead.shape[0] == 12
    assert np.isfinite(ahead.to_numpy()).all()
    assert (ahead["a"]["hi-95"] > ahead["a"]["lo-95"]).all()


def test_forecasts_of_unequal_series_are_those_of_each(model: LDMFilter) -> None:
    one, other = waves(40, 3), waves(70, 4)
    both = model.forecast([one, other], 5)
    for series, alone in zip(both, (model.forecast(one, 5), model.forecast(other, 5)), strict=True):
        np.testing.assert_allclose(series.forecast_mean, alone.forecast_mean, rtol=0, atol=1e-5)
        np.testing.assert_allclose(series.forecast_std, alone.forecast_std, rtol=1e-4, atol=1e-6)


def test_forecasts_from_within_are_those_of_the_data_so_far(model: LDMFilter) -> None:
    data = waves(60, 3)
    found = model.backtest(data, horizon=3, every=7, first=20)
    scores = []
    for origin in range(20, 57, 7):
        ahead = model.forecast(data[: origin + 1], 3)
        scores.append(metrics.crps_normal(ahead.forecast_mean.values, ahead.forecast_std.values, data[origin + 1 : origin + 4]))
    np.testing.assert_allclose(np.mean(scores, axis=0).T.ravel(), found.table["crps"], rtol=1e-4)


def test_sample(model: LDMFilter) -> None:
    data = frame(40, seed=3)
    paths = model.sample(data, num_paths=200, seed=1)
    smoothed = model.smooth(data)
    spread = np.sqrt(np.diagonal(smoothed.smoothed_cov.values, axis1=-2, axis2=-1))
    assert float(np.abs(paths.state_paths.mean("path") - smoothed.smoothed_mean).max()) < 0.5 * spread.max()
    if model.noise == "adaptive":
        with pytest.raises(ValueError, match="adaptive"):
            model.sample(steps=10)
    else:
        assert np.isfinite(model.sample(steps=10, num_paths=2).observation_paths).all()


def test_save_and_load(model: LDMFilter, tmp_path: Path) -> None:
    model.save(tmp_path / "model.safetensors")
    again = LDMFilter.load(tmp_path / "model.safetensors")
    assert (again.dynamics, again.noise) == (model.dynamics, model.noise)
    data = frame(30, seed=3)
    np.testing.assert_array_equal(again.filter(data).filtered_mean, model.filter(data).filtered_mean)


def test_diagnosis(model: LDMFilter) -> None:
    found = model.diagnose(frame(120, seed=3))
    assert 0.1 < found.nis < 10.0
    assert len(found.spectrum) >= 2
    assert "NIS" in str(found)


def test_a_model_that_is_not_linear_has_no_place_in_filterpy(model: LDMFilter) -> None:
    with pytest.raises(ValueError, match="filterpy"):
        model.to_filterpy()


@pytest.mark.parametrize("gate", [None, "hard", "student-t"])
def test_batch_and_stream_decide_alike(model: LDMFilter, gate: str | None) -> None:
    data = frame(40, seed=3)
    data.iloc[20, 0] += 50.0
    data.iloc[30:33] = np.nan
    result, online = model.filter(data, gate=gate), model.online(gate=gate)
    steps = [online.step(row.to_numpy(), time=when) for when, row in data.iterrows()]
    np.testing.assert_allclose(result.filtered_mean, torch.stack([step.mean for step in steps]), rtol=0, atol=1e-4)
    np.testing.assert_allclose(result.log_likelihood, torch.stack([step.log_likelihood for step in steps]), rtol=1e-3, atol=1e-2)
    if gate is not None:
        np.testing.assert_allclose(result.gate_weight, torch.stack([step.weight for step in steps]), rtol=1e-3, atol=1e-5)
        assert float(result.gate_weight[20]) < 0.5
    assert np.isfinite(model.anomalies(frame(30, seed=3), gate=gate).score).all()


def test_files_from_before_the_noise_was_of_the_place_load(tmp_path: Path) -> None:
    model = fitted("locally-linear", "constant")
    model.save(tmp_path / "model.safetensors")
    tensors, config = load_checkpoint(tmp_path / "model.safetensors")
    older = {name: value for name, value in tensors.items() if not name.endswith("unrest")}
    assert len(older) < len(tensors)
    save_checkpoint(tmp_path / "older.safetensors", older, config)
    loaded = LDMFilter.load(tmp_path / "older.safetensors")
    assert float(loaded.model_.dynamics.unrest.detach().abs().max()) == 0.0
    assert np.isfinite(loaded.filter(frame(30, seed=3)).filtered_mean.values).all()


@pytest.mark.parametrize("dynamics", ["locally-linear", "ekf", "ukf"])
def test_inputs(dynamics: str) -> None:
    rng = np.random.default_rng(0)
    pushes = rng.normal(size=(300, 1))
    state = np.zeros((300, 2))
    for t in range(1, 300):
        state[t] = 0.9 * state[t - 1] + [pushes[t, 0], 0.1 * rng.normal()]
    data = state @ rng.normal(size=(2, 3)) + 0.1 * rng.normal(size=(300, 3))
    model = LDMFilter(2, dynamics=dynamics, readout="linear", window=25).fit(data, inputs=pushes, epochs=3, progress=False)
    with_pushes = model.forecast(data[:100], 5, inputs=pushes[:105])
    other = pushes[:105].copy()
    other[100:] += 3.0
    changed = model.forecast(data[:100], 5, inputs=other)
    assert float(np.abs(with_pushes.forecast_mean - changed.forecast_mean).max()) > 0.1
    assert np.isfinite(model.smooth(data, inputs=pushes).smoothed_mean).all()


@pytest.mark.parametrize(("dynamics", "noise"), [("ukf", "constant"), ("locally-linear", "state"), ("linear", "adaptive")])
def test_a_gap_is_predicted_over(dynamics: str, noise: str) -> None:
    model, data = fitted(dynamics, noise), frame(60, seed=3)
    holes, blank = pd.concat([data.iloc[:20], data.iloc[26:]]), data.copy()
    blank.iloc[20:26] = np.nan
    found, dense = model.smooth(holes), model.smooth(blank)
    if noise != "adaptive":  # which grows calmer row by row
        rows = [*range(20), *range(26, 60)]
        np.testing.assert_allclose(found.filtered_mean, dense.filtered_mean[rows], rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.smoothed_mean, dense.smoothed_mean[rows], rtol=0, atol=1e-4)
    assert np.isfinite(found.filtered_mean).all()
    assert np.isfinite(model.forecast(holes, 3).to_numpy()).all()


def test_float64_and_the_same_seed() -> None:
    runs = [
        LDMFilter(2, dynamics="ekf", noise="adaptive", readout="linear", window=20, dtype=torch.float64, seed=5).fit(
            waves(120), epochs=1, progress=False
        )
        for _ in range(2)
    ]
    one, other = (run.filter(waves(30, 2)).filtered_mean.values for run in runs)
    assert one.dtype == np.float64
    np.testing.assert_array_equal(one, other)
