"""Subspace identification: it finds the eigenvalues of a known model, and says so where the data do not suffice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm_filter.core.kalman import filter_moments
from ldm_filter.core.linalg import stationary
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.subspace import canonical_variates
from ldm_filter.types import Gaussian, StateSpace
from tests.models.problems import latents_of, radius, rng, stable_model


def everything(latents: Tensor) -> Tensor:
    return torch.ones(latents.shape[:2], dtype=torch.bool)


def oscillations() -> StateSpace:
    """Two damped rotations, |eig| 0.98 and 0.95, periods 12 and 31, seen through a random matrix; stationary from the start."""
    blocks = []
    for rho, period in ((0.98, 12.0), (0.95, 31.0)):
        a = 2 * math.pi / period
        blocks.append(rho * torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64))
    ssm = stable_model(4, 3)._replace(transition_matrix=torch.block_diag(*blocks), transition_offset=torch.zeros(4, dtype=torch.float64))
    ssm = ssm._replace(transition_cov=0.1 * torch.eye(4, dtype=torch.float64))
    cov = stationary(ssm.transition_matrix, ssm.transition_cov)
    return ssm._replace(initial=Gaussian(torch.zeros(4, dtype=torch.float64), cov))


def distance(found: Tensor, truth: Tensor) -> float:
    """The largest distance of a true eigenvalue from the nearest one found."""
    return float((torch.linalg.eigvals(truth)[:, None] - torch.linalg.eigvals(found)).abs().min(1).values.max())


@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_it_recovers_the_eigenvalues(noise: float) -> None:
    truth = oscillations()
    latents = latents_of(truth, noise * torch.eye(3, dtype=torch.float64), 100, 200)
    found, measurement_cov = canonical_variates(latents, everything(latents), 4)
    assert distance(found.transition_matrix, truth.transition_matrix) < 0.02
    torch.testing.assert_close(found.observation_offset, latents.mean((0, 1)))
    # the filter started there predicts nearly as well as the truth
    best = filter_moments(truth, Gaussian(latents, noise * torch.eye(3, dtype=torch.float64)))[1].mean()
    start = filter_moments(found, Gaussian(latents, measurement_cov))[1].mean()
    assert float(best - start) < 0.35 * 3
    assert float(best - start) > -0.01


def test_a_larger_state_holds_the_true_modes_too() -> None:
    truth = oscillations()
    latents = latents_of(truth, 0.1 * torch.eye(3, dtype=torch.float64), 100, 200)
    found, _ = canonical_variates(latents, everything(latents), 6)
    assert distance(found.transition_matrix, truth.transition_matrix) < 0.05


def test_hidden_steps_are_left_out() -> None:
    truth = oscillations()
    latents = latents_of(truth, 0.1 * torch.eye(3, dtype=torch.float64), 100, 200)
    observed = torch.rand(latents.shape[:2], generator=rng()) > 0.03
    garbage = torch.where(observed.unsqueeze(-1), latents, math.nan)
    found, measurement_cov = canonical_variates(garbage, observed, 4)
    assert distance(found.transition_matrix, truth.transition_matrix) < 0.03
    assert torch.isfinite(measurement_cov).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dynamics_take_it_over(dtype: torch.dtype) -> None:
    latents = latents_of(oscillations(), torch.eye(3, dtype=torch.float64), 30, 100).to(dtype)
    found, measurement_cov = canonical_variates(latents, everything(latents), 5)
    assert all(field.dtype == dtype for field in (*found[:-1], *found.initial, measurement_cov))
    LinearDynamics(5, 3).to(dtype).set_matrices(found)


def test_an_estimate_outside_of_the_unit_circle_is_pulled_in() -> None:
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)[:, None, None]
    growing = sign * (1.05 ** torch.arange(60, dtype=torch.float64))[:, None]
    growing = growing * (1 + 0.01 * torch.randn(8, 60, 1, generator=rng(), dtype=torch.float64))
    found, _ = canonical_variates(growing, everything(growing), 1)
    assert radius(found.transition_matrix) == pytest.approx(0.999, abs=1e-9)


def test_in_white_noise_there_is_little_to_predict() -> None:
    latents = torch.randn(100, 200, 2, generator=rng(), dtype=torch.float64)
    found, measurement_cov = canonical_variates(latents, everything(latents), 2)
    torch.testing.assert_close(measurement_cov, torch.eye(2, dtype=torch.float64), rtol=0, atol=0.05)
    assert float((found.observation_matrix @ found.initial.cov @ found.observation_matrix.mT).trace()) < 0.02


def test_short_series_use_fewer_lags() -> None:
    """Series of 6 steps, many of them: the default of 12 lags would leave no window. A short past costs accuracy."""
    truth = oscillations()
    latents = latents_of(truth, 0.01 * torch.eye(3, dtype=torch.float64), 3000, 6)
    found, _ = canonical_variates(latents, everything(latents), 4)
    assert distance(found.transition_matrix, truth.transition_matrix) < 0.25
    short = latents[:, :5]
    canonical_variates(short, everything(short), 4)


def test_a_longer_past_is_less_biased() -> None:
    truth = oscillations()
    latents = latents_of(truth, torch.eye(3, dtype=torch.float64), 100, 200)
    models = [canonical_variates(latents, everything(latents), 4, lags=lags)[0] for lags in (3, 6, 12)]
    error = [distance(model.transition_matrix, truth.transition_matrix) for model in models]
    assert error[0] > 1.5 * error[1] > 3.0 * error[2]


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_too_little_data_is_one_clear_error(steps: int) -> None:
    latents = torch.randn(1, steps, 2, generator=rng())
    with pytest.raises(ValueError, match="lower state_dim or give longer series"):
        canonical_variates(latents, everything(latents), 3)


def test_nothing_observed_and_nothing_varying_are_errors() -> None:
    latents = torch.randn(4, 50, 2, generator=rng())
    with pytest.raises(ValueError, match="hold 0 complete windows"):
        canonical_variates(latents, torch.zeros(4, 50, dtype=torch.bool), 2)
    with pytest.raises(ValueError, match="which must vary"):
        canonical_variates(torch.ones(4, 50, 2), everything(latents), 2)
    with pytest.raises(ValueError, match=r"lags \* m = 2 >= state_dim = 9"):
        canonical_variates(latents, everything(latents), 9, lags=1)
