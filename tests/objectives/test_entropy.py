"""Entropy estimators against closed forms, their scaling law and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldm_filter.objectives.entropy import ENTROPIES, conditional_log_det, kde, knn, log_det

Estimator = Callable[..., Tensor]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(count: int, dim: int, seed: int = 0) -> tuple[Tensor, float]:
    """Samples of N(mean, L L') with entries of L of very different size, and their entropy."""
    factor = torch.randn(dim, dim, generator=rng(seed), dtype=torch.float64).tril(-1) + torch.diag(10.0 ** torch.linspace(-2, 2, dim).double())
    z = torch.randn(count, dim, generator=rng(seed + 1), dtype=torch.float64) @ factor.mT + 7.0
    return z, 0.5 * dim * (1 + math.log(2 * math.pi)) + float(factor.diagonal().log().sum())


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize(("name", "tolerance"), [("log-det", 0.03), ("conditional-log-det", 0.03), ("knn", 0.12), ("kde", 0.2)])
def test_entropy_of_a_correlated_gaussian(name: str, tolerance: float, dim: int) -> None:
    z, truth = correlated(4000, dim)
    # (kNN and KDE look at balls: they are asked in the basis in which the Gaussian is round, and the volume is put back.)
    if name in ("knn", "kde"):
        root = torch.linalg.cholesky(torch.cov(z.mT).reshape(dim, dim))
        z, truth = torch.linalg.solve_triangular(root, z.mT, upper=False).mT, truth - float(root.diagonal().log().sum())
    assert float(ENTROPIES[name](z)) == pytest.approx(truth, abs=tolerance)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize(("name", "tolerance"), [("knn", 0.06), ("kde", 0.2)])
def test_entropy_of_a_uniform_box_is_the_logarithm_of_its_volume(name: str, tolerance: float, dim: int) -> None:
    z = 3.0 * torch.rand(4000, dim, generator=rng(), dtype=torch.float64)
    assert float(ENTROPIES[name](z)) == pytest.approx(dim * math.log(3.0), abs=tolerance)
    assert float(log_det(z)) == pytest.approx(dim * math.log(3.0) + 0.5 * dim * math.log(2 * math.pi * math.e / 12), abs=0.02)


def test_knn_has_little_bias_for_every_k() -> None:
    z = torch.randn(2000, 3, generator=rng(), dtype=torch.float64)
    for k in (1, 3, 8):
        assert float(knn(z, k=k)) == pytest.approx(1.5 * (1 + math.log(2 * math.pi)), abs=0.1)


def test_kde_is_the_plain_double_loop() -> None:
    z = torch.randn(40, 2, generator=rng(), dtype=torch.float64) @ torch.tensor([[1.0, 0.4], [0.0, 0.2]], dtype=torch.float64)
    h = 0.5
    kernel = h**2 * torch.cov(z.mT, correction=0)
    density = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), kernel)
    total = 0.0
    for i in range(40):
        others = torch.cat([z[:i], z[i + 1 :]])
        total -= math.log(float(density.log_prob(z[i] - others).exp().mean())) / 40
    assert float(kde(z, bandwidth=h)) == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("name", ENTROPIES)
def test_scaling_and_translation(name: str) -> None:
    """H[a z + b] = H[z] + D log a, and so dH/dlog a = D: value and gradient."""
    z = torch.randn(600, 3, generator=rng(), dtype=torch.float64)
    level = torch.randn(600, generator=rng(1), dtype=torch.float64)
    log_a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    moved = ENTROPIES[name](log_a.exp() * z + shift, level)
    slope, drift = torch.autograd.grad(moved, [log_a, shift])
    assert float(moved.detach() - ENTROPIES[name](z, level)) == pytest.approx(3 * 0.7, abs=1e-8)
    assert float(slope) == pytest.approx(3.0, abs=1e-8)
    assert float(drift.abs().max()) < 1e-10
    assert float(ENTROPIES[name](z + 100.0, level) - ENTROPIES[name](z, level)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", ["log-det", "conditional-log-det", "kde"])
def test_each_latent_has_a_scale_of_its_own(name: str) -> None:
    z = torch.randn(600, 3, generator=rng(), dtype=torch.float64)
    scale = torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64)
    assert float(ENTROPIES[name](z * scale)) == pytest.approx(float(ENTROPIES[name](z)), abs=1e-6)


@pytest.mark.parametrize("name", ENTROPIES)
def test_gradient(name: str) -> None:
    z = torch.randn(24, 2, generator=rng(3), dtype=torch.float64, requires_grad=True)
    level = torch.randn(24, generator=rng(4), dtype=torch.float64)
    options = {"steps": 150} if name == "scale-mixture" else {}  # its gradient is exact where EM has converged
    assert torch.autograd.gradcheck(lambda x: ENTROPIES[name](x, level, **options), z)


@pytest.mark.parametrize("name", ENTROPIES)
def test_float32_and_thinning(name: str) -> None:
    z = torch.randn(5000, 2, generator=rng())
    assert ENTROPIES[name](z).dtype == torch.float32
    assert float(ENTROPIES[name](z)) == pytest.approx(float(ENTROPIES[name](z.double())), abs=1e-4)
    assert float(ENTROPIES[name](z)) == pytest.approx(1 + math.log(2 * math.pi), abs=0.2)


