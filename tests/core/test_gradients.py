"""Gradients of the filter and the smoother by finite differences, under masks, in time-varying models, and never NaN."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from ldm_filter.core.kalman import filter_moments, filter_sequence, forecast, predict, sample_paths, update
from ldm_filter.core.linalg import stationary
from ldm_filter.core.smoothing import sample_posterior, smooth_sequence
from ldm_filter.types import Gaussian, StateSpace
from tests.core.problems import constant_ssm, observed_of, random_cov, random_measurements, rng, stable, varying_ssm

B, T, N, M = 2, 3, 2, 2


def leaves(ssm: StateSpace, measurements: Gaussian) -> tuple[Tensor, ...]:
    """The free parameters: covariances by their factors, since a finite difference must stay symmetric."""
    A, a, Q, C, c, (h, P) = ssm
    factors = (torch.linalg.cholesky(x) for x in (Q, P, measurements.cov))
    return tuple(x.clone().requires_grad_() for x in (A, a, C, c, h, measurements.mean, *factors))


def problem(A: Tensor, a: Tensor, C: Tensor, c: Tensor, h: Tensor, z: Tensor, *factors: Tensor) -> tuple[StateSpace, Gaussian]:
    Q, P, R = (L @ L.mT for L in factors)
    return StateSpace(A, a, Q, C, c, Gaussian(h, P)), Gaussian(z, R)


def filtering(observed: Tensor | None) -> Callable[..., tuple[Tensor, ...]]:
    def run(*parameters: Tensor) -> tuple[Tensor, ...]:
        predicted, filtered, projected, log_likelihood = filter_sequence(*problem(*parameters), observed)
        return (*predicted, *filtered, *projected, log_likelihood)

    return run


def smoothing(observed: Tensor | None) -> Callable[..., tuple[Tensor, ...]]:
    def run(*parameters: Tensor) -> tuple[Tensor, ...]:
        ssm, measurements = problem(*parameters)
        smoothed, gain = smooth_sequence(ssm, filter_sequence(ssm, measurements, observed))
        return (*smoothed, gain)

    return run


@pytest.mark.parametrize("what", [filtering, smoothing])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("varying", [False, True])
def test_gradcheck(varying: bool, masked: bool, what: Callable[..., Callable[..., tuple[Tensor, ...]]]) -> None:
    ssm = varying_ssm(B, T, N, M) if varying else constant_ssm(N, M)
    measurements = random_measurements(B, T, M, varying=varying)
    assert gradcheck(what(observed_of(B, T, M) if masked else None), leaves(ssm, measurements), fast_mode=varying)


def test_gradcheck_of_forecast_and_paths() -> None:
    def run(*parameters: Tensor) -> tuple[Tensor, ...]:
        ssm, measurements = problem(*parameters)
        result = filter_sequence(ssm, measurements)
        ahead = forecast(ssm, Gaussian(result.filtered.mean[:, -1], result.filtered.cov[:, -1]), 2)
        return (*ahead, sample_paths(ssm, 2, rng(0)), sample_posterior(ssm, result, rng(1)))

    assert gradcheck(run, leaves(constant_ssm(N, M), random_measurements(B, T, M)), fast_mode=True)


def test_gradcheck_of_stationary() -> None:
    factor = torch.linalg.cholesky(random_cov(2, N)).requires_grad_()
    assert gradcheck(lambda A, L: stationary(A, L @ L.mT), (stable(1, N).requires_grad_(), factor))


@pytest.mark.parametrize("hidden", [float("nan"), float("inf")])
def test_hidden_nan_never_reaches_a_gradient(hidden: float) -> None:
    observed = observed_of(B, T, M)
    parameters = leaves(constant_ssm(N, M), random_measurements(B, T, M))
    ssm, measurements = problem(*parameters)
    filtered, log_likelihood = filter_moments(ssm, measurements._replace(mean=torch.where(observed, measurements.mean, hidden)), observed)
    gradients = torch.autograd.grad(log_likelihood.sum() + filtered.mean.sum() + filtered.cov.sum(), parameters)
    assert all(torch.isfinite(g).all() for g in gradients)
    # and what is hidden itself gets a gradient of zero, what is seen does not
    at_z = gradients[5]
    assert not at_z[~observed].any()
    assert at_z[observed].all()


def test_hidden_nan_in_a_single_update() -> None:
    ssm = constant_ssm(N, M)
    z = torch.full((B, M), float("nan"), dtype=torch.float64, requires_grad=True)
    seen = torch.zeros(B, dtype=torch.bool)
    belief = predict(Gaussian(ssm.initial.mean.expand(B, N), ssm.initial.cov), *ssm[:3])
    state, density = update(belief, Gaussian(z, random_cov(1, M)), ssm.observation_matrix, ssm.observation_offset, seen)
    (state.mean.sum() + density.sum()).backward()
    assert z.grad is not None
    assert not z.grad.any()


def test_every_parameter_gets_a_gradient() -> None:
    parameters = leaves(constant_ssm(N, M), random_measurements(B, T, M))
    _, log_likelihood = filter_moments(*problem(*parameters))
    for gradient in torch.autograd.grad(log_likelihood.sum(), parameters):
        assert gradient.abs().sum() > 0.0
