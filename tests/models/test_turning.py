"""A covariance of targets that is scaled and turned after training: against the regression's own formula."""

from __future__ import annotations

import numpy as np
import torch

from ldm_filter.metrics import covariance_regression
from ldm_filter.models.turning import Turning


def errors(count: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates on a circle, their errors, mostly along it, and the covariances claimed, of sizes that vary by a factor of 100."""
    rng = np.random.default_rng(0)
    angle, size = rng.uniform(0, 2 * np.pi, count), np.exp(rng.uniform(-2.3, 2.3, count))
    place = np.stack([np.cos(angle), np.sin(angle)], -1)
    tangent = np.stack([-np.sin(angle), np.cos(angle)], -1)
    error = size[:, None] ** 0.8 * (tangent * rng.normal(size=(count, 1)) + 0.1 * rng.normal(size=(count, 2)))
    claimed = size[:, None, None] * np.array([[1.0, 0.3], [0.3, 0.5]])
    return place, error, claimed


def test_turned_is_what_the_regression_says() -> None:
    place, error, claimed = errors()
    found = covariance_regression(place, error, claimed)
    module = Turning(2).double()
    module.turn(found)
    turned = module.turned(torch.as_tensor(place), torch.as_tensor(claimed))
    np.testing.assert_allclose(turned.numpy(), found.apply(place, claimed), rtol=1e-6)  # the factor holds a sliver on its diagonal
    module.scale_covariance(3.0)
    np.testing.assert_allclose(module.turned(torch.as_tensor(place), torch.as_tensor(claimed)).numpy(), 3.0 * turned.numpy(), rtol=1e-9)


def test_untouched_and_straightened_it_is_the_covariance_itself() -> None:
    place, error, claimed = errors(200)
    cov, module = torch.as_tensor(claimed), Turning(2).double()
    assert module.turned(torch.as_tensor(place), cov) is cov
    module.scale_covariance(0.25)
    torch.testing.assert_close(module.turned(torch.as_tensor(place), cov), 0.25 * cov)
    module.turn(covariance_regression(place, error, claimed))
    module.straighten()
    assert module.turned(torch.as_tensor(place), cov) is cov
