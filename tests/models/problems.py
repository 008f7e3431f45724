"""Models, data and comparisons that the tests of the models share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from datasets.linear_gaussian import random_model
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.types import Gaussian, StateSpace

__all__ = ["assert_same_model", "cast", "filter_of", "latents_of", "radius", "rng", "seeded", "stable_model"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """torch's layers draw their starting values from the global generator: within this block from a seed, leaving it untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def radius(matrix: Tensor) -> float:
    return float(torch.linalg.eigvals(matrix.detach().double()).abs().max())


def stable_model(n: int, m: int, seed: int = 0, rho: float = 0.95) -> StateSpace:
    """A random model whose state has mean and initial mean of order 1 (a random offset would have it at 1 / (1 - rho))."""
    ssm = random_model(n, m, rng(seed), rho)
    mean = torch.randn(n, generator=rng(seed + 1), dtype=torch.float64)
    offset = mean - ssm.transition_matrix @ mean
    factor = torch.randn(n, n, generator=rng(seed + 2), dtype=torch.float64)
    initial = Gaussian(mean + 1.0, factor @ factor.mT / n + torch.eye(n, dtype=torch.float64))
    return ssm._replace(transition_offset=offset, initial=initial)


def cast(ssm: StateSpace, dtype: torch.dtype) -> StateSpace:
    initial = Gaussian(ssm.initial.mean.to(dtype), ssm.initial.cov.to(dtype))
    a, offset, q, c, level, _ = (field.to(dtype) if isinstance(field, Tensor) else field for field in ssm)
    return StateSpace(a, offset, q, c, level, initial)


def assert_same_model(found: StateSpace, expected: StateSpace, atol: float) -> None:
    for name, one, other in zip(
        (*found._fields[:-1], "initial.mean", "initial.cov"), (*found[:-1], *found.initial), (*expected[:-1], *expected.initial), strict=True
    ):
        error = float((one.detach().double() - other.detach().double()).abs().max())
        assert error <= atol, f"{name} is off by {error:.2g}"


def filter_of(event_shape: tuple[int, ...] = (3,), n: int = 3, m: int = 2, noise: str = "constant", seed: int = 0, **choices: str) -> LatentFilter:
    """A float64 model with weights that are drawn from the seed alone, none of them zero."""
    with seeded(seed):
        model = LatentFilter(Encoder(event_shape, m, noise=noise), LinearDynamics(n, m, generator=rng(seed), **choices)).double()
    generator = rng(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def latents_of(ssm: StateSpace, measurement_cov: Tensor, series: int, steps: int, seed: int = 0) -> Tensor:
    """Measurements ``(series, steps, m)`` drawn from the model."""
    generator = rng(seed)

    def noise(cov: Tensor) -> Tensor:
        return torch.randn(series, len(cov), generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(cov).mT

    h = ssm.initial.mean + noise(ssm.initial.cov)
    out = []
    for step in range(steps):
        h = h if step == 0 else h @ ssm.transition_matrix.mT + ssm.transition_offset + noise(ssm.transition_cov)
        out.append(h @ ssm.observation_matrix.mT + ssm.observation_offset + noise(measurement_cov))
    return torch.stack(out, dim=1)
