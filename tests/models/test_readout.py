"""Read-outs against numpy's algebra and simulated beliefs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm_filter import metrics
from ldm_filter.models.readout import fit_readout
from ldm_filter.types import Gaussian


def problem(targets: int = 2, steps: int = 400, own: float = 0.2) -> tuple[Gaussian, torch.Tensor, torch.Tensor]:
    """Beliefs (8, steps, 3) with a spread per step, and targets that are an affine map of the true states plus noise of std ``own``."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(8, steps, 3, generator=generator, dtype=torch.float64)
    spread = torch.rand(8, steps, 1, 1, generator=generator, dtype=torch.float64) + 0.1
    truth = mean + spread[..., 0].sqrt() * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(targets, 3, generator=generator, dtype=torch.float64)
    values = truth @ weight.mT + 1.5 + own * torch.randn(8, steps, targets, generator=generator, dtype=torch.float64)
    return Gaussian(mean, spread * torch.eye(3, dtype=torch.float64)), values, weight


def test_the_linear_read_out_is_least_squares_with_the_decoded_covariance() -> None:
    belief, values, _ = problem()
    belief = belief._replace(cov=0.01 * belief.cov)  # known well: the ridge, of relative size (0.05 P / Cov(h))^2, is below 1e-6
    readout = fit_readout(belief, values, torch.ones_like(values, dtype=torch.bool), kind="linear")
    fit = metrics.affine_fit(belief.mean, values)
    np.testing.assert_allclose(readout.weight.numpy(), fit.matrix, atol=1e-5)
    mean, cov = readout(belief)
    np.testing.assert_allclose(mean.numpy(), fit.apply(belief.mean), atol=1e-4)
    np.testing.assert_allclose(cov.numpy(), metrics.decoded_covariance(fit.matrix, belief.cov, fit.residual_cov), rtol=2e-3, atol=1e-4)
    assert metrics.coverage(mean, cov, values) == pytest.approx(0.95, abs=0.025)  # the spread per step is no longer theirs


def test_a_direction_of_which_nothing_is_known_takes_no_part() -> None:
    """Its mean wanders by a thousandth of what is unknown of it; plain least squares would give it any weight, and then doubt everything."""
    belief, values, weight = problem()
    generator = torch.Generator().manual_seed(1)
    idle = 1e-3 * torch.randn(*belief.mean.shape[:-1], 1, generator=generator, dtype=torch.float64)
    cov = torch.nn.functional.pad(belief.cov, (0, 1, 0, 1))
    cov[..., 3, 3] = 1.0
    wider = Gaussian(torch.cat([belief.mean, idle], -1), cov)
    readout = fit_readout(wider, values, torch.ones_like(values, dtype=torch.bool), kind="linear")
    assert float(readout.weight[:, 3].abs().max()) < 1e-2
    np.testing.assert_allclose(readout.weight[:, :3], weight, atol=0.06)
    assert float(readout.trust) > 0.9
    mean, found = readout(wider)
    assert metrics.coverage(mean, found, values) == pytest.approx(0.95, abs=0.015)


def test_a_turned_covariance_is_that_of_the_regression() -> None:
    belief, values, _ = problem()
    observed = torch.ones_like(values, dtype=torch.bool)
    readout = fit_readout(belief, values, observed, kind="linear")
    mean, cov = readout(belief)
    regression = metrics.covariance_regression(mean, values - mean, cov)
    readout.turn(regression)
    turned = readout(belief)
    assert torch.equal(turned.mean, mean)
    np.testing.assert_allclose(turned.cov.numpy(), regression.apply(mean, cov), rtol=1e-5, atol=1e-7)
    shared = Gaussian(belief.mean, belief.cov[:1])
    assert readout(shared).cov.shape == turned.cov.shape
    np.testing.assert_allclose(readout.moments(belief)[1].numpy(), turned.cov.diagonal(dim1=-2, dim2=-1).numpy())


def test_many_targets_have_variances_that_hold_their_level_and_cannot_turn() -> None:
    belief, values, _ = problem(targets=40)
    readout = fit_readout(belief, values, torch.ones_like(values, dtype=torch.bool), kind="linear")
    mean, variance = readout.moments(belief)
    inside = ((values - mean).abs() <= 1.96 * variance.sqrt()).double().mean()
    assert float(inside) == pytest.approx(0.95, abs=0.01)
    with pytest.raises(ValueError, match="use moments"):
        readout(belief)
    with pytest.raises(ValueError, match="only variances are kept"):
        readout.turn(metrics.CovarianceRegression(np.eye(40), np.zeros((40, 41)), np.zeros(40), np.ones(40), 0.0, 0.0, 0.0))


def test_hidden_targets_take_no_part() -> None:
    belief, values, _ = problem()
    observed = torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    dirty = torch.where(observed, values, torch.full_like(values, 1e6))
    readout = fit_readout(belief, dirty, observed, kind="linear")
    whole = fit_readout(belief, values, torch.ones_like(observed), kind="linear")
    np.testing.assert_allclose(readout.weight.numpy(), whole.weight.numpy(), atol=0.05)
    np.testing.assert_allclose(readout(belief).cov.mean((0, 1)).numpy(), whole(belief).cov.mean((0, 1)).numpy(), rtol=0.15, atol=0.05)
    observed[..., 1] = False
    with pytest.raises(ValueError, match=r"targets \[1\] are never observed"):
        fit_readout(belief, values, observed, kind="linear")
    with pytest.raises(ValueError, match="readout is 'forest'"):
        fit_readout(belief, values, observed, kind="forest")


def test_a_network_is_chosen_where_the_map_bends_and_only_there() -> None:
    belief, values, weight = problem(steps=200)
    observed = torch.ones_like(values, dtype=torch.bool)
    assert fit_readout(belief, values, observed).kind == "linear"
    bent = (2.0 * (belief.mean @ weight.mT)).sin()
    readout = fit_readout(belief, bent, observed)
    assert readout.kind == "mlp"
    assert isinstance(readout.network, torch.nn.Module)
    assert float((readout.mean(belief.mean) - bent).square().mean()) < 0.3 * float(bent.var())
