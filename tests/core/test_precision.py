"""float32: covariances stay positive definite and means stay near float64, over many steps and under bad scales."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm_filter.core.kalman import filter_moments, filter_sequence, forecast, predict, sample_paths, update
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.types import Gaussian, StateSpace
from tests.core.problems import constant_ssm, normal, observed_of, random_measurements, rng
from tests.reference import scalar_kalman_means


def single(value: Any) -> Any:
    """The same in float32."""
    if isinstance(value, Tensor):
        return value.float()
    return type(value)(*(single(x) for x in value))


def single_then_double(value: Any) -> Any:
    """Float64 of the numbers that float32 can hold: what is compared is the arithmetic, not the input."""
    if isinstance(value, Tensor):
        return value.float().double()
    return type(value)(*(single_then_double(x) for x in value))


def oscillator(steps: int) -> tuple[StateSpace, Gaussian]:
    """A nearly undamped oscillation, read through its first coordinate."""
    angle = 0.05
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    zero, one = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    ssm = StateSpace(0.9999 * turn, zero, 1e-4 * one, one[:1], zero[:1], Gaussian(zero, one))
    z = 2.0 * torch.sin(angle * torch.arange(steps, dtype=torch.float64)) + 0.1 * normal(1, steps)
    return single_then_double(ssm), single_then_double(Gaussian(z[None, :, None], 1e-2 * one[:1, :1]))


def test_float32_over_a_hundred_thousand_steps() -> None:
    ssm, measurements = oscillator(100_000)
    with torch.no_grad():
        rounded, _ = filter_moments(single(ssm), single(measurements))
    A, _, Q, C, _, initial = ssm
    z, R = measurements.mean.flatten().numpy(), measurements.cov.item()
    exact = scalar_kalman_means(A.numpy(), Q.numpy(), C[0].numpy(), R, initial.mean.numpy(), initial.cov.numpy(), z)
    assert rounded.mean.dtype == rounded.cov.dtype == torch.float32
    assert torch.linalg.eigvalsh(rounded.cov.double()).min() > 0.0
    np.testing.assert_allclose(rounded.mean[0].double(), exact, rtol=0.0, atol=1e-3)


def tracker() -> tuple[StateSpace, Gaussian]:
    """Position and speed with a vague prior, seen precisely: R = 1e-6, P0 = 1e4, hardly any process noise."""
    A = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=torch.float64)
    zero, one = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    ssm = StateSpace(A, zero, 1e-10 * one, one[:1], zero[:1], Gaussian(zero, 1e4 * one))
    z = torch.linspace(0.0, 3.0, 300, dtype=torch.float64)[None, :, None] + 1e-3 * normal(1, 1, 300, 1)
    return single_then_double(ssm), single_then_double(Gaussian(z, 1e-6 * one[:1, :1]))


def test_float32_under_stress() -> None:
    ssm, measurements = tracker()
    exact, rounded = filter_sequence(ssm, measurements), filter_sequence(single(ssm), single(measurements))
    for g in rounded[:3]:
        assert g.cov.dtype == torch.float32
        assert torch.linalg.eigvalsh(g.cov.double()).min() > 0.0
        assert torch.linalg.cholesky_ex(g.cov).info.max() == 0
    smooth_exact, smooth_rounded = smooth_sequence(ssm, exact).smoothed, smooth_sequence(single(ssm), rounded).smoothed
    assert torch.linalg.eigvalsh(smooth_rounded.cov.double()).min() > 0.0
    assert (rounded.filtered.mean.double() - exact.filtered.mean).abs()[:, 2:].max() < 1e-3
    assert (smooth_rounded.mean.double() - smooth_exact.mean).abs().max() < 1e-3
    assert_close(rounded.log_likelihood[:, 2:].double(), exact.log_likelihood[:, 2:], rtol=1e-3, atol=1e-2)


def test_float32_single_steps_under_stress() -> None:
    ssm, measurements = (single(x) for x in tracker())
    A, a, Q, C, c, belief = ssm
    belief = Gaussian(belief.mean[None], belief.cov[None])
    batch = filter_sequence(ssm, measurements)
    for t in range(300):
        belief = belief if t == 0 else predict(belief, A, a, Q)
        assert torch.linalg.eigvalsh(belief.cov.double()).min() > 0.0
        belief, _ = update(belief, Gaussian(measurements.mean[:, t], measurements.cov), C, c)
        assert torch.linalg.eigvalsh(belief.cov.double()).min() > 0.0
    assert_close(belief.mean, batch.filtered.mean[:, -1], rtol=0.0, atol=1e-3)


def test_every_output_has_the_dtype_of_the_input() -> None:
    ssm, measurements = single(constant_ssm(3, 2)), single(random_measurements(2, 5, 2))
    result = filter_sequence(ssm, measurements, observed_of(2, 5, 2))
    smoothed, gain = smooth_sequence(ssm, result)
    ahead = forecast(ssm, Gaussian(result.filtered.mean[:, -1], result.filtered.cov[:, -1]), 2)
    every = [*result.predicted, *result.filtered, *result.projected, result.log_likelihood, *smoothed, gain, *ahead, sample_paths(ssm, 3, rng(0))]
    assert {x.dtype for x in every} == {torch.float32}


def test_covariances_are_symmetric() -> None:
    ssm, measurements = constant_ssm(4, 2), random_measurements(2, 5, 2)
    result = filter_sequence(ssm, measurements, observed_of(2, 5, 2))
    ahead = forecast(ssm, ssm.initial._replace(mean=ssm.initial.mean[None]), 2)
    for g in (*result[:3], smooth_sequence(ssm, result).smoothed, ahead):
        assert torch.equal(g.cov, g.cov.mT)
