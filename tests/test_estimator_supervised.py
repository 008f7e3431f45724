"""LDMFilter.fit with targets: supervised, semi-supervised, saved, and refused."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray

from ldm_filter import LDMFilter, metrics


def mixed(series: int, steps: int, seed: int) -> tuple[NDArray, NDArray]:
    """Six channels of a large slow wave, and a small fast one: the target."""
    rng = np.random.default_rng(seed)
    phases = rng.uniform(0, 2 * np.pi, (2, series, 1)) + np.array([0.15, 0.9])[:, None, None] * np.arange(steps)
    slow, fast = (np.stack([np.cos(phase), np.sin(phase)], -1) for phase in phases)
    mixing = np.random.default_rng(0).normal(size=(4, 6)) * np.array([1.0, 1.0, 0.35, 0.35])[:, None]
    data = np.concatenate([slow, fast], -1) @ mixing + 0.3 * rng.normal(size=(series, steps, 6))
    return data.astype(np.float32), fast.astype(np.float32)


@pytest.fixture(scope="module")
def fitted() -> LDMFilter:
    data, targets = mixed(20, 60, 1)
    return LDMFilter(state_dim=4, encoder="linear", readout="linear").fit(data, targets=targets, epochs=40, progress=False)


def test_targets_are_told_with_covariance(fitted: LDMFilter) -> None:
    data, targets = mixed(10, 60, 2)
    result = fitted.filter(data)
    assert result.target_mean.dims == ("series", "time", "target") and result.target_cov.shape == (10, 60, 2, 2)
    late = (slice(None), slice(20, None))
    assert metrics.r2(result.target_mean.values[late], targets[late]) > 0.9
    held = metrics.coverage(result.target_mean.values, result.target_cov.values, targets, 0.95)
    assert 0.88 < held < 0.99
    assert fitted.history_.epochs[-1]["target_nll"] < fitted.history_.epochs[0]["target_nll"]
    assert len(fitted.history_.epochs) == 40  # the schedule is run to its end
    assert metrics.r2(fitted.smooth(data).target_mean.values, targets) > metrics.r2(result.target_mean.values, targets)


def test_a_tenth_of_the_labels_beats_a_fit_without() -> None:
    """Two states hold one wave. Without labels it is the large one, whatever is read out of them afterwards."""
    (data, targets), (test, truth) = mixed(40, 60, 3), mixed(10, 60, 4)
    some = targets.copy()
    some[4:] = np.nan
    told = LDMFilter(state_dim=2, readout="linear", seed=1).fit(data, targets=some, warm_up=20, epochs=30, progress=False)
    blind = LDMFilter(state_dim=2, readout="linear", seed=1).fit(data, epochs=30, progress=False).fit_readout(data, some)
    ours, theirs = (metrics.r2(model.filter(test).target_mean.values, truth) for model in (told, blind))
    assert ours > 0.6 and ours > theirs + 0.3
    assert {"alignment", "entropy", "target_nll"} <= set(told.history_.epochs[-1])


def test_a_saved_model_keeps_its_head(fitted: LDMFilter, tmp_path: Path) -> None:
    data, targets = mixed(3, 40, 5)
    path = tmp_path / "model.safetensors"
    fitted.save(path)
    xr.testing.assert_equal(LDMFilter.load(path).filter(data), fitted.filter(data))
    network = LDMFilter(state_dim=4, latent_dim=3).fit(data, targets=targets, epochs=1, warm_up=2, progress=False, validation=None)
    network.save(path)
    xr.testing.assert_equal(LDMFilter.load(path).filter(data), network.filter(data))


@pytest.mark.parametrize("covariance", ["scaled", "state-dependent"])
def test_the_covariance_of_a_trained_head_is_set_on_held_out_series(fitted: LDMFilter, covariance: str, tmp_path: Path) -> None:
    data, targets = mixed(12, 60, 7)
    targets[2, 3:9] = np.nan
    known = ~np.isnan(targets).any(-1)
    model = copy.deepcopy(fitted)
    model.target_readout_.scale_covariance(0.2)  # type: ignore[union-attr]
    before = model.filter(data)
    assert model.calibrate_targets(data, targets, covariance) is model
    after = model.filter(data)
    np.testing.assert_array_equal(after.target_mean.values, before.target_mean.values)

    def figure(result: xr.Dataset, name: str) -> float:
        function = {"nees": lambda *parts: float(metrics.nees(*parts, normalised=True).mean()), "nll": metrics.nll}[name]
        return function(result.target_mean.values[known], result.target_cov.values[known], targets[known])

    assert figure(before, "nees") > 2.0
    assert figure(after, "nees") == pytest.approx(1.0, abs=1e-3 if covariance == "scaled" else 0.05)
    assert figure(after, "nll") < figure(before, "nll") - 0.5
    if covariance == "scaled":
        np.testing.assert_allclose(after.target_cov.values, model.target_scale_ * before.target_cov.values, rtol=1e-4)
    else:
        scaled = figure(copy.deepcopy(model).calibrate_targets(data, targets).filter(data), "nll")
        assert figure(after, "nll") <= scaled + 1e-3
        again = copy.deepcopy(model).calibrate_targets(data, targets, covariance).filter(data)  # in place of the first, not on top of it
        np.testing.assert_allclose(again.target_cov.values, after.target_cov.values, rtol=1e-4)
    model.save(tmp_path / "model.safetensors")
    xr.testing.assert_equal(LDMFilter.load(tmp_path / "model.safetensors").filter(data), after)


def test_calibrating_targets_refuses_what_it_cannot_do(fitted: LDMFilter) -> None:
    data, targets = mixed(3, 40, 5)
    with pytest.raises(ValueError, match="covariance is 'wide'"):
        fitted.calibrate_targets(data, targets, "wide")
    with pytest.raises(ValueError, match=r"1 channels .*, the model's read-out has 2"):
        fitted.calibrate_targets(data, targets[..., :1])
    plain = LDMFilter(state_dim=2).fit(data, epochs=1, progress=False)
    with pytest.raises(ValueError, match="no read-out of targets to calibrate"):
        plain.calibrate_targets(data, targets)


def test_a_target_that_is_hardly_known_is_refused(fitted: LDMFilter) -> None:
    data, targets = mixed(1, 40, 5)
    rare = targets.copy()
    rare[:, 2:, 1] = np.nan
    with pytest.raises(ValueError, match=r"targets \['1'\] are known at fewer than 3 steps"):
        copy.deepcopy(fitted).fit_readout(data, rare)


def test_targets_are_matched_by_name() -> None:
    """Those that a read-out is calibrated on, and those that choose its epoch."""
    data, targets = mixed(2, 60, 6)
    named = [pd.DataFrame(part, columns=["u", "v"]) for part in targets]
    turned = [part[["v", "u"]] for part in named]
    series = [pd.DataFrame(part) for part in data]
    model = LDMFilter(state_dim=2).fit(series, targets=named, epochs=1, progress=False)
    one, other = (copy.deepcopy(model).calibrate_targets(series, part) for part in (named, turned))
    assert one.target_scale_ == other.target_scale_ and other.target_names_ == ["u", "v"]
    strange = [part.rename(columns={"v": "w"}) for part in named]
    with pytest.raises(ValueError, match=r"targets holds 2 channels \['u', 'w'\], the model's read-out has 2: \['u', 'v'\]; select or rename"):
        model.calibrate_targets(series, strange)
    with pytest.raises(ValueError, match=r"targets holds 2 channels \['u', 'w'\]"):
        model.fit_readout(series, named, validation=(series, strange))
    with pytest.raises(ValueError, match="validation_targets holds 2 channels"):
        LDMFilter(state_dim=2).fit(series, targets=named, validation=series, validation_targets=strange, epochs=1, progress=False)
    unnamed = copy.deepcopy(model).calibrate_targets(series, [part.to_numpy() for part in named])
    assert unnamed.target_scale_ == one.target_scale_


def test_frames_of_unequal_length_and_names() -> None:
    data, targets = mixed(2, 60, 6)
    index = pd.date_range("2024-01-01", periods=60, freq="s")
    frames = [pd.DataFrame(data[0], index=index), pd.DataFrame(data[1][:40], index=index[:40])]
    wanted = [pd.DataFrame(targets[0], index=index, columns=["u", "v"]), pd.DataFrame(targets[1][:40], index=index[:40], columns=["u", "v"])]
    wanted[0].iloc[5:9] = np.nan
    model = LDMFilter(state_dim=4, dtype=torch.float64).fit(frames, targets=wanted, supervision=0.7, epochs=2, progress=False)
    result = model.filter(frames[1])
    assert list(result.target.values) == ["u", "v"] and result.target_mean.shape == (40, 2)
    assert np.isfinite(result.target_cov.values).all()


def test_refusals() -> None:
    data, targets = mixed(6, 30, 7)
    model = LDMFilter(state_dim=4)
    with pytest.raises(ValueError, match="one row per step"):
        model.fit(data, targets=targets[:, :20])
    with pytest.raises(ValueError, match=r"targets \['1'\] are never known; leave them out"):
        model.fit(data, targets=np.where([True, False], targets, np.nan))
    with pytest.raises(ValueError, match="supervision is given, but targets is None"):
        model.fit(data, supervision=0.5)
    with pytest.raises(ValueError, match="warm_up is given, but targets is None"):
        model.fit(data, warm_up=3)
    for weight in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match=f"supervision is {weight}"):
            model.fit(data, targets=targets, supervision=weight)
    with pytest.raises(TypeError, match="supervision is 'all'"):
        model.fit(data, targets=targets, supervision="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="validation_targets is None"):
        model.fit(data, targets=targets, validation=data)
    with pytest.raises(ValueError, match="warm_up needs a latent for each of the 2 targets, and latent_dim is 1"):
        LDMFilter(state_dim=4, latent_dim=1).fit(data, targets=targets, warm_up=1)
    for choices in ({"objective": "stop-gradient"}, {"dynamics": "recurrent"}, {"objective": "vicreg"}):
        with pytest.raises(ValueError, match="trained through the filter's belief"):
            LDMFilter(state_dim=4, **choices).fit(data, targets=targets)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="state_dim is 'auto'"):
        LDMFilter(state_dim="auto").fit(data, targets=targets)
    assert not hasattr(model, "readout_")