@pytest.mark.parametrize("name", ENTROPIES)
def test_a_collapsed_latent_costs_much_but_stays_finite_and_can_come_back(name: str) -> None:
    z = torch.randn(400, 3, generator=rng(), dtype=torch.float64)
    alive = float(ENTROPIES[name](z))
    z[:, 2] *= 1e-9
    z.requires_grad_()
    value = ENTROPIES[name](z)
    (slope,) = torch.autograd.grad(value, z)
    assert torch.isfinite(value)
    assert torch.isfinite(slope).all()
    assert float(value.detach()) < alive - 1.0
    if name != "knn":  # the distance to a neighbour in the living directions hides the dead one
        outward = (slope[:, 2] * z.detach()[:, 2]).sum()
        assert float(outward) > 0.1
        assert float(value.detach()) < alive - 10.0


# Conditional log-det.


def scale_mixture(count: int = 24_000) -> tuple[Tensor, Tensor, float]:
    """z = exp(s) e with s uniform in (-1.5, 1.5), independent of e ~ N(0, I_2); H[z | s] = H[e] + 2 E[s]."""
    s = 3.0 * torch.rand(count, generator=rng(5), dtype=torch.float64) - 1.5
    z = s.exp()[:, None] * torch.randn(count, 2, generator=rng(6), dtype=torch.float64)
    return z, s, 1 + math.log(2 * math.pi)


def test_heavy_tails_fool_the_unconditional_estimate_only() -> None:
    z, s, truth = scale_mixture()
    assert float(log_det(z)) > truth + 0.5
    assert float(conditional_log_det(z, 2.0 * s)) == pytest.approx(truth, abs=0.04)


def test_many_bins_leave_less_of_the_mixture_in_a_bin() -> None:
    z, s, truth = scale_mixture()
    error = [abs(float(conditional_log_det(z, s, bins=bins)) - truth) for bins in (1, 3, 12)]
    assert error[0] > 2 * error[1] > 4 * error[2]


def test_sending_noisy_samples_far_out_gains_nothing() -> None:
    """What broke training with a learned R: dH/d(scale of the noisy tenth) per nat is their share, 0.1 D, not more."""
    z, s, _ = scale_mixture(6000)
    noisy = s > s.quantile(0.9)
    gain = torch.zeros((), dtype=torch.float64, requires_grad=True)
    stretched = torch.where(noisy[:, None], z * gain.exp(), z)
    conditional = torch.autograd.grad(conditional_log_det(stretched, s, bins=10), gain, retain_graph=True)[0]
    plain = torch.autograd.grad(log_det(stretched), gain)[0]
    assert float(conditional) == pytest.approx(0.2, abs=0.01)
    assert float(plain) > 0.6


def test_a_level_that_tells_nothing_changes_nothing() -> None:
    """Equal levels (an untrained noise network) must not sort samples by time: a slow series has no spread within a bin."""
    slow = torch.randn(12, 1, 2, generator=rng()).expand(-1, 100, -1).reshape(1200, 2) + 0.1 * torch.randn(1200, 2, generator=rng(1))
    assert float(conditional_log_det(slow, torch.zeros(1200))) == pytest.approx(float(log_det(slow)), abs=0.15)


def test_condition_passes_no_gradient_and_columns_are_averaged() -> None:
    z, s, _ = scale_mixture(2000)
    level = torch.stack([s + 1.0, s - 1.0], dim=-1).requires_grad_()
    z.requires_grad_()
    value = conditional_log_det(z, level)
    value.backward()
    assert level.grad is None
    assert float(value.detach()) == pytest.approx(float(conditional_log_det(z.detach(), s)), abs=1e-12)


def test_few_samples_use_fewer_bins() -> None:
    z = torch.randn(23, 2, generator=rng(), dtype=torch.float64)
    assert float(conditional_log_det(z, z[:, 0])) == float(log_det(z[z[:, 0].argsort()]))
    assert torch.isfinite(conditional_log_det(z[:10], z[:10, 0]))


def test_no_condition_is_the_plain_estimate() -> None:
    z = torch.randn(100, 2, generator=rng())
    assert conditional_log_det(z) == log_det(z)


# Errors.


@pytest.mark.parametrize("name", ENTROPIES)
def test_errors_name_the_samples(name: str) -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 5, 2\), expected \(N, D\)"):
        ENTROPIES[name](torch.zeros(4, 5, 2))
    with pytest.raises(ValueError, match="use a larger batch"):
        ENTROPIES[name](torch.randn(2, 3, generator=rng()))
    bad = torch.randn(50, 2, generator=rng())
    bad[17, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite in row 17"):
        ENTROPIES[name](bad)


def test_errors_name_the_settings() -> None:
    z = torch.randn(50, 2, generator=rng())
    with pytest.raises(ValueError, match="condition has 49 rows, samples have 50"):
        conditional_log_det(z, z[:49, 0])
    with pytest.raises(ValueError, match="condition holds a value that is not finite"):
        conditional_log_det(z, z[:, 0].log())
    with pytest.raises(ValueError, match="bins is 0"):
        conditional_log_det(z, z[:, 0], bins=0)
    with pytest.raises(ValueError, match="k is 0"):
        knn(z, k=0)
    for bandwidth in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="bandwidth is"):
            kde(z, bandwidth=bandwidth)
