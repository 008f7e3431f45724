"""How LDMFilter is made: its parameters, what a fit leaves behind, and a saved one."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import ldm_filter
from ldm_filter import LDMFilter
from ldm_filter.data.labels import parse
from ldm_filter.data.windows import Windows
from ldm_filter.estimator.fitting import common_scale
from ldm_filter.estimator.options import training_options
from tests.waves import frame, waves


@pytest.fixture(scope="module")
def fitted() -> LDMFilter:
    return LDMFilter(state_dim=4, readout="linear").fit(frame(900), epochs=6, progress=False)


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


def test_save_and_load_give_the_same_results(fitted: LDMFilter, tmp_path: Path) -> None:
    gaps = frame(150, seed=5)
    gaps.iloc[40:50] = np.nan
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
        ({"state_dim": 2, "patience": 0}, "patience is 0, expected at least 1 epoch"),
        ({"state_dim": 2, "patience": "long"}, "patience is 'long', expected a whole number of epochs"),
        ({"state_dim": 2, "tolerance": -0.1}, "tolerance is -0.1"),
        ({"state_dim": 2, "tolerance": math.nan}, "tolerance is nan"),
    ],
)
def test_bad_parameters_are_named(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LDMFilter(**params).fit(waves(50), epochs=1, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("patience", [2.5, True])
def test_patience_is_a_whole_number(patience: object) -> None:
    with pytest.raises(TypeError, match=f"patience is {patience}"):
        LDMFilter(state_dim=2, patience=patience).fit(waves(50), epochs=1, progress=False)  # type: ignore[arg-type]


def test_patience_and_tolerance_end_a_fit_that_gets_no_further() -> None:
    """No epoch is better by a thousand nats: the fit ends after as many as it was told to wait, and by itself only where it never waits."""

    def epochs(**params: Any) -> int:
        return len(LDMFilter(state_dim=2, readout="linear", **params).fit(waves(200), epochs=6, progress=False).history_.epochs)

    assert epochs(patience=2, tolerance=1e3) == 3
    assert epochs(patience=None, tolerance=1e3) == 6


def test_patience_is_ten_epochs_by_default_and_without_end_with_targets() -> None:
    params, sequences = LDMFilter(state_dim=2).get_params(), parse(waves(50))[0]
    found = [training_options(params | given, 20, sequences, False, None, weight) for given in ({}, {"patience": 4}) for weight in (None, 0.5)]
    assert [option.patience for option in found] == [10, None, 4, 4]


def test_get_and_set_params_and_repr() -> None:
    model = LDMFilter(state_dim=3).set_params(noise="input", seed=7)
    assert model.get_params()["noise"] == "input"
    assert repr(model) == "LDMFilter(state_dim=3, noise='input', seed=7)"
    assert repr(LDMFilter(**model.get_params())) == repr(model)
