"""The simulator draws from the model that it returns."""

from __future__ import annotations

import pytest
import torch

from datasets.linear_gaussian import random_model, simulate


def covariance(values):
    return torch.cov(values.reshape(-1, values.shape[-1]).mT)


def test_shapes_and_types():
    drawn = simulate(series=3, steps=7, state_dim=5, measurement_dim=6, missing=0.4)
    assert drawn.states.shape == (3, 7, 5)
    assert drawn.measurements.shape == drawn.observed.shape == (3, 7, 6)
    assert drawn.observed.dtype == torch.bool
    assert {tensor.dtype for tensor in (drawn.states, drawn.measurements, drawn.measurement_cov, *drawn.model[:5], *drawn.model.initial)} == {
        torch.float64
    }
    assert (drawn.measurements[~drawn.observed] == 0).all()


def test_seed_decides_everything():
    first, again, other = (simulate(2, 4, missing=0.2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.measurements, again.measurements)
    assert torch.equal(first.model.transition_matrix, again.model.transition_matrix)
    assert not torch.allclose(first.states, other.states)
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(simulate(2, 4, missing=0.2, seed=generator).states, first.states)
    assert not torch.allclose(simulate(2, 4, seed=generator).states, first.states)


def test_residuals_have_the_stated_covariances():
    drawn = simulate(series=1500, steps=15, seed=4)
    model = drawn.model
    innovations = drawn.states[:, 1:] - drawn.states[:, :-1] @ model.transition_matrix.mT - model.transition_offset
    noise = drawn.measurements - drawn.states @ model.observation_matrix.mT - model.observation_offset
    for residual, cov in ((innovations, model.transition_cov), (noise, drawn.measurement_cov)):
        torch.testing.assert_close(residual.mean(dim=(0, 1)), torch.zeros(len(cov), dtype=torch.float64), atol=0.03, rtol=0)
        torch.testing.assert_close(covariance(residual), cov, atol=0.05, rtol=0.03)


@pytest.mark.parametrize("step", [0, 7])
def test_stationary_from_the_first_step(step):
    drawn = simulate(series=40_000, steps=8, radius=0.8, seed=9)
    mean, cov = drawn.model.initial
    deviation = cov.diagonal().sqrt()
    assert ((drawn.states[:, step].mean(dim=0) - mean).abs() < 0.02 * deviation).all()
    scale = torch.outer(deviation, deviation)
    assert ((covariance(drawn.states[:, step]) - cov).abs() < 0.03 * scale).all()


@pytest.mark.parametrize("radius", [0.3, 0.95])
def test_models_are_stable_and_stationary(radius):
    model = random_model(6, 2, torch.Generator().manual_seed(0), radius)
    assert torch.linalg.eigvals(model.transition_matrix).abs().max().item() == pytest.approx(radius)
    A, P = model.transition_matrix, model.initial.cov
    torch.testing.assert_close(A @ P @ A.mT + model.transition_cov, P)
    torch.testing.assert_close(A @ model.initial.mean + model.transition_offset, model.initial.mean)
    assert torch.linalg.eigvalsh(model.transition_cov).min() > 0.2


def test_missing_rate():
    assert (~simulate(50, 200, missing=0.3).observed).double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert simulate(5, 20).observed.all()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="missing is 1"):
        simulate(1, 1, missing=1.0)
    with pytest.raises(ValueError, match="series and steps are 1 and 0"):
        simulate(1, 0)
    with pytest.raises(ValueError, match=r"radius is 1\.0"):
        simulate(1, 1, radius=1.0)
    with pytest.raises(ValueError, match="state_dim and measurement_dim are 0 and 2"):
        simulate(1, 1, state_dim=0)
