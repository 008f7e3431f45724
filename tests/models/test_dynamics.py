"""Linear dynamics: stable for every value of the parameters, and able to take over every stable model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldm_filter.core.kalman import filter_moments
from ldm_filter.core.linalg import stationary
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.factors import factor, unfactor
from ldm_filter.types import Gaussian
from tests.models.problems import assert_same_model, cast, radius, rng, stable_model


def scrambled(n: int, scale: float, seed: int, dtype: torch.dtype, **choices: Any) -> LinearDynamics:
    """Every parameter drawn anew, at this scale."""
    dynamics = LinearDynamics(n, n, **choices).to(dtype)
    with torch.no_grad():
        for i, parameter in enumerate(dynamics.parameters()):
            parameter.copy_(scale * torch.randn(parameter.shape, generator=rng(seed + i), dtype=torch.float64))
    return dynamics


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 12),
    log_scale=st.floats(-8, 8),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_spectral_radius_is_below_one_for_any_parameters(n: int, log_scale: float, seed: int, dtype: torch.dtype) -> None:
    """Of the matrix as it is rounded to the parameters' dtype; and the stationary covariance exists."""
    transition = scrambled(n, 10.0**log_scale, seed, dtype).transition_matrix.detach()
    assert radius(transition) < 1.0 - 1e-6
    assert torch.isfinite(stationary(transition.double(), torch.eye(n, dtype=torch.float64))).all()


@pytest.mark.parametrize("fill", [0.0, 1.0, -1.0, 1e30, -1e30])
def test_equal_parameters_are_no_special_case(fill: float) -> None:
    dynamics = LinearDynamics(5, 5)
    with torch.no_grad():
        dynamics.contraction.fill_(fill)
        dynamics.slack.fill_(fill)
    assert radius(dynamics.transition_matrix) < 1.0 - 1e-6


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(1, 8), scale=st.floats(1e-3, 20.0), seed=st.integers(0, 10_000), cov=st.sampled_from(["full", "diagonal"]))
def test_covariances_are_positive_definite_for_any_parameters(n: int, scale: float, seed: int, cov: str) -> None:
    ssm = scrambled(n, scale, seed, torch.float32, transition_cov=cov)()
    for covariance in (ssm.transition_cov, ssm.initial.cov):
        relative = covariance.detach().double()
        root = relative.diagonal().sqrt()
        assert float(torch.linalg.eigvalsh(relative / root / root[:, None]).min()) > 0.0
    if cov == "diagonal":
        assert torch.equal(ssm.transition_cov, torch.diag(ssm.transition_cov.diagonal()))


def test_the_start_has_the_radius_asked_for_and_comes_from_the_generator() -> None:
    for r in (0.5, 0.95, 0.999):
        moduli = torch.linalg.eigvals(LinearDynamics(6, 3, radius=r, generator=rng()).transition_matrix.detach()).abs()
        assert float((moduli - r).abs().max()) < 0.15
    one, same, other = (LinearDynamics(4, 2, generator=rng(seed))() for seed in (0, 0, 1))
    assert torch.equal(one.transition_matrix, same.transition_matrix)
    assert torch.equal(one.observation_matrix, same.observation_matrix)
    assert not torch.equal(one.transition_matrix, other.transition_matrix)


# Taking over given matrices.


@pytest.mark.parametrize("rho", [0.5, 0.9999])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 1), (8, 3), (32, 32)])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_set_matrices_is_the_inverse_of_forward(dtype: torch.dtype, atol: float, n: int, m: int, rho: float) -> None:
    ssm = stable_model(n, m, seed=n, rho=rho)
    dynamics = LinearDynamics(n, m).to(dtype)
    dynamics.set_matrices(cast(ssm, dtype) if rho < 0.99 else ssm)
    found = dynamics()
    assert found.transition_matrix.dtype == dtype
    assert_same_model(found, ssm, atol)
    assert_same_model(dynamics.exact(), ssm, atol)
    assert radius(found.transition_matrix) == pytest.approx(rho, abs=1e-5)


def rotation(n: int, rho: float) -> Tensor:
    return rho * torch.linalg.qr(torch.randn(n, n, generator=rng(n), dtype=torch.float64))[0]


