"""The smoother and the sample paths against the dense joint Gaussian and against one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm_filter.core import native
from ldm_filter.core.backends import backend
from ldm_filter.core.kalman import filter_sequence, sample_paths
from ldm_filter.core.smoothing import sample_posterior, smooth_sequence
from ldm_filter.types import Gaussian, StateSpace
from tests import reference
from tests.core.problems import constant_ssm, numpy_model, observed_of, random_measurements, rng, varying_ssm

B, T, N, M = 3, 6, 4, 2
PATHS = 20_000


def blocks(cov: np.ndarray, t: int, u: int, size: int = N) -> np.ndarray:
    return cov[t * size : (t + 1) * size, u * size : (u + 1) * size]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("varying", [False, True])
def test_dense_joint_gaussian(varying: bool, masked: bool) -> None:
    ssm = varying_ssm(B, T, N, M) if varying else constant_ssm(N, M)
    measurements = random_measurements(B, T, M, varying=varying)
    observed = observed_of(B, T, M) if masked else None
    (mean, cov), gain = smooth_sequence(ssm, filter_sequence(ssm, measurements, observed))
    cov, gain = cov.expand(B, -1, -1, -1), gain.expand(B, -1, -1, -1)
    for b in range(B):
        seen = None if observed is None else observed[b].numpy()
        dense_mean, dense_cov, _ = reference.dense_posterior(numpy_model(ssm, measurements.cov, b, B, T), measurements.mean[b].numpy(), seen)
        np.testing.assert_allclose(mean[b].ravel(), dense_mean, rtol=1e-9, atol=1e-9)
        for t in range(T):
            np.testing.assert_allclose(cov[b, t], blocks(dense_cov, t, t), rtol=1e-9, atol=1e-9)
        for t in range(T - 1):
            np.testing.assert_allclose(gain[b, t] @ cov[b, t + 1], blocks(dense_cov, t, t + 1), rtol=1e-9, atol=1e-9)


def test_last_step_is_the_filtered_one_and_smoothing_never_loses() -> None:
    ssm = constant_ssm(N, M)
    result = filter_sequence(ssm, random_measurements(B, T, M))
    smoothed = smooth_sequence(ssm, result).smoothed
    assert_close(smoothed.mean[:, -1], result.filtered.mean[:, -1], rtol=0.0, atol=0.0)
    assert_close(smoothed.cov[:, -1], result.filtered.cov[:, -1])
    assert torch.linalg.eigvalsh(result.filtered.cov - smoothed.cov).min() > -1e-12


def test_one_step() -> None:
    ssm = constant_ssm(N, M)
    result = filter_sequence(ssm, random_measurements(B, 1, M))
    smoothed, gain = smooth_sequence(ssm, result)
    assert_close(smoothed, result.filtered)
    assert gain.shape == (1, 0, N, N)
    assert sample_posterior(ssm, result, rng(0), 5).shape == (5, B, 1, N)


def autoregression(noise: float) -> tuple[StateSpace, Gaussian]:
    """AR(2) observed exactly: the filtered covariance and the prediction from it are singular."""
    A = torch.tensor([[1.2, -0.5], [1.0, 0.0]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    Q = torch.tensor([[0.4, 0.0], [0.0, 0.0]], dtype=torch.float64)
    ssm = StateSpace(A, zero, Q, torch.eye(2, dtype=torch.float64)[:1], zero[:1], Gaussian(zero, torch.eye(2, dtype=torch.float64)))
    return ssm, Gaussian(sample_paths(ssm, T, rng(3))[0, :, :, :1], torch.tensor([[noise]], dtype=torch.float64))


def test_exactly_known_states() -> None:
    ssm, measurements = autoregression(0.0)
    observed = torch.ones(1, T, dtype=torch.bool)
    observed[:, 3] = False
    result = filter_sequence(ssm, measurements, observed)
    smoothed = smooth_sequence(ssm, result).smoothed
    dense_mean, dense_cov, _ = reference.dense_posterior(
        numpy_model(ssm, measurements.cov, 0, 1, T), measurements.mean[0].numpy(), observed[0, :, None].numpy()
    )
    np.testing.assert_allclose(smoothed.mean[0].ravel(), dense_mean, rtol=1e-7, atol=1e-7)
    for t in range(T):
        np.testing.assert_allclose(smoothed.cov[0, t], blocks(dense_cov, t, t, 2), rtol=1e-7, atol=1e-7)
    paths = sample_posterior(ssm, result, rng(4), 4000)
    np.testing.assert_allclose(paths[..., observed[0], 0], measurements.mean[..., 0][:, observed[0]].expand(4000, 1, T - 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(paths[:, 0, 3, 0].var(), dense_cov[6, 6], rtol=0.1)


def test_noiseless_motion_has_noiseless_paths() -> None:
    ssm, _ = autoregression(1.0)
    still = ssm._replace(transition_cov=torch.zeros(2, 2, dtype=torch.float64))
    path = sample_paths(still, T, rng(0), 3)
    assert_close(path[:, :, 1:], path[:, :, :-1] @ ssm.transition_matrix.mT, rtol=1e-12, atol=1e-12)
    assert path[:, :, 0].std() > 0.1


def assert_moments(paths: Tensor, mean: np.ndarray, cov: np.ndarray) -> None:
    """Sample mean and covariance ``(paths, D)`` within five of their standard errors."""
    count = paths.shape[0]
    deviation = np.sqrt(np.diag(cov))
    assert np.abs((paths.mean(0).numpy() - mean) / deviation).max() < 5.0 / np.sqrt(count)
    error = (torch.cov(paths.mT).numpy() - cov) / np.outer(deviation, deviation)
    assert np.abs(error).max() < 5.0 * np.sqrt(2.0 / count)


@pytest.mark.parametrize("varying", [False, True])
def test_posterior_paths_have_the_joint_posterior(varying: bool) -> None:
    """All states of a path at once: mean, covariance, and the covariance between steps."""
    ssm = varying_ssm(B, T, N, M) if varying else constant_ssm(N, M)
    measurements, observed = random_measurements(B, T, M), observed_of(B, T, M)
    paths = sample_posterior(ssm, filter_sequence(ssm, measurements, observed), rng(7), PATHS)
    assert paths.shape == (PATHS, B, T, N)
    for b in range(B):
        mean, cov, _ = reference.dense_posterior(numpy_model(ssm, measurements.cov, b, B, T), measurements.mean[b].numpy(), observed[b].numpy())
        assert_moments(paths[:, b].flatten(1), mean, cov)


@pytest.mark.parametrize("varying", [False, True])
def test_prior_paths_have_the_joint_prior(varying: bool) -> None:
    ssm = varying_ssm(B, T, N, M) if varying else constant_ssm(N, M)
    batch = B if varying else 1
    paths = sample_paths(ssm, T, rng(8), PATHS)
    assert paths.shape == (PATHS, batch, T, N)
    for b in range(batch):
        mean, _, cov, _, _ = reference.joint(numpy_model(ssm, torch.eye(M), b, batch, T))
        assert_moments(paths[:, b].flatten(1), mean, cov)


def test_a_generator_gives_the_same_paths_again() -> None:
    ssm = constant_ssm(N, M)
    result = filter_sequence(ssm, random_measurements(B, T, M))
    assert torch.equal(sample_posterior(ssm, result, rng(1), 3), sample_posterior(ssm, result, rng(1), 3))
    assert torch.equal(sample_paths(ssm, T, rng(1), 3), sample_paths(ssm, T, rng(1), 3))
    assert not torch.equal(sample_paths(ssm, T, rng(1), 3), sample_paths(ssm, T, rng(2), 3))


@pytest.mark.skipif(not native._load(), reason="the compiled kernels are not installed: a C++ compiler and make install")
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 2, 1), (1, 9, 3, 2), (11, 7, 4, 2), (9, 5, 6, 3)])
def test_compiled_recursions_are_the_loops(size: tuple[int, int, int, int], varying: bool) -> None:
    batch, steps, n, m = size
    ssm = varying_ssm(*size) if varying else constant_ssm(n, m)
    measurements = random_measurements(batch, steps, m, varying=varying)
    results = []
    for name in ("native", "torch"):
        A, Q, z = leaves = [x.detach().clone().requires_grad_() for x in (ssm.transition_matrix, ssm.transition_cov, measurements.mean)]
        with backend(name):
            model = ssm._replace(transition_matrix=A, transition_cov=Q)
            result = filter_sequence(model, measurements._replace(mean=z), observed_of(batch, steps, m))
            smoothed = smooth_sequence(model, result)
            paths = sample_posterior(model, result, torch.Generator().manual_seed(3), 2)
        outputs = [*smoothed.smoothed, smoothed.gain, paths]
        total = sum((y * torch.randn(y.shape, generator=torch.Generator().manual_seed(k), dtype=y.dtype)).sum() for k, y in enumerate(outputs))
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        results.append(outputs + [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)])
    for ours, plain in zip(*results, strict=True):
        assert ours.numel() == 0 or (ours - plain).abs().max() <= 1e-9 * max(1.0, plain.abs().max())
