"""Nonlinear filters: equal to the linear one where the model is linear, to filterpy's where it is not, and to themselves in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from filterpy.kalman import ExtendedKalmanFilter, MerweScaledSigmaPoints, UnscentedKalmanFilter
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from ldm_filter.core import nonlinear
from ldm_filter.core.kalman import filter_moments, filter_sequence, forecast, sample_paths
from ldm_filter.core.linearisation import (
    Affine,
    Linearise,
    SigmaPoints,
    Step,
    Transition,
    cubature,
    extended,
    linear,
    mixture,
    sigma_point,
    unscented,
)
from ldm_filter.core.nonlinear import AdaptiveNoise, NonlinearStateSpace
from ldm_filter.core.smoothing import sample_posterior, smooth_sequence
from ldm_filter.types import FilterResult, Gaussian, StateSpace
from tests.core.problems import constant_ssm, normal, observed_of, random_cov, random_measurements, rng, stable, varying_ssm

B, T, N, M = 3, 7, 4, 2
DT = 0.1
KINDS: dict[str, Callable[[Transition, int], Linearise]] = {
    "extended": lambda transition, size: extended(transition),
    "cubature": lambda transition, size: sigma_point(transition, cubature(size)),
    "unscented": lambda transition, size: sigma_point(transition, unscented(size)),
}


def clothed(ssm: StateSpace, kind: str = "linear") -> NonlinearStateSpace:
    """A linear model as a nonlinear one."""
    transition, linearise = linear(ssm)
    linearise = linearise if kind == "linear" else KINDS[kind](transition, ssm.initial.mean.shape[-1])
    return NonlinearStateSpace(transition, linearise, ssm.observation_matrix, ssm.observation_offset, ssm.initial)


def everything(result: FilterResult) -> tuple[Tensor, ...]:
    return (*result.predicted, *result.filtered, *result.projected, result.log_likelihood)


def pendulum(kind: str, cov: Tensor | None = None, stiffness: float | Tensor = 9.81) -> NonlinearStateSpace:
    """(angle, velocity) of a pendulum, the sine of no component seen: the angle alone is measured."""
    cov = torch.diag(torch.tensor([1e-3, 2e-2], dtype=torch.float64)) if cov is None else cov

    def transition(state: Tensor, step: Step) -> Gaussian:
        angle, velocity = state.unbind(-1)
        faster = velocity - DT * stiffness * torch.sin(angle)
        return Gaussian(torch.stack([angle + DT * faster, faster], dim=-1), cov)

    one = torch.ones(1, dtype=torch.float64)
    initial = Gaussian(torch.tensor([2.0, 0.0], dtype=torch.float64), torch.diag(torch.tensor([0.3, 0.5], dtype=torch.float64)))
    return NonlinearStateSpace(transition, KINDS[kind](transition, 2), torch.tensor([[1.0, 0.0]]).double(), 0.0 * one, initial)


def swings(batch: int, steps: int) -> Gaussian:
    angle = 2.0 * torch.cos(2.2 * DT * torch.arange(steps, dtype=torch.float64)) + 0.2 * normal(3, batch, steps)
    return Gaussian(angle.unsqueeze(-1), torch.full((1, 1), 0.04, dtype=torch.float64))


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


# ------------------------------------------------------------------------------------------------- noise that is not fixed


def restless(ssm: StateSpace, gain: float | Tensor = 0.3) -> NonlinearStateSpace:
    """A linear model whose Q grows with the surprises of the last steps."""
    eye = torch.eye(ssm.initial.mean.shape[-1], dtype=torch.float64)
    adaptive = AdaptiveNoise(
        torch.ones(1, dtype=torch.float64),
        lambda memory, surprise: 0.5 * memory + 0.5 * surprise.unsqueeze(-1),
        lambda s: gain * s.unsqueeze(-1) * eye,
    )
    return clothed(ssm)._replace(adaptive=adaptive)


def test_adaptive_noise_by_hand() -> None:
    ssm, measurements = constant_ssm(2, 1), random_measurements(1, 5, 1)
    result = filter_sequence(restless(ssm), measurements)
    A, _, Q, C, c, _ = ssm
    memory = 1.0
    for t in range(4):
        S = C @ result.predicted.cov[0, t] @ C.mT + measurements.cov
        error = measurements.mean[0, t] - C @ result.predicted.mean[0, t] - c
        memory = 0.5 * memory + 0.5 * float(error @ torch.linalg.solve(S, error))
        expected = A @ result.filtered.cov[0, t] @ A.mT + Q + 0.3 * memory * torch.eye(2)
        assert_close(result.predicted.cov[0, t + 1], expected)


def test_adaptive_noise_never_sees_what_it_predicts() -> None:
    ssm, measurements = constant_ssm(N, M), random_measurements(B, T, M)
    z = measurements.mean.clone().requires_grad_()
    result = filter_sequence(restless(ssm), measurements._replace(mean=z))
    for t in range(T):
        (gradient,) = torch.autograd.grad(result.projected.cov[:, t].sum() + result.predicted.mean[:, t].sum(), z, retain_graph=True)
        assert not gradient[:, t:].any()
        assert bool(gradient[:, :t].any()) == (t > 0)


@pytest.mark.parametrize("masked", [False, True])
def test_pieces_equal_the_whole(masked: bool) -> None:
    model, measurements = restless(constant_ssm(N, M)), random_measurements(B, T, M)
    observed = observed_of(B, T, M) if masked else torch.ones(B, T, M, dtype=torch.bool)
    whole = filter_sequence(model, measurements, observed)
    first = filter_sequence(model, measurements._replace(mean=measurements.mean[:, :3]), observed[:, :3])
    piece = measurements._replace(mean=measurements.mean[:, :3])
    memory = nonlinear.memories(model.adaptive, piece, observed[:, :3], first)
    then = model._replace(adaptive=model.adaptive._replace(memory=memory[:, -1]))
    initial = nonlinear.predict(then, Gaussian(first.filtered.mean[:, -1], first.filtered.cov[:, -1]))
    second = filter_sequence(then._replace(initial=initial), measurements._replace(mean=measurements.mean[:, 3:]), observed[:, 3:])
    for a, b, c in zip(everything(whole), everything(first), everything(second), strict=True):
        assert_close(a, torch.cat([b, c], dim=1), rtol=0.0, atol=1e-10)


def test_smoothing_under_adaptive_noise_is_that_of_the_model_it_became() -> None:
    ssm, measurements = constant_ssm(N, M), random_measurements(B, T, M)
    model = restless(ssm)
    result = filter_sequence(model, measurements)
    A = ssm.transition_matrix
    Q = result.predicted.cov[:, 1:] - A @ result.filtered.cov[:, :-1] @ A.mT
    became = ssm._replace(transition_cov=torch.cat([Q[:, :1], Q], dim=1))
    one, other = smooth_sequence(model, result).smoothed, smooth_sequence(became, filter_sequence(became, measurements)).smoothed
    assert_close(one, other, rtol=0.0, atol=1e-10)


def test_noise_of_the_state() -> None:
    ssm, measurements, observed = constant_ssm(N, M), random_measurements(B, T, M), observed_of(B, T, M)
    twice = clothed(ssm)._replace(measurement_scale=lambda h: torch.full((*h.shape[:-1], M), 2.0, dtype=h.dtype))
    expected = filter_sequence(ssm, measurements._replace(cov=4.0 * measurements.cov), observed)
    for one, other in zip(everything(filter_sequence(twice, measurements, observed)), everything(expected), strict=True):
        assert_close(one, other.expand_as(one), rtol=0.0, atol=1e-10)
    varies = clothed(ssm)._replace(measurement_scale=lambda h: (0.3 * h[..., :M]).exp())
    result = filter_sequence(varies, measurements)
    scale = (0.3 * result.predicted.mean[..., :M]).exp()
    assert_close(
        result.projected.cov,
        ssm.observation_matrix @ result.predicted.cov @ ssm.observation_matrix.mT + scale[..., None] * measurements.cov * scale[..., None, :],
    )
    same = filter_sequence(ssm, measurements._replace(cov=scale[..., None] * measurements.cov * scale[..., None, :]))
    assert_close(result.filtered, same.filtered, rtol=0.0, atol=1e-10)


def test_paths_cannot_be_drawn_without_what_the_noise_depends_on() -> None:
    with pytest.raises(ValueError, match="adaptive"):
        sample_paths(restless(constant_ssm(N, M)), 3, rng(0))


def test_forecast_calms_down() -> None:
    ssm = constant_ssm(N, M)
    model = restless(ssm)
    alarmed = model._replace(adaptive=model.adaptive._replace(memory=torch.full((B, 1), 50.0).double()))
    belief = Gaussian(normal(1, B, N), random_cov(2, B, N))
    calm, wild = forecast(model, belief, 60).cov, forecast(alarmed, belief, 60).cov
    assert float(wild[:, 0].diagonal(dim1=-2, dim2=-1).sum() / calm[:, 0].diagonal(dim1=-2, dim2=-1).sum()) > 3.0
    assert_close(wild[:, -1], calm[:, -1], rtol=0.05, atol=0.0)


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
