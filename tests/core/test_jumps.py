"""The filter with two hypotheses against numerical integration, the linear filter, and what is known of simulated jumps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from ldm_filter.core import jumps
from ldm_filter.core.jumps import JumpStateSpace
from ldm_filter.core.kalman import filter_sequence
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.jumps import JumpDynamics
from ldm_filter.models.named import named_dynamics
from ldm_filter.types import Context, Gaussian, StateSpace
from tests.core.problems import constant_ssm, random_measurements


def scalar(chance: float = 0.1) -> JumpStateSpace:
    """h' = 0.9 h + 0.2 + w; in a jump h <- -h + 3 + u."""

    def one(x: float) -> Tensor:
        return torch.tensor([[x]], dtype=torch.float64)

    calm = StateSpace(one(0.9), one(0.2)[0], one(0.05), one(1.0), one(0.0)[0], Gaussian(one(0.3)[0], one(0.5)))
    return JumpStateSpace(calm, torch.tensor(chance).double(), one(-1.0), one(3.0)[0], one(0.4))


def test_two_steps_are_the_integral() -> None:
    """After one step the belief is Gaussian still, so the second step's density and moments are exact: those of the mixture on a grid."""
    z, noise = torch.tensor([[[0.1], [1.4]]], dtype=torch.float64), 0.3
    result = jumps.filter_sequence(scalar(), Gaussian(z, noise * torch.eye(1).double()))
    grid = np.linspace(-8, 10, 40001)
    space = grid[1] - grid[0]
    gain = 0.5 / (0.5 + noise)
    mean, var = 0.3 + gain * (0.1 - 0.3), 0.5 * (1 - gain)
    m, v = 0.9 * mean + 0.2, 0.81 * var + 0.05
    prior = 0.9 * norm.pdf(grid, m, math.sqrt(v)) + 0.1 * norm.pdf(grid, 3.0 - m, math.sqrt(v + 0.4))
    joint = prior * norm.pdf(1.4, grid, math.sqrt(noise))
    evidence = joint.sum() * space
    posterior = joint / evidence
    center = (grid * posterior).sum() * space
    assert float(result.log_likelihood[0, 1]) == pytest.approx(math.log(evidence), abs=1e-8)
    assert float(result.filtered.mean[0, 1, 0]) == pytest.approx(center, abs=1e-8)
    assert float(result.filtered.cov[0, 1, 0, 0]) == pytest.approx(((grid - center) ** 2 * posterior).sum() * space, abs=1e-8)
    level = (grid * prior).sum() * space
    assert float(result.predicted.mean[0, 1, 0]) == pytest.approx(level, abs=1e-8)
    assert float(result.predicted.cov[0, 1, 0, 0]) == pytest.approx(((grid - level) ** 2 * prior).sum() * space, abs=1e-8)


@pytest.mark.parametrize("chance", [1e-300, 0.3])
def test_without_jumps_it_is_the_linear_filter(chance: float) -> None:
    """Because they never come, or because they change nothing."""
    ssm, measurements = constant_ssm(3, 2), random_measurements(4, 12, 2)
    eye = torch.eye(3, dtype=torch.float64)
    cov = eye if chance < 0.1 else 0.0 * eye
    model = JumpStateSpace(ssm, torch.tensor(chance).double(), eye, torch.zeros(3).double(), cov)
    observed = torch.rand(4, 12, 2, generator=torch.Generator().manual_seed(0)) > 0.2
    found, expected = jumps.filter_sequence(model, measurements, observed), filter_sequence(ssm, measurements, observed)
    for one, other in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(one.mean, other.mean)
        torch.testing.assert_close(one.cov, other.cov.expand_as(one.cov))
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood)
    smoothed = smooth_sequence(*jumps.linearised(model, found)).smoothed
    torch.testing.assert_close(smoothed.mean, smooth_sequence(ssm, expected).smoothed.mean, rtol=1e-6, atol=1e-6)