def skewed(n: int, rho: float) -> Tensor:
    """Far from normal: eigenvalues spread from 0.1 to rho, eigenvectors of a random matrix."""
    vectors = torch.randn(n, n, generator=rng(n), dtype=torch.float64)
    return vectors @ torch.diag(torch.linspace(0.1, rho, n, dtype=torch.float64)) @ torch.linalg.inv(vectors)


def velocity(n: int, rho: float) -> Tensor:
    """Blocks [rho 1; 0 rho]: a position and its damped velocity, with equal eigenvalues."""
    return rho * torch.eye(n, dtype=torch.float64) + torch.block_diag(*[torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)] * (n // 2))


@pytest.mark.parametrize("matrix", [rotation, skewed, velocity])
@pytest.mark.parametrize("n", [2, 8, 32])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_set_matrices_takes_matrices_far_from_a_contraction(dtype: torch.dtype, atol: float, n: int, matrix: Any) -> None:
    transition = matrix(n, 0.99)
    ssm = stable_model(n, 2)._replace(transition_matrix=transition)
    mean = torch.ones(n, dtype=torch.float64)
    ssm = ssm._replace(transition_offset=mean - transition @ mean)
    dynamics = LinearDynamics(n, 2).to(dtype)
    dynamics.set_matrices(ssm)
    assert_same_model(dynamics(), ssm, atol)


def test_what_training_leaves_can_be_set_again() -> None:
    """Even with A on the very edge of what the parameters reach."""
    for seed in range(5):
        dynamics = scrambled(4, 1.0, seed, torch.float64)
        with torch.no_grad():
            dynamics.slack.fill_(-40.0)
        before = dynamics.exact()
        assert radius(before.transition_matrix) == pytest.approx(1 - 1e-5, abs=1e-7)
        dynamics.set_matrices(before)
        assert_same_model(dynamics.exact(), before, 1e-6)


def test_small_variances_survive() -> None:
    """Nearly deterministic motion: Q of 1e-8, whose float32 product of factors would lose half of its digits."""
    ssm = stable_model(3, 3)
    ssm = ssm._replace(transition_cov=1e-8 * ssm.transition_cov)
    dynamics = LinearDynamics(3, 3)
    dynamics.set_matrices(ssm)
    torch.testing.assert_close(dynamics().transition_cov.detach().double(), ssm.transition_cov, rtol=1e-5, atol=0.0)


def test_a_diagonal_q_and_a_fixed_selector_are_taken_over_or_refused() -> None:
    ssm = stable_model(4, 2)
    diagonal = ssm._replace(transition_cov=torch.diag(torch.tensor([0.1, 0.2, 0.3, 4.0], dtype=torch.float64)))
    dynamics = LinearDynamics(4, 2, transition_cov="diagonal").double()
    before = dynamics()
    with pytest.raises(ValueError, match=r'ssm.transition_cov is not diagonal; choose transition_cov="full"'):
        dynamics.set_matrices(ssm)
    assert_same_model(dynamics(), before, 0.0)
    dynamics.set_matrices(diagonal)
    assert_same_model(dynamics(), diagonal, 1e-8)

    dynamics = LinearDynamics(4, 2, observation="selector").double()
    with pytest.raises(ValueError, match=r"ssm.observation_matrix is not \[I 0\]"):
        dynamics.set_matrices(ssm)
    chosen = ssm._replace(observation_matrix=torch.eye(2, 4, dtype=torch.float64))
    dynamics.set_matrices(chosen)
    assert_same_model(dynamics(), chosen, 1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition_matrix": torch.eye(4).double()}, r"spectral radius 1, expected below 1 - 1e-05; multiply"),
        ({"transition_matrix": 1.2 * torch.eye(4).double()}, "spectral radius 1.2"),
        ({"transition_matrix": torch.eye(3).double()}, r"ssm.transition_matrix has shape \(3, 3\), expected the constant \(4, 4\)"),
        ({"transition_cov": torch.zeros(4, 4).double()}, "ssm.transition_cov is not positive definite"),
        ({"transition_offset": torch.full((4,), math.nan).double()}, "ssm.transition_offset holds a number that is not finite"),
        ({"initial": Gaussian(torch.zeros(4).double(), -torch.eye(4).double())}, "ssm.initial.cov is not positive definite"),
        ({"observation_offset": torch.zeros(3).double()}, "ssm.observation_offset has shape"),
    ],
)
def test_set_matrices_refuses_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    dynamics = scrambled(4, 1.0, 0, torch.float64)
    before = {name: tensor.clone() for name, tensor in dynamics.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        dynamics.set_matrices(stable_model(4, 4)._replace(**change))
    assert all(torch.equal(before[name], tensor) for name, tensor in dynamics.state_dict().items())


def test_a_matrix_that_rounding_makes_unstable_is_refused() -> None:
    chain = 0.9999 * torch.eye(12, dtype=torch.float64) + torch.diag(torch.ones(11, dtype=torch.float64), 1)
    with pytest.raises(ValueError, match="far from normal"):
        LinearDynamics(12, 12).set_matrices(stable_model(12, 12)._replace(transition_matrix=chain))


# Gradients.


@pytest.mark.parametrize("transition_cov", ["full", "diagonal"])
@pytest.mark.parametrize("observation", ["learned", "selector"])
def test_every_parameter_gets_a_gradient(transition_cov: str, observation: str) -> None:
    dynamics = LinearDynamics(3, 2, transition_cov=transition_cov, observation=observation, generator=rng())
    z = torch.randn(4, 6, 2, generator=rng(1))
    filter_moments(dynamics(), Gaussian(z, 0.3 * torch.eye(2)))[1].sum().backward()
    for name, parameter in dynamics.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert float(parameter.grad.abs().max()) > 1e-6, name
    assert ("observation" in dict(dynamics.named_parameters())) == (observation == "learned")


def test_gradient_of_the_matrices() -> None:
    dynamics = scrambled(3, 0.7, 1, torch.float64)
    parameters = dict(dynamics.named_parameters())
    names = ("contraction", "slack", "cov_factor", "mean", "initial_factor")

    def matrices(*values: Tensor) -> tuple[Tensor, ...]:
        ssm = torch.func.functional_call(dynamics, dict(zip(names, values, strict=True)))
        return ssm.transition_matrix, ssm.transition_offset, ssm.transition_cov, ssm.initial.cov

    assert torch.autograd.gradcheck(matrices, tuple(parameters[name] for name in names))


def test_gradients_stay_finite_near_the_edge_of_stability() -> None:
    dynamics = LinearDynamics(6, 6, generator=rng())
    with torch.no_grad():
        dynamics.slack.fill_(-25.0)
    dynamics.transition_matrix.square().sum().backward()
    for parameter in (dynamics.contraction, dynamics.slack):
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_was_returned_does_not_change_with_the_parameters(dtype: torch.dtype) -> None:
    dynamics = LinearDynamics(3, 2, generator=rng()).to(dtype)
    ssm = dynamics()
    before = [field.detach().clone() for field in (*ssm[:-1], *ssm.initial)]
    with torch.no_grad():
        for tensor in (*dynamics.parameters(), *dynamics.buffers()):
            tensor.add_(1.0)
    assert all(torch.equal(one, other) for one, other in zip(before, (*ssm[:-1], *ssm.initial), strict=True))


# Choices and factors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 5}, "latent_dim is 5, expected 1 to state_dim = 4"),
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"transition_cov": "low-rank"}, 'transition_cov is \'low-rank\', expected "full" or "diagonal"'),
        ({"observation": "fixed"}, "observation is 'fixed'"),
        ({"radius": 1.0}, "radius is 1.0, expected a number between 0 and 1"),
    ],
)
def test_choices_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearDynamics(**({"state_dim": 4, "latent_dim": 2} | arguments))


def test_factors() -> None:
    raw = torch.randn(4, 4, generator=rng())
    lower = factor(raw)
    assert lower.dtype == torch.float64
    assert torch.equal(lower, lower.tril())
    assert float(factor(torch.full((4,), -1e4)).min()) == pytest.approx(1e-6)
    assert torch.isfinite(factor(torch.full((4,), 1e4))).all()
    torch.testing.assert_close(factor(unfactor(lower)), lower, rtol=1e-12, atol=1e-12)
