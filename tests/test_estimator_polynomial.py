"""LDMFilter(dynamics="polynomial"): the start by regression, gaps, inputs, a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.lorenz import noisy_process
from ldm_filter import LDMFilter, metrics

NOISE_VAR = 0.1


@pytest.fixture(scope="module")
def series() -> np.ndarray:
    return noisy_process(60, 60, NOISE_VAR, 0.01 * NOISE_VAR, np.random.default_rng(0)).observations


@pytest.fixture(scope="module")
def fitted(series: np.ndarray) -> LDMFilter:
    model = LDMFilter(3, encoder="linear", dynamics="polynomial", objective="jacobian", window=20, learning_rate=1e-5, dynamics_rate=1000.0)
    return model.fit(series, epochs=3, progress=False)


def test_chaos_is_filtered_after_three_epochs(fitted: LDMFilter) -> None:
    fresh = noisy_process(10, 100, NOISE_VAR, 0.01 * NOISE_VAR, np.random.default_rng(1))
    result = fitted.filter(fresh.observations)
    readout = metrics.affine_fit(result.filtered_mean.values, fresh.states)
    error = metrics.mse(readout.apply(result.filtered_mean.values), fresh.states)
    assert error < 0.5 * NOISE_VAR
    assert 0.7 < float(result.nis.mean()) < 1.4


def test_gaps_forecasts_and_smoothing(fitted: LDMFilter, series: np.ndarray) -> None:
    data = series[:2].copy()
    data[:, 20:25] = np.nan
    smoothed = fitted.smooth(data)
    wide = np.trace(smoothed.smoothed_cov.values, axis1=-2, axis2=-1)
    assert np.isfinite(smoothed.smoothed_mean.values).all() and (wide[:, 22] > wide[:, 10]).all()
    assert np.isfinite(fitted.forecast(series[0], horizon=5).to_array().values).all()


def test_a_file_holds_all_of_it(fitted: LDMFilter, series: np.ndarray, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model.safetensors")
    again = LDMFilter.load(tmp_path / "model.safetensors")
    for one, other in zip(fitted.filter(series[:2]).data_vars.values(), again.filter(series[:2]).data_vars.values(), strict=True):
        np.testing.assert_array_equal(one.values, other.values)


def test_inputs_and_fewer_latents_than_states() -> None:
    rng = np.random.default_rng(2)
    angle, rate = np.zeros(40), np.zeros(40)
    torque = rng.uniform(-1.0, 1.0, (40, 50))
    path = []
    for t in range(50):
        rate = rate - 0.2 * np.sin(angle) + 0.1 * torque[:, t]
        angle = angle + 0.2 * rate
        path.append(angle)
    data = np.stack(path, axis=1)[..., None] + 0.02 * rng.standard_normal((40, 50, 1))
    model = LDMFilter(2, 1, encoder="linear", dynamics="polynomial", learning_rate=1e-3, dtype=torch.float64)
    model.fit(data, inputs=torque[..., None], epochs=1, progress=False)
    assert float(model.filter(data, inputs=torque[..., None]).nis.mean()) == pytest.approx(1.0, abs=0.3)


def test_the_start_alone_filters_noise_as_large_as_a_step_of_the_motion() -> None:
    """Where the noise hides the motion, a regression on a filter that trusts it too much would teach the filter to be lost."""
    loud = noisy_process(100, 100, 1.0, 0.01, np.random.default_rng(3)).observations
    model = LDMFilter(3, encoder="linear", dynamics="polynomial", objective="jacobian", window=25, learning_rate=1e-12, dynamics_rate=1.0)
    model.fit(loud, epochs=1, progress=False)
    fresh = noisy_process(10, 200, 1.0, 0.01, np.random.default_rng(4))
    result = model.filter(fresh.observations)
    readout = metrics.affine_fit(result.filtered_mean.values, fresh.states)
    assert metrics.mse(readout.apply(result.filtered_mean.values), fresh.states) < 0.7  # of 1: the observation itself
    assert 0.7 < float(result.nis.mean()) < 1.4
