"""How fast a predicted covariance settles: against scipy's Riccati solver, the filter's own covariances, and what follows from them."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import solve_discrete_are
from torch import Tensor

from ldm_filter.core.kalman import filter_sequence
from ldm_filter.core.settling import NEAR, least_noise, steady_cov, steps_to_settle, widths
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.jumps import JumpDynamics
from ldm_filter.types import Gaussian, StateSpace
from tests.core.problems import constant_ssm


def turning(noise: float = 1e-3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, Q, C, R of a turning point seen in one of its two coordinates."""
    turn = torch.tensor([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]]).double()
    return 0.99 * turn, noise * torch.diag(torch.tensor([1.0, 2.0]).double()), torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.1]]).double()


def test_the_steady_covariance_is_scipys() -> None:
    for size in (1, 3, 6):
        ssm = constant_ssm(size, max(1, size // 2), seed=size)
        R = 0.3 * torch.eye(max(1, size // 2)).double()
        A, Q, C = ssm.transition_matrix, ssm.transition_cov, ssm.observation_matrix
        expected = solve_discrete_are(A.mT.numpy(), C.mT.numpy(), Q.numpy(), R.numpy())
        torch.testing.assert_close(steady_cov(A, Q, C, R), torch.as_tensor(expected), rtol=1e-9, atol=1e-12)
        many = steady_cov(A.expand(2, -1, -1), torch.stack([Q, 3 * Q]), C, R)
        torch.testing.assert_close(many[1], steady_cov(A, 3 * Q, C, R))


def test_what_grows_unseen_has_no_steady_covariance() -> None:
    A, Q = torch.diag(torch.tensor([0.9, 1.1]).double()), torch.eye(2).double()
    with pytest.raises(ValueError, match="no steady value"):
        steady_cov(A, Q, torch.tensor([[1.0, 0.0]]).double(), torch.eye(1).double())


def test_widths_are_those_of_the_filters_predictions() -> None:
    A, Q, C, R = turning()
    start, steps, zero = torch.diag(torch.tensor([2.0, 0.5]).double()), 12, torch.zeros(2).double()
    ssm = StateSpace(A, zero, Q, C, torch.zeros(1).double(), Gaussian(zero, start))
    predicted = filter_sequence(ssm, Gaussian(torch.zeros(1, steps + 1, 1).double(), R.expand(1, 1, 1, 1))).predicted.cov[0]
    steady = steady_cov(A, Q, C, R)
    expected = [float(torch.linalg.eigvals(torch.linalg.solve(steady, cov)).real.max()) for cov in predicted[1:]]
    torch.testing.assert_close(widths(start, steps, A, Q, C, R), torch.tensor(expected).double().clamp_min(1.0))
    found = steps_to_settle(start, A, Q, C, R)
    along = widths(start, found, A, Q, C, R)
    assert along[-1] <= NEAR < along[-2]
    assert steps_to_settle(start, A, Q, C, R, most=3) == 4


def test_the_least_noise_is_the_least() -> None:
    A, Q, C, R = turning()
    jump = -torch.eye(2).double(), torch.eye(2).double()
    factor, steps = least_noise(10, jump, A, Q, C, R)
    assert factor > 1.0 and steps == 10
    for share, settled in ((1.0, True), (2 ** (-1 / 16), False)):
        start = jump[0] @ steady_cov(A, share * factor * Q, C, R) @ jump[0].mT + jump[1]
        assert bool(widths(start, 10, A, share * factor * Q, C, R)[-1] <= NEAR) is settled
    assert least_noise(200, jump, A, Q, C, R) == (1.0, 200)


def test_what_cannot_be_met_says_what_can() -> None:
    """One coordinate is seen: after one step nothing is settled, however much noise there is."""
    A, Q, C, R = turning()
    factor, steps = least_noise(1, (torch.eye(2).double(), 0.05 * torch.eye(2).double()), A, Q, C, R)
    assert factor == math.inf and steps > 1
    assert least_noise(steps, (torch.eye(2).double(), 0.05 * torch.eye(2).double()), A, Q, C, R)[0] < math.inf


def jumping(settle_within: int | None) -> JumpDynamics:
    A, Q, C, _ = turning()
    base, zero = LinearDynamics(2, 1, generator=torch.Generator().manual_seed(0)).double(), torch.zeros(2).double()
    base.start_from(StateSpace(A, zero, Q, C, zero[:1], Gaussian(zero, torch.eye(2).double())))
    dynamics = JumpDynamics(base, settle_within=settle_within).double()
    with torch.no_grad():
        dynamics.factor.copy_(torch.zeros(2, 2))
    return dynamics


def test_dynamics_settle_as_asked_and_only_the_noise_of_calm_steps_changes() -> None:
    A, Q, C, R = turning()
    dynamics, before = jumping(10), jumping(10).state_space()
    factor = dynamics.settle(R)
    after = dynamics.state_space()
    assert factor > 1.0
    torch.testing.assert_close(after.calm.transition_cov, factor * before.calm.transition_cov, rtol=1e-6, atol=0)
    for name in ("transition_matrix", "transition_offset", "observation_matrix"):
        torch.testing.assert_close(getattr(after.calm, name), getattr(before.calm, name))
    torch.testing.assert_close(after.cov, before.cov)
    start = after.matrix @ steady_cov(A, factor * Q, C, R) @ after.matrix.mT + after.cov
    assert steps_to_settle(start, A, factor * Q, C, R) <= 10
    assert dynamics.settle(R) == pytest.approx(1.0)
    untouched = jumping(None)
    assert untouched.settle(R) == 1.0
    torch.testing.assert_close(untouched.state_space().calm.transition_cov, before.calm.transition_cov, rtol=0, atol=0)


def test_dynamics_that_cannot_settle_say_so() -> None:
    R, dynamics = turning()[3], jumping(1)
    with torch.no_grad():  # a jump that moves the state by a fifth of what it did
        dynamics.matrix.copy_(torch.eye(2))
        dynamics.factor.copy_(torch.diag(torch.full((2,), math.log(0.2)).double()))
    with pytest.raises(ValueError, match=r"settle_within is 1, and even with calm steps .* pass at least \d+, or None"):
        dynamics.settle(R)
    with pytest.raises(ValueError, match="settle_within is 0"):
        jumping(0)
