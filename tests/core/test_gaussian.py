"""Gaussians against torch.distributions, scipy and quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm
from torch.distributions import MultivariateNormal, kl_divergence
from torch.testing import assert_close

from ldm_filter.core.gaussian import crps_normal, kl, log_density, sample
from ldm_filter.core.linalg import NotPositiveDefiniteError
from ldm_filter.types import Gaussian
from tests.core.problems import normal, random_cov, rng


def test_log_density() -> None:
    gaussian, x = Gaussian(normal(0, 2, 3, 4), random_cov(1, 1, 3, 4)), normal(2, 2, 3, 4)
    got = log_density(x, gaussian)
    assert got.shape == (2, 3)
    for b in range(2):
        for t in range(3):
            expected = multivariate_normal(gaussian.mean[b, t].numpy(), gaussian.cov[0, t].numpy()).logpdf(x[b, t].numpy())
            np.testing.assert_allclose(got[b, t], expected, rtol=1e-12)


def test_kl() -> None:
    p, q = Gaussian(normal(0, 3, 4), random_cov(1, 3, 4)), Gaussian(normal(2, 4), random_cov(3, 4))
    expected = kl_divergence(MultivariateNormal(*p), MultivariateNormal(q.mean.expand(3, 4), q.cov.expand(3, 4, 4)))
    assert_close(kl(p, q), expected)
    assert_close(kl(p, p), torch.zeros(3, dtype=torch.float64), rtol=0.0, atol=1e-12)


def test_float32_in_float32_out() -> None:
    gaussian = Gaussian(torch.zeros(2), torch.eye(2))
    assert log_density(torch.ones(2), gaussian).dtype == torch.float32
    assert kl(gaussian, gaussian).dtype == torch.float32
    assert sample(gaussian, rng(0)).dtype == torch.float32


def test_sample() -> None:
    gaussian = Gaussian(normal(0, 2, 1, 3), random_cov(1, 2, 3))
    draws = sample(gaussian, rng(2), (20_000,))
    assert draws.shape == (20_000, 2, 2, 3)
    mean, cov = draws[:, 1, 0].mean(0), torch.cov(draws[:, 1, 0].mT)
    assert_close(mean, gaussian.mean[1, 0], rtol=0.0, atol=0.05)
    assert_close(cov, gaussian.cov[0], rtol=0.0, atol=0.08)
    assert sample(gaussian, rng(2)).shape == (2, 2, 3)


def test_sample_without_noise_is_the_mean() -> None:
    gaussian = Gaussian(normal(0, 3), torch.zeros(3, 3, dtype=torch.float64))
    assert_close(sample(gaussian, rng(2), (5,)), gaussian.mean.expand(5, 3), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("mean, std, y", [(0.0, 1.0, 0.0), (0.3, 0.5, 1.4), (-2.0, 3.0, 4.0)])
def test_crps(mean: float, std: float, y: float) -> None:
    below, _ = quad(lambda x: norm.cdf(x, mean, std) ** 2, mean - 15 * std, y)
    above, _ = quad(lambda x: norm.sf(x, mean, std) ** 2, y, mean + 15 * std)
    got = crps_normal(*(torch.tensor(v, dtype=torch.float64) for v in (mean, std, y)))
    np.testing.assert_allclose(got, below + above, rtol=1e-8)


def test_crps_of_a_sharp_forecast_is_the_error() -> None:
    assert_close(crps_normal(torch.tensor(1.0), torch.tensor(1e-6), torch.tensor(3.0)), torch.tensor(2.0), rtol=1e-5, atol=0.0)


def test_errors() -> None:
    bad = Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0])))
    good = Gaussian(torch.zeros(2), torch.eye(2))
    with pytest.raises(NotPositiveDefiniteError, match=r"gaussian.cov is not positive definite"):
        log_density(torch.zeros(2), bad)
    with pytest.raises(NotPositiveDefiniteError, match=r"q.cov"):
        kl(good, bad)
    with pytest.raises(NotPositiveDefiniteError, match=r"gaussian.cov"):
        sample(bad, rng(0))
    with pytest.raises(ValueError, match=r"std has a value of 0; expected positive"):
        crps_normal(torch.zeros(1), torch.zeros(1), torch.zeros(1))
