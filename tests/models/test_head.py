"""The read-out that is trained with the filter: its Gaussian against closed forms, its slope against autograd, and its start."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from ldm_filter.core.linalg import cholesky
from ldm_filter.models.factors import factor
from ldm_filter.models.head import TargetHead
from ldm_filter.models.readout import fit_readout
from ldm_filter.types import Gaussian

N, D, SERIES, STEPS = 4, 3, 2, 5


def belief(seed: int = 0) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(SERIES, STEPS, N, N, generator=generator, dtype=torch.float64)
    return Gaussian(torch.randn(SERIES, STEPS, N, generator=generator, dtype=torch.float64), root @ root.mT / N)


def head(kind: str, seed: int = 1) -> TargetHead:
    made = TargetHead(N, D, kind, hidden=8).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        made.centre.copy_(torch.tensor([1.0, -2.0, 0.5]))
        made.scale.copy_(torch.tensor([0.5, 2.0, 1.0]))
        made.state_mean.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        made.state_std.copy_(torch.tensor([1.0, 0.5, 2.0, 1.5]))
    return made


def test_a_linear_head_is_w_p_w_and_its_residual() -> None:
    made, given = head("linear"), belief()
    mean, cov = made(given)
    w = made.scale[:, None] * made.weight / made.state_std
    lower = made.scale[:, None] * factor(made.factor)
    offset = made.centre + made.scale * made.bias - w @ made.state_mean
    torch.testing.assert_close(mean, given.mean @ w.mT + offset)
    torch.testing.assert_close(cov, w @ given.cov @ w.mT + lower @ lower.mT)


def test_the_covariance_of_a_network_goes_through_its_slope() -> None:
    """Against autograd's Jacobian: what is beyond J P J' does not depend on P where the residual's network does not look at it."""
    made, given = head("mlp"), belief()
    with torch.no_grad():
        made.spread[0].weight[:, N:] = 0.0
    slopes = torch.stack(
        [torch.autograd.functional.jacobian(lambda h: made(Gaussian(h, given.cov[0, 0]))[0], state) for state in given.mean.flatten(0, 1)]
    ).unflatten(0, (SERIES, STEPS))
    residual = made(Gaussian(given.mean, torch.zeros_like(given.cov))).cov
    torch.testing.assert_close(made(given).cov, slopes @ given.cov @ slopes.mT + residual)
    cholesky(residual)
    variances = made.moments(given)[1]
    torch.testing.assert_close(variances, made(given).cov.diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_density_is_that_of_the_known_targets(kind: str) -> None:
    made, given = head(kind), belief()
    targets = torch.randn(SERIES, STEPS, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    targets[0, 0, 1] = targets[0, 1, :2] = targets[1, 3] = math.nan
    density, known = made.log_density(given, targets)
    mean, cov = (part.detach().numpy() for part in made(given))
    assert not bool(known[1, 3]) and int(known.sum()) == SERIES * STEPS - 1
    for place in np.ndindex(SERIES, STEPS):
        kept = ~np.isnan(targets[place].numpy())
        expected = multivariate_normal(mean[place][kept], cov[place][np.ix_(kept, kept)]).logpdf(targets[place].numpy()[kept]) if kept.any() else 0.0
        assert float(density[place].detach()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_gradients(kind: str) -> None:
    made, given = head(kind), belief()
    targets = torch.ones(SERIES, STEPS, D, dtype=torch.float64)
    targets[0, 2, 0] = math.nan
    names = [name for name, _ in made.named_parameters()]

    def density(mean: torch.Tensor, cov: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        given = Gaussian(mean, 0.5 * (cov + cov.mT))
        model = torch.func.functional_call
        return model(_Density(made), dict(zip([f"head.{name}" for name in names], parameters, strict=True)), (given, targets))

    inputs = [
        given.mean.requires_grad_(),
        given.cov.requires_grad_(),
        *[parameter.detach().clone().requires_grad_() for parameter in made.parameters()],
    ]
    assert torch.autograd.gradcheck(density, inputs, eps=1e-6, atol=1e-5)


class _Density(torch.nn.Module):
    def __init__(self, made: TargetHead) -> None:
        super().__init__()
        self.head = made

    def forward(self, given: Gaussian, targets: torch.Tensor) -> torch.Tensor:
        return self.head.log_density(given, targets)[0]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_it_starts_at_a_linear_regression(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(6, 50, N, generator=generator, dtype=torch.float64)
    targets = (
        states @ torch.randn(N, D, generator=generator, dtype=torch.float64)
        + 3.0
        + 0.1 * torch.randn(6, 50, D, generator=generator, dtype=torch.float64)
    )
    given = Gaussian(states, 1e-4 * torch.eye(N, dtype=torch.float64).expand(1, 50, N, N))
    known = torch.rand(targets.shape, generator=generator) < 0.7
    linear = fit_readout(given, torch.where(known, targets, 0.0), known, kind="linear")
    made = TargetHead(N, D, kind).double()
    made.start_from(linear, given, torch.where(known, targets, math.nan))
    mean, cov = (part.detach() for part in made(given))
    torch.testing.assert_close(mean, linear.mean(states))
    spread = (targets - mean).std()
    assert 0.8 < float(cov.diagonal(dim1=-2, dim2=-1).mean().sqrt() / spread) < 1.3


def test_refusals() -> None:
    with pytest.raises(ValueError, match="'tree'"):
        TargetHead(N, D, "tree")
    with pytest.raises(ValueError, match="33 channels, expected at most 32"):
        TargetHead(N, 33)
