"""LDMFilter with every named method and latent model: it trains, filters, and comes back from its file; linear ICA separates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.linear_gaussian import simulate
from ldm_filter import LDMFilter
from ldm_filter.data import parse
from ldm_filter.estimator.fitting import make_plan
from ldm_filter.estimator.stages import series_plan
from ldm_filter.objectives.presets import PRESETS

DATA: NDArray[np.float64] = simulate(40, 40, state_dim=2, measurement_dim=3, radius=0.95, seed=7).measurements.double().numpy()
COMPOSED = [("log-det", "pair", "plane"), ("knn", "pair-predictor", "plane"), ("kde", "recurrent", "plane"), ("knn", "recurrent", "sphere")]


def choices(name: str) -> dict[str, Any]:
    return {"state_dim": 3, "latent_dim": 3, "objective": name, "device": "cpu"}


@pytest.mark.parametrize("arguments", [*map(choices, PRESETS), *({**choices(o), "latent_model": m, "space": s} for o, m, s in COMPOSED)], ids=str)
def test_it_trains_filters_and_comes_back(arguments: dict[str, Any], tmp_path: Path) -> None:
    model = LDMFilter(**arguments).fit(DATA, epochs=2, progress=False)
    result = model.filter(DATA)
    assert np.isfinite(result.filtered_mean).all() and np.isfinite(result.log_likelihood).all()
    assert np.linalg.eigvalsh(result.filtered_cov.values).min() > 0
    model.save(tmp_path / "m.safetensors")
    again = LDMFilter.load(tmp_path / "m.safetensors", device="cpu")
    assert again.get_params() == model.get_params()
    np.testing.assert_array_equal(again.filter(DATA).filtered_mean, result.filtered_mean)
    assert model.forecast(DATA, horizon=3).forecast_mean.shape == (40, 3, 3)


def test_contradictions_are_refused_before_training() -> None:
    for arguments, message in (
        ({"objective": "simclr", "latent_model": "recurrent"}, "leave latent_model out"),
        ({"latent_model": "ring"}, "latent_model is 'ring', expected one of"),
        ({"space": "sphere"}, "leave the sphere"),
        ({"objective": "vicreg", "noise": "input"}, "takes no notice of R"),
    ):
        with pytest.raises(ValueError, match=message):
            LDMFilter(3, **arguments).fit(DATA, epochs=1, progress=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs latent_dim equal to the number of entries"):
        LDMFilter(2, objective="ica").fit(DATA, epochs=1, progress=False)


def test_recurrent_dynamics_predict_one_step_and_refuse_what_they_have_not(tmp_path: Path) -> None:
    model = LDMFilter(3, dynamics="recurrent", readout="linear", device="cpu").fit(DATA, epochs=20, progress=False)
    result = model.filter(DATA)
    assert np.abs(result.filtered_mean.values - model.encode(DATA).latent_mean.values).max() < 1e-5
    assert float(result.nis.mean()) == pytest.approx(1.0, abs=0.3)
    marginal = -np.log(DATA.std(axis=(0, 1))).mean() - 0.5 * np.log(2 * np.pi * np.e)  # of what knows nothing of the past
    assert model.score(DATA) > marginal + 0.1
    assert model.sample(steps=5, num_paths=2).state_paths.shape[-2:] == (5, 3)
    model.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(LDMFilter.load(tmp_path / "m.safetensors", device="cpu").filter(DATA).predicted_mean, result.predicted_mean)
    for call in (model.smooth, model.diagnose, lambda data: model.forecast(data, horizon=3), lambda _: model.to_filterpy()):
        with pytest.raises(ValueError, match="recurrent"):
            call(DATA)
    assert np.isfinite(model.forecast(DATA, horizon=1).forecast_mean).all()
    online = model.online(gate="hard")
    steps = np.stack([online.step(row).mean for row in DATA[0]])
    np.testing.assert_allclose(model.filter(DATA[0], gate="hard").filtered_mean, steps, rtol=0, atol=1e-5)
    for arguments in ({"latent_dim": 2}, {"noise": "input"}):
        with pytest.raises(ValueError, match="dynamics is 'recurrent'"):
            LDMFilter(3, dynamics="recurrent", **arguments).fit(DATA, epochs=1, progress=False)  # type: ignore[arg-type]


# The filter that is fitted after pairs.


def test_the_filter_fitted_after_pairs_is_one_of_whole_series() -> None:
    """A phase behind noise: its velocity shows in many steps only, and what two steps teach a filter would lose 0.25 nats a step."""
    random = np.random.default_rng(0)
    phase = random.uniform(0.0, 2.0 * np.pi, (120, 1)) + np.cumsum(0.3 + 0.05 * random.normal(size=(120, 60)), axis=1)
    data = np.stack([np.sin(phase), 0.5 * np.sin(phase)], axis=-1) + 0.5 * random.normal(size=(120, 60, 2))
    known: dict[str, Any] = {"state_dim": 2, "latent_dim": 1, "encoder": "linear", "device": "cpu"}
    pairs = known | {"latent_model": "pair-predictor", "objective": "log-det", "window": 2}
    through_the_filter = LDMFilter(**known).fit(data[:70], epochs=6, progress=False)
    for dynamics in ("linear", "ekf"):
        model = LDMFilter(dynamics=dynamics, **pairs).fit(data[:70], epochs=6, batch_size=500, progress=False)
        assert model.score(data[70:]) == pytest.approx(through_the_filter.score(data[70:]), abs=0.02)
        later = model.filter(data[70:]).nis.isel(time=slice(20, None))
        assert float(later.mean()) == pytest.approx(float(through_the_filter.filter(data[70:]).nis.mean()), abs=0.05)
        assert any("the filter of these latents" in event for event in model.history_.events)


def test_long_windows_hold_as_many_steps_in_a_batch() -> None:
    sequences = parse([np.zeros((steps, 2)) for steps in (250, 80)])[0]
    plan = make_plan(sequences, None, window=2, batch_size=500, epochs=3, seed=0)
    long = series_plan(plan)
    assert (long.training.length, long.batch_size, long.epochs, long.validation) == (100, 10, 3, None)
    assert series_plan(long) is long
    held = series_plan(make_plan(sequences, 0.1, window=2, batch_size=4, epochs=3, seed=0))
    assert held.validation is not None and (held.validation.length, held.batch_size) == (25, 4)


# Linear independent component analysis.


def separation(found: NDArray, sources: NDArray) -> float:
    """The least correlation of a true source with its own estimate, up to order and sign."""
    size = sources.shape[-1]
    table = np.abs(np.corrcoef(found.reshape(-1, size).T, sources.reshape(-1, size).T)[:size, size:])
    assert len(set(table.argmax(0))) == size
    return float(table.max(0).min())


@pytest.mark.parametrize("seed", [0, 1])
def test_two_mixed_ornstein_uhlenbeck_processes_are_separated(seed: int) -> None:
    """theta 2 and 0.2, sigma 0.3, steps of 0.1, mixed by a rotation. Gaussian: only their time constants tell them apart."""
    random = np.random.default_rng(seed)
    theta, sigma, step = np.array([2.0, 0.2]), 0.3, 0.1
    decay, stationary = np.exp(-theta * step), sigma / np.sqrt(2.0 * theta)
    sources = np.empty((40, 400, 2))
    sources[:, 0] = stationary * random.normal(size=(40, 2))
    for t in range(1, 400):
        sources[:, t] = decay * sources[:, t - 1] + stationary * np.sqrt(1.0 - decay**2) * random.normal(size=(40, 2))
    angle = random.uniform(0.3, 1.2)
    mixed = sources @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    model = LDMFilter(2, objective="temporal-ica", seed=seed, device="cpu").fit(mixed, progress=False)
    assert separation(model.encode(mixed).latent_mean.values, sources) > 0.99


@pytest.mark.parametrize("seed", [0, 1])
def test_a_super_gaussian_mixture_is_separated(seed: int) -> None:
    """Three Laplacian sources without memory, mixed at random: only their tails tell them apart."""
    random = np.random.default_rng(seed)
    sources = random.laplace(size=(20, 500, 3))
    mixed = sources @ random.normal(size=(3, 3))
    model = LDMFilter(3, objective="ica", seed=seed, device="cpu").fit(mixed, progress=False)
    assert separation(model.encode(mixed).latent_mean.values, sources) > 0.99