@dataclass
class Walks:
    dynamics: JumpDynamics
    states: Tensor
    jumped: Tensor
    measurements: Gaussian


@pytest.fixture(scope="module")
def walks() -> Walks:
    """Paths of a slow rotation that is thrown to the opposite side, from the model itself, by its own sampler."""
    base = LinearDynamics(2, 2, generator=torch.Generator().manual_seed(0)).double()
    turn = torch.tensor([[math.cos(0.2), -math.sin(0.2)], [math.sin(0.2), math.cos(0.2)]]).double()
    eye, zero = torch.eye(2).double(), torch.zeros(2).double()
    base.start_from(StateSpace(0.9995 * turn, zero, 1e-3 * eye, eye, zero, Gaussian(zero, eye)))
    dynamics = JumpDynamics(base, chance=0.03).double()
    with torch.no_grad():
        dynamics.matrix.copy_(-eye)
        dynamics.factor.copy_(torch.diag(torch.full((2,), math.log(0.05)).double()))
        states = dynamics.prior_paths(80, torch.Generator().manual_seed(1), 64)[:, 0]
        forward = states[:, :-1] @ base.transition_matrix.mT
        jumped = (states[:, 1:] - forward).norm(dim=-1) > (states[:, 1:] + forward).norm(dim=-1)
        C = base.state_space().observation_matrix
        z = states @ C.mT + 0.3 * torch.randn(states.shape, generator=torch.Generator().manual_seed(2)).double()
    return Walks(dynamics, states, jumped, Gaussian(z, 0.09 * eye))


def test_the_sampler_jumps_as_often_as_it_says(walks: Walks) -> None:
    assert float(walks.jumped.double().mean()) == pytest.approx(0.03, abs=0.008)


def test_it_follows_jumps_and_is_calibrated(walks: Walks) -> None:
    with torch.no_grad():
        result = walks.dynamics.filter(walks.measurements)
        plain = walks.dynamics.base.filter(walks.measurements)
        smoothed = walks.dynamics.smooth(result).smoothed
    error = result.filtered.mean - walks.states
    after = torch.nn.functional.pad(walks.jumped, (1, 0))
    assert float(error[after].square().mean()) < 0.1 * float((plain.filtered.mean - walks.states)[after].square().mean())
    nees = (error.unsqueeze(-2) @ torch.linalg.solve(result.filtered.cov, error.unsqueeze(-1))).mean() / 2
    assert float(nees) == pytest.approx(1.0, abs=0.15)
    assert float((smoothed.mean - walks.states).square().mean()) < 0.7 * float(error.square().mean())
    assert float(result.log_likelihood.mean()) > float(plain.log_likelihood.mean()) + 0.1


def test_a_gap_gives_a_jump_more_chances(walks: Walks) -> None:
    model = walks.dynamics.state_space(Context(torch.tensor([[1.0, 1.0, 5.0]]).double()))
    torch.testing.assert_close(model.chance.detach(), 1 - 0.97 ** torch.tensor([[1.0, 1.0, 5.0]]).double(), rtol=1e-5, atol=1e-8)


def test_forecasts_spread_as_sampled_paths_do(walks: Walks) -> None:
    belief = Gaussian(torch.tensor([[1.0, -0.5]]).double(), 0.01 * torch.eye(2).double()[None])
    with torch.no_grad():
        ahead = walks.dynamics.forecast(belief, 6)
        paths = walks.dynamics.prior_paths(7, torch.Generator().manual_seed(3), 20_000, initial=belief)[:, 0, 1:]
    torch.testing.assert_close(ahead.mean[0], paths.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(ahead.cov[0, -1], torch.cov(paths[:, -1].mT), rtol=0.1, atol=0.03)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"chance is 1\.5"):
        JumpDynamics(LinearDynamics(2, 2), chance=1.5)
    with pytest.raises(ValueError, match="noise is 'jump'"):
        named_dynamics(LinearDynamics(2, 2), "ekf", "jump")
