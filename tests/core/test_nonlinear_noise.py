"""Nonlinear filters whose noise adapts to past innovations or depends on the state."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ldm_filter.core import nonlinear
from ldm_filter.core.kalman import filter_sequence, forecast, sample_paths
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.types import Gaussian
from tests.core.nonlinear_problems import B, M, N, T, clothed, everything, restless
from tests.core.problems import constant_ssm, normal, observed_of, random_cov, random_measurements, rng


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
