"""LDMFilter.adapt: better on a series of another kind, the model itself untouched, and what it refuses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from ldm_filter import LDMFilter


def waves(period: float, steps: int = 400, seed: int = 0) -> np.ndarray:
    t, random = np.arange(steps)[:, None], np.random.default_rng(seed)
    return np.sin(2 * np.pi * t / period + [0.0, 1.0]) + 0.5 * np.cos(2 * np.pi * t / period + [2.0, 0.0]) + 0.1 * random.normal(size=(steps, 2))


@pytest.fixture(scope="module")
def model() -> LDMFilter:
    return LDMFilter(state_dim=4, encoder="linear", dtype=torch.float64).fit([waves(20.0), waves(26.0, seed=1)], epochs=5, progress=False)


def test_gaps_of_a_series_of_another_kind_are_filled_better(model: LDMFilter) -> None:
    whole = waves(40.0, seed=2)
    gappy = np.where((np.arange(400) % 50 >= 40)[:, None], np.nan, whole)
    before = {name: value.clone() for name, value in model.model_.state_dict().items() if isinstance(value, torch.Tensor)}
    own = model.adapt(gappy, iterations=8)
    lost = np.isnan(gappy)
    error, plain = ((used.smooth(gappy).reconstruction_mean.to_numpy() - whole)[lost] for used in (own, model))
    assert np.sqrt(np.mean(error**2)) < 0.5 * np.sqrt(np.mean(plain**2))
    assert own.score(whole) > model.score(whole) + 0.1
    for name, value in before.items():
        assert torch.equal(model.model_.state_dict()[name], value), name


def test_more_weight_stays_closer_and_the_result_is_a_model_like_any_other(model: LDMFilter, tmp_path) -> None:
    data = waves(40.0, seed=2)
    old, *others = (used.model_.dynamics.transition_matrix.detach() for used in (model, *(model.adapt(data, weight=w) for w in (1e4, 1.0))))
    near, far = (float((matrix - old).abs().max()) for matrix in others)
    assert near < 0.2 * far
    own = model.adapt(data)
    own.save(tmp_path / "own.safetensors")
    xr.testing.assert_allclose(LDMFilter.load(tmp_path / "own.safetensors").filter(data), own.filter(data))
    assert own.calibration_ is None


def test_it_takes_frames_with_gaps_in_time_series_of_many_lengths_and_single_channels_missing(model: LDMFilter) -> None:
    frame = pd.DataFrame(waves(40.0), columns=["a", "b"], index=pd.date_range("2024", periods=400, freq="1s"))
    fitted = LDMFilter(state_dim=4, encoder="linear", dtype=torch.float64).fit(frame, epochs=2, progress=False)
    holes = frame.drop(frame.index[[50, 51, 120]])
    holes.iloc[10:30, 1] = np.nan
    assert np.isfinite(fitted.adapt(holes).filter(holes).filtered_mean).all()
    ragged = [waves(40.0, 300), waves(40.0, 200, seed=3)]
    assert model.adapt(ragged).score(ragged) > model.score(ragged)


def test_known_inputs_are_not_mistaken_for_motion() -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(400, 1)).cumsum(0) * 0.1
    data = waves(20.0) + 2.0 * inputs
    fitted = LDMFilter(state_dim=4, encoder="linear", dtype=torch.float64).fit(data, inputs=inputs, epochs=5, progress=False)
    own = fitted.adapt(waves(40.0) + 2.0 * inputs, inputs=inputs)
    assert own.score(waves(40.0) + 2.0 * inputs, inputs=inputs) > fitted.score(waves(40.0) + 2.0 * inputs, inputs=inputs)
    with pytest.raises(ValueError, match="inputs"):
        fitted.adapt(data)


@pytest.mark.parametrize(
    ("arguments", "words"), [({"weight": 0.0}, "weight is 0.0"), ({"weight": "much"}, "weight"), ({"iterations": 0}, "iterations")]
)
def test_what_it_cannot_do_is_refused(model: LDMFilter, arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model.adapt(waves(20.0), **arguments)


def test_other_dynamics_are_refused_by_name() -> None:
    eye = np.eye(2)
    known = LDMFilter.from_matrices(0.9 * eye, eye, eye, eye, np.zeros(2), eye)
    with pytest.raises(ValueError, match="KnownDynamics"):
        known.adapt(waves(20.0))
