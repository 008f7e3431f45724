"""The filter against oracles: the dense joint Gaussian, the plain loop, statsmodels, filterpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_filter.core.kalman import filter_moments, filter_sequence
from ldm_filter.types import FilterResult, Gaussian, StateSpace
from tests import reference
from tests.core.problems import constant_ssm, numpy_model, observed_of, random_measurements, varying_ssm

B, T, N, M = 3, 6, 4, 2
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def problem(varying: bool, masked: bool) -> tuple[StateSpace, Gaussian, Tensor | None]:
    ssm = varying_ssm(B, T, N, M) if varying else constant_ssm(N, M)
    return ssm, random_measurements(B, T, M, varying=varying), observed_of(B, T, M) if masked else None


def full(result: FilterResult) -> FilterResult:
    """The result with the shared covariances repeated for each series."""

    def repeat(g: Gaussian) -> Gaussian:
        return Gaussian(g.mean, g.cov.expand(g.mean.shape[0], -1, -1, -1))

    return FilterResult(repeat(result.predicted), repeat(result.filtered), repeat(result.projected), result.log_likelihood)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("varying", [False, True])
def test_dense_joint_gaussian(varying: bool, masked: bool) -> None:
    ssm, measurements, observed = problem(varying, masked)
    result = full(filter_sequence(ssm, measurements, observed))
    for b in range(B):
        model = numpy_model(ssm, measurements.cov, b, B, T)
        seen = None if observed is None else observed[b].numpy()
        before = 0.0
        for t in range(T):
            block = slice(t * N, (t + 1) * N)
            mean, cov, log_likelihood = reference.dense_posterior(model, measurements.mean[b].numpy(), seen, upto=t)
            np.testing.assert_allclose(result.filtered.mean[b, t], mean[block], **TIGHT)
            np.testing.assert_allclose(result.filtered.cov[b, t], cov[block, block], **TIGHT)
            np.testing.assert_allclose(result.log_likelihood[b, t], log_likelihood - before, rtol=1e-9, atol=1e-9)
            mean, cov, _ = reference.dense_posterior(model, measurements.mean[b].numpy(), seen, upto=t - 1)
            np.testing.assert_allclose(result.predicted.mean[b, t], mean[block], **TIGHT)
            np.testing.assert_allclose(result.predicted.cov[b, t], cov[block, block], **TIGHT)
            np.testing.assert_allclose(result.projected.mean[b, t], model.C[t] @ mean[block] + model.c[t], **TIGHT)
            np.testing.assert_allclose(result.projected.cov[b, t], model.C[t] @ cov[block, block] @ model.C[t].T + model.R[t], **TIGHT)
            before = log_likelihood


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("varying", [False, True])
def test_plain_loop(varying: bool, masked: bool) -> None:
    ssm, measurements, observed = problem(varying, masked)
    result = full(filter_sequence(ssm, measurements, observed))
    for b in range(B):
        seen = None if observed is None else observed[b].numpy()
        expected = reference.kalman_filter(numpy_model(ssm, measurements.cov, b, B, T), measurements.mean[b].numpy(), seen)
        np.testing.assert_allclose(result.predicted.mean[b], expected["predicted_mean"], **TIGHT)
        np.testing.assert_allclose(result.predicted.cov[b], expected["predicted_cov"], **TIGHT)
        np.testing.assert_allclose(result.filtered.mean[b], expected["filtered_mean"], **TIGHT)
        np.testing.assert_allclose(result.filtered.cov[b], expected["filtered_cov"], **TIGHT)
        np.testing.assert_allclose(result.log_likelihood[b], expected["log_likelihood"], **TIGHT)


@pytest.mark.parametrize("masked", [False, True])
def test_moments_are_the_same_computation(masked: bool) -> None:
    ssm, measurements, observed = problem(True, masked)
    result = filter_sequence(ssm, measurements, observed)
    filtered, log_likelihood = filter_moments(ssm, measurements, observed)
    assert torch.equal(filtered.mean, result.filtered.mean)
    assert torch.equal(filtered.cov, result.filtered.cov)
    assert torch.equal(log_likelihood, result.log_likelihood)
