"""Supervised read-outs of a fitted LDMFilter, with covariance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from ldm_filter import LDMFilter, metrics
from ldm_filter.checkpoint import load_checkpoint, save_checkpoint
from tests.waves import frame, waves


@pytest.fixture(scope="module")
def fitted() -> LDMFilter:
    return LDMFilter(state_dim=4, readout="linear").fit(frame(900), epochs=6, progress=False)


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
    tensors, config = load_checkpoint(_saved(model, tmp_path))
    older = {name: value for name, value in tensors.items() if not name.endswith(("turn_power", "turn_level"))}
    save_checkpoint(tmp_path / "older.safetensors", older, config)  # written before errors had a power of their own
    assert np.isfinite(LDMFilter.load(tmp_path / "older.safetensors").filter(data).target_cov.values).all()
    with pytest.raises(ValueError, match="covariance is 'round', expected one of 'auto', 'constant', 'state-dependent'"):
        model.fit_readout(data, places, covariance="round")
    with pytest.raises(ValueError, match="40 targets are too many"):
        model.fit_readout(data, np.tile(places, 20), kind="linear", covariance="state-dependent")


def test_the_covariance_turns_by_itself_where_other_series_gain_by_it(fitted: LDMFilter, tmp_path: Path) -> None:
    """Targets on a circle gain, a linear map with noise does not, and of few series or few steps nobody can tell."""
    model, rng = LDMFilter.load(_saved(fitted, tmp_path)), np.random.default_rng(0)
    data = np.stack([waves(100, seed) for seed in range(12)])
    states = model.filter(data).filtered_mean.values
    slip = np.arctan2(states[..., 1], states[..., 0]) + 0.2 * rng.normal(size=states.shape[:2])
    circle, line = np.stack([np.cos(slip), np.sin(slip)], -1), states[..., :2] + rng.normal(size=(12, 100, 2))

    def chosen(rows: slice, steps: slice, truth: np.ndarray) -> str:
        """Which of the two the default is."""
        given = data[rows, steps], truth[rows, steps]
        cov = {kind: _target_cov(model, *given, covariance=kind) for kind in ("constant", "state-dependent", "auto")}
        assert not np.allclose(cov["constant"], cov["state-dependent"])
        np.testing.assert_array_equal(_target_cov(model, *given), cov["auto"])
        return next(kind for kind, found in cov.items() if np.array_equal(found, cov["auto"]))

    everything = slice(None)
    assert chosen(everything, everything, circle) == "state-dependent"
    assert chosen(everything, everything, line) == "constant"
    assert chosen(slice(7), everything, circle) == "constant"
    assert chosen(everything, slice(12), circle) == "constant"
    known = np.where(np.arange(12)[:, None, None] < 7, circle, np.nan)  # series without targets tell nothing
    assert chosen(everything, everything, known) == "constant"
    model.fit_readout(data, np.tile(circle, 20), kind="linear")  # more targets than a covariance is kept for


def _target_cov(model: LDMFilter, data: np.ndarray, targets: np.ndarray, **covariance: str) -> np.ndarray:
    return model.fit_readout(data, targets, kind="linear", **covariance).filter(data).target_cov.values


def _saved(model: LDMFilter, folder: Path) -> Path:
    model.save(folder / "turned.safetensors")
    return folder / "turned.safetensors"


def test_held_out_data_scale_the_covariance_of_targets_until_it_is_honest(fitted: LDMFilter, tmp_path: Path) -> None:
    model = LDMFilter.load(_saved(fitted, tmp_path))
    rng = np.random.default_rng(3)
    data = waves(3000, 31)
    truth = data @ np.ones((3, 2)) + rng.normal(0, [0.5, 1.0], (3000, 2))
    truth[1000:] += rng.normal(0, [1.0, 2.0], (2000, 2))  # what comes later is noisier than what the read-out was fitted on
    later, last = slice(1000, 2000), slice(2000, 3000)
    model.fit_readout(data[:1000], truth[:1000], kind="linear")
    plain = model.filter(data[last])
    assert model.target_scale_ == 1.0
    before = metrics.nees(plain.target_mean.values, plain.target_cov.values, truth[last], normalised=True).mean()
    assert before > 2.0
    model.fit_readout(data[:1000], truth[:1000], kind="linear", validation=(data[later], truth[later]))
    scaled = model.filter(data[last])
    np.testing.assert_allclose(scaled.target_mean.values, plain.target_mean.values)
    np.testing.assert_allclose(scaled.target_cov.values, model.target_scale_ * plain.target_cov.values, rtol=1e-5)
    assert metrics.nees(scaled.target_mean.values, scaled.target_cov.values, truth[last], normalised=True).mean() == pytest.approx(1.0, abs=0.15)
    own = model.filter(data[later])
    assert metrics.variance_scale(own.target_mean.values, own.target_cov.values, truth[later]) == pytest.approx(1.0, abs=0.05)
    with pytest.raises(ValueError, match=r"validation is a ndarray, expected a pair"):
        model.fit_readout(data, truth, validation=data)
