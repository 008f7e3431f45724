"""Nonlinear filters: equal to the linear one where the model is linear, to filterpy's where it is not, and to themselves in pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from filterpy.kalman import ExtendedKalmanFilter, MerweScaledSigmaPoints, UnscentedKalmanFilter
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from ldm_filter.core.kalman import filter_moments, filter_sequence, forecast, sample_paths
from ldm_filter.core.linearisation import (
    Affine,
    SigmaPoints,
    Step,
    cubature,
    extended,
    mixture,
    sigma_point,
    unscented,
)
from ldm_filter.core.smoothing import sample_posterior, smooth_sequence
from ldm_filter.types import Gaussian
from tests.core.nonlinear_problems import DT, KINDS, B, M, N, T, clothed, everything, pendulum, restless, swings
from tests.core.problems import constant_ssm, normal, observed_of, random_cov, random_measurements, rng, stable, varying_ssm

# ------------------------------------------------------------------------------------------------------- the linear case


@pytest.mark.parametrize("kind", ["linear", *KINDS])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("varying", [False, True])
def test_a_linear_model_gives_the_linear_filter(kind: str, masked: bool, varying: bool) -> None:
    ssm = varying_ssm(B, T, N, M) if varying else constant_ssm(N, M)
    measurements = random_measurements(B, T, M, varying=varying)
    observed = observed_of(B, T, M) if masked else None
    expected, model = filter_sequence(ssm, measurements, observed), clothed(ssm, kind)
    result = filter_sequence(model, measurements, observed)
    for one, other in zip(everything(result), everything(expected), strict=True):
        assert_close(one, other.expand_as(one), rtol=0.0, atol=1e-10)
    filtered, density = filter_moments(model, measurements, observed)
    assert_close((*filtered, density), (*result.filtered, result.log_likelihood), rtol=0.0, atol=0.0)
    smoothed, wanted = smooth_sequence(model, result), smooth_sequence(ssm, expected)
    for one, other in zip((*smoothed.smoothed, smoothed.gain), (*wanted.smoothed, wanted.gain), strict=True):
        assert_close(one, other.expand_as(one), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("kind", ["linear", *KINDS])
def test_forecasts_and_paths_of_a_linear_model(kind: str) -> None:
    ssm = constant_ssm(N, M)
    model, belief = clothed(ssm, kind), Gaussian(normal(1, B, N), random_cov(2, B, N))
    one, other = forecast(model, belief, 5), forecast(ssm, belief, 5)
    assert_close(one, other, rtol=0.0, atol=1e-10)
    assert_close(sample_paths(model, 4, rng(0), 6), sample_paths(ssm, 4, rng(0), 6), rtol=0.0, atol=1e-10)
    result, expected = (filter_sequence(m, random_measurements(B, T, M)) for m in (model, ssm))
    assert_close(sample_posterior(model, result, rng(0), 2), sample_posterior(ssm, expected, rng(0), 2), rtol=0.0, atol=1e-9)


def test_one_series_and_one_step() -> None:
    ssm = constant_ssm(N, M)
    for steps in (1, 3):
        measurements = random_measurements(1, steps, M)
        for one, other in zip(everything(filter_sequence(clothed(ssm), measurements)), everything(filter_sequence(ssm, measurements)), strict=True):
            assert_close(one, other, rtol=0.0, atol=1e-12)


def test_a_mixture_of_equal_matrices_is_linear_whatever_the_weights() -> None:
    ssm, measurements = constant_ssm(N, M), random_measurements(B, T, M)
    direction = normal(5, N, 3)
    transition, linearise = mixture(
        ssm.transition_matrix.expand(3, -1, -1), ssm.transition_offset.expand(3, -1), ssm.transition_cov, lambda h, step: (h @ direction).softmax(-1)
    )
    model = clothed(ssm)._replace(transition=transition, linearise=linearise)
    for one, other in zip(everything(filter_sequence(model, measurements)), everything(filter_sequence(ssm, measurements)), strict=True):
        assert_close(one, other.expand_as(one), rtol=0.0, atol=1e-10)


def test_mixture_by_hand() -> None:
    matrices, offsets, cov = stable(1, 2, N), normal(2, 2, N), random_cov(3, N)
    share = torch.tensor([0.25, 0.75], dtype=torch.float64)
    transition, linearise = mixture(matrices, offsets, cov, lambda h, step: share.expand(*h.shape[:-1], 2))
    belief = Gaussian(normal(4, B, N), random_cov(5, B, N))
    A, a, Q = linearise(belief, 1)
    assert_close(A[0], 0.25 * matrices[0] + 0.75 * matrices[1])
    assert_close(a[0], 0.25 * offsets[0] + 0.75 * offsets[1])
    assert_close(Q, cov)
    assert_close(transition(belief.mean, 1).mean, (A @ belief.mean.unsqueeze(-1)).squeeze(-1) + a)


def test_noise_of_a_mixture_by_hand() -> None:
    matrices, offsets, cov, logs = stable(1, 2, N), normal(2, 2, N), random_cov(3, N), normal(6, 2, N)
    share = torch.tensor([0.25, 0.75], dtype=torch.float64)
    transition, linearise = mixture(matrices, offsets, cov, lambda h, step: share.expand(*h.shape[:-1], 2), logs)
    belief = Gaussian(normal(4, B, N), random_cov(5, B, N))
    root = torch.diag((0.25 * logs[0] + 0.75 * logs[1]).exp())
    for Q in (linearise(belief, 1).cov, transition(belief.mean, 1).cov):
        assert_close(Q, (root @ cov @ root).expand(B, N, N))


# ------------------------------------------------------------------------------------------------------ other libraries


class PendulumEKF(ExtendedKalmanFilter):
    def predict_x(self, u: float = 0) -> None:
        angle, velocity = self.x
        faster = velocity - DT * 9.81 * math.sin(angle)
        self.F = np.array([[1.0 - DT * DT * 9.81 * math.cos(angle), DT], [-DT * 9.81 * math.cos(angle), 1.0]])
        self.x = np.array([angle + DT * faster, faster])


def test_extended_against_filterpy() -> None:
    measurements = swings(2, 40)
    model = pendulum("extended")
    result = filter_sequence(model, measurements)
    for series in range(2):
        other = PendulumEKF(2, 1)
        other.x, other.P = model.initial.mean.numpy().copy(), model.initial.cov.numpy().copy()
        other.Q, other.R = np.diag([1e-3, 2e-2]), np.array([[0.04]])
        for t, z in enumerate(measurements.mean[series].numpy()):
            if t:
                other.predict_x()
                other.P = other.F @ other.P @ other.F.T + other.Q
                np.testing.assert_allclose(result.predicted.mean[series, t], other.x, rtol=0, atol=1e-10)
                np.testing.assert_allclose(result.predicted.cov[series, t], other.P, rtol=0, atol=1e-10)
            other.update(z, lambda x: np.array([[1.0, 0.0]]), lambda x: x[:1])
            np.testing.assert_allclose(result.filtered.mean[series, t], other.x, rtol=0, atol=1e-10)
            np.testing.assert_allclose(result.filtered.cov[series, t], other.P, rtol=0, atol=1e-10)
            assert float(result.log_likelihood[series, t]) == pytest.approx(other.log_likelihood, abs=1e-8)


@pytest.mark.parametrize(("alpha", "beta", "kappa"), [(1.0, 2.0, 1.0), (0.5, 2.0, 1.0), (1.0, 0.0, 0.5)])
def test_unscented_and_its_smoother_against_filterpy(alpha: float, beta: float, kappa: float) -> None:
    def move(x: np.ndarray, dt: float) -> np.ndarray:
        faster = x[1] - dt * 9.81 * math.sin(x[0])
        return np.array([x[0] + dt * faster, faster])

    model, measurements = pendulum("unscented"), swings(2, 30)
    model = model._replace(linearise=sigma_point(model.transition, unscented(2, alpha, beta, kappa)))
    result = filter_sequence(model, measurements)
    smoothed = smooth_sequence(model, result).smoothed
    for series in range(2):
        other = UnscentedKalmanFilter(2, 1, DT, lambda x: x[:1], move, MerweScaledSigmaPoints(2, alpha, beta, kappa))
        other.x, other.P = model.initial.mean.numpy().copy(), model.initial.cov.numpy().copy()
        other.Q, other.R = np.diag([1e-3, 2e-2]), np.array([[0.04]])
        means, covs = [], []
        for t, z in enumerate(measurements.mean[series].numpy()):
            if t:
                other.predict()
            else:
                other.sigmas_f = other.points_fn.sigma_points(other.x, other.P)
            other.update(z)
            means.append(other.x.copy())
            covs.append(other.P.copy())
        np.testing.assert_allclose(result.filtered.mean[series], means, rtol=0, atol=1e-8)
        np.testing.assert_allclose(result.filtered.cov[series], covs, rtol=0, atol=1e-8)
        back_mean, back_cov, _ = other.rts_smoother(np.array(means), np.array(covs))
        np.testing.assert_allclose(smoothed.mean[series], back_mean, rtol=0, atol=1e-7)
        np.testing.assert_allclose(smoothed.cov[series], back_cov, rtol=0, atol=1e-7)


@pytest.mark.parametrize("rule", [cubature(3), unscented(3), unscented(3, 0.5, 1.0, 2.0)], ids=["cubature", "unscented", "scaled"])
def test_rules_hold_the_moments_of_a_standard_normal(rule: SigmaPoints) -> None:
    assert_close((rule.mean_weights[:, None] * rule.points).sum(0), torch.zeros(3).double(), rtol=0.0, atol=1e-13)
    assert_close(torch.einsum("p,pi,pj->ij", rule.mean_weights, rule.points, rule.points), torch.eye(3).double())
    assert float(rule.mean_weights.sum()) == pytest.approx(1.0)


def test_sigma_points_know_the_mean_of_a_square() -> None:
    def transition(state: Tensor, step: Step) -> Gaussian:
        return Gaussian(state.square(), torch.eye(1).double())

    belief = Gaussian(torch.tensor([[1.0]]).double(), torch.tensor([[[0.25]]]).double())
    A, a, _ = sigma_point(transition, unscented(1, 1.0, 2.0, 2.0))(belief, 1)
    assert_close(A[0] @ belief.mean[0] + a[0], torch.tensor([1.25]).double())  # E h^2 = m^2 + P
    A, a, _ = extended(transition)(belief, 1)
    assert_close((A, a), (torch.tensor([[[2.0]]]).double(), torch.tensor([[-1.0]]).double()))


# ----------------------------------------------------------------------------------------------------------- covariances


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_covariances_stay_positive_definite(kind: str, dtype: torch.dtype) -> None:
    model = pendulum(kind)
    model = model._replace(
        observation_matrix=model.observation_matrix.to(dtype),
        observation_offset=model.observation_offset.to(dtype),
        initial=Gaussian(*(x.to(dtype) for x in model.initial)),
    )
    measurements = swings(2, 300)
    observed = torch.ones(2, 300, dtype=torch.bool)
    observed[:, 100:160] = False
    sharp = Gaussian(measurements.mean.to(dtype), torch.full((1, 1), 1e-9, dtype=dtype))
    result = filter_sequence(model, sharp, observed)
    for cov in (result.predicted.cov, result.filtered.cov, smooth_sequence(model, result).smoothed.cov):
        assert cov.dtype == dtype
        assert torch.linalg.eigvalsh(cov.double()).min() > 0.0


def test_what_is_not_positive_definite_is_named() -> None:
    model = pendulum("extended", cov=-torch.eye(2).double())
    with pytest.raises(ValueError, match="not positive definite at step"):
        filter_sequence(model, swings(2, 20))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_transition_that_fails_is_named(kind: str) -> None:
    def broken(state: Tensor, step: Step) -> Gaussian:
        return Gaussian(state * math.nan, torch.eye(2).double())

    with pytest.raises(ValueError, match=r"not positive definite|not finite"):
        filter_sequence(pendulum("extended")._replace(transition=broken, linearise=KINDS[kind](broken, 2)), swings(2, 5))

    def longer(belief: Gaussian, step: Step) -> Affine:
        return Affine(torch.eye(3).double(), torch.zeros(3).double(), torch.eye(3).double())

    with pytest.raises(ValueError, match=r"linearise gave .* expected \(..., 2, 2\)"):
        filter_sequence(pendulum("extended")._replace(linearise=longer), swings(2, 5))


def test_arguments_are_not_changed() -> None:
    model, measurements = pendulum("cubature"), swings(2, 6)
    before = [x.clone() for x in (*model.initial, model.observation_matrix, *measurements)]
    result = filter_sequence(model, measurements)
    smooth_sequence(model, result)
    assert_close(before, [*model.initial, model.observation_matrix, *measurements], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("hidden", [math.nan, math.inf])
def test_hidden_nan_reaches_nothing(hidden: float) -> None:
    measurements, observed = swings(2, 8), observed_of(2, 8, 1)
    stiffness = torch.tensor(9.81, dtype=torch.float64, requires_grad=True)
    model = pendulum("extended", stiffness=stiffness)
    result = filter_sequence(model, measurements._replace(mean=torch.where(observed, measurements.mean, hidden)), observed)
    (gradient,) = torch.autograd.grad(sum(x.sum() for x in everything(result)), stiffness)
    assert all(torch.isfinite(x).all() for x in everything(result))
    assert torch.isfinite(gradient)


# ------------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", [*KINDS, "mixture", "adaptive", "state"])
def test_gradcheck(kind: str) -> None:
    def run(weight: Tensor, root: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        def transition(state: Tensor, step: Step) -> Gaussian:
            return Gaussian(0.8 * state + 0.5 * torch.tanh(state @ weight), root @ root.mT)

        ssm = constant_ssm(2, 2)
        ssm = ssm._replace(transition_matrix=0.8 * weight, transition_cov=root @ root.mT)
        model = clothed(ssm)
        if kind in KINDS:
            model = model._replace(transition=transition, linearise=KINDS[kind](transition, 2))
        elif kind == "mixture":
            pair = mixture(torch.stack([weight, weight.mT]), torch.zeros(2, 2).double(), root @ root.mT, lambda h, step: (h @ weight).softmax(-1))
            model = model._replace(transition=pair[0], linearise=pair[1])
        elif kind == "adaptive":
            model = restless(ssm, weight[0, 0].square())
        else:
            model = model._replace(measurement_scale=lambda h: (h @ weight).tanh().exp())
        result = filter_sequence(model, Gaussian(z, random_cov(12, 2)), observed_of(2, 3, 2))
        return (*everything(result), *smooth_sequence(model, result).smoothed, *forecast(model, Gaussian(z[:, 0], random_cov(1, 2, 2)), 2))

    leaves = (stable(1, 2), torch.linalg.cholesky(random_cov(2, 2)), normal(3, 2, 3, 2))
    assert gradcheck(run, tuple(x.clone().requires_grad_() for x in leaves), fast_mode=True)


def test_prior_paths_have_the_moments_of_the_forecast_where_it_is_nearly_linear() -> None:
    model = pendulum("cubature", cov=1e-4 * torch.eye(2).double())
    model = model._replace(initial=Gaussian(torch.tensor([0.3, 0.0]).double(), 1e-3 * torch.eye(2).double()))
    ahead = forecast(model, Gaussian(model.initial.mean[None], model.initial.cov[None]), 9)
    paths = sample_paths(model, 10, rng(0), 20_000)[:, 0]
    assert_close(paths[:, -1].mean(0), ahead.mean[0, -1], rtol=0.0, atol=5e-3)
    assert_close(torch.cov(paths[:, -1].mT), ahead.cov[0, -1], rtol=0.06, atol=1e-4)
