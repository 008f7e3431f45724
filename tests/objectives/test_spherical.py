"""Entropies on the sphere against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import special

from ldm_filter.core.directional import log_normaliser, normalise
from ldm_filter.objectives.spherical import SPHERE_ENTROPIES, sphere_knn, vmf_cross_entropy, vmf_kde


def uniform(count: int, dim: int = 3, seed: int = 0) -> torch.Tensor:
    return normalise(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def area(dim: int) -> float:
    return 2 * math.pi ** (dim / 2) / math.gamma(dim / 2)


@pytest.mark.parametrize("dim", [2, 3, 4])
@pytest.mark.parametrize("name", SPHERE_ENTROPIES)
def test_uniform_points_have_the_logarithm_of_the_area(name: str, dim: int) -> None:
    z = uniform(4000, dim)
    assert float(SPHERE_ENTROPIES[name](z)) == pytest.approx(math.log(area(dim)), abs=0.05)
    pairs = torch.cat([z, uniform(4000, dim, seed=1)], dim=-1)  # independent: the joint entropy is the sum
    assert float(SPHERE_ENTROPIES[name](pairs, factors=2)) == pytest.approx(2 * math.log(area(dim)), abs=0.35)


def test_a_cap_has_the_entropy_of_its_density() -> None:
    """von Mises-Fisher in three dimensions, drawn by its cosine: H = -log C - kappa A(kappa)."""
    kappa, count = 20.0, 4000
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(count, generator=generator, dtype=torch.float64)
    cosine = 1.0 + torch.log(draw + (1.0 - draw) * math.exp(-2.0 * kappa)) / kappa
    angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    sine = (1.0 - cosine**2).sqrt()
    z = torch.stack([sine * angle.cos(), sine * angle.sin(), cosine], dim=-1)
    mean = special.ive(1.5, kappa) / special.ive(0.5, kappa)
    truth = -float(log_normaliser(3, torch.tensor(kappa))) - kappa * mean
    assert float(sphere_knn(z)) == pytest.approx(truth, abs=0.06)
    assert float(vmf_kde(z, concentration=400.0)) == pytest.approx(truth, abs=0.1)


def test_kernel_density_is_the_plain_double_loop() -> None:
    z = uniform(30)
    constant = float(log_normaliser(3, torch.tensor(10.0)))
    total, cross = 0.0, []
    for i in range(30):
        kernel = [math.exp(constant + 10.0 * float(z[i] @ z[j])) for j in range(30)]
        total -= math.log((sum(kernel) - kernel[i]) / 29) / 30
        cross.append(-math.log(sum(kernel) / 30))
    assert float(vmf_kde(z)) == pytest.approx(total, abs=1e-9)
    assert vmf_cross_entropy(z, z).tolist() == pytest.approx(cross, abs=1e-9)


def test_collapse_costs_and_spreading_pays() -> None:
    z = uniform(400)
    squeezed = normalise(0.05 * z + torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    for estimator in SPHERE_ENTROPIES.values():
        leaf = squeezed.clone().requires_grad_()
        value = estimator(normalise(leaf))
        assert float(value.detach()) < float(estimator(z)) - 1.0
        (slope,) = torch.autograd.grad(value, leaf)
        outward = (slope * (leaf.detach() - leaf.detach().mean(0))).sum()
        assert torch.isfinite(slope).all() and float(outward) > 0
