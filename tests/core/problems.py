"""Random filtering problems for the tests of the core, and their translation to the plain oracles."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldm_filter.types import Gaussian, StateSpace
from tests.reference import Model

__all__ = ["constant_ssm", "numpy_model", "observed_of", "random_cov", "random_measurements", "varying_ssm"]


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def random_cov(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Symmetric positive definite ``(*shape, shape[-1])``, far from singular."""
    x = normal(seed, *shape, shape[-1])
    return scale * (x @ x.mT / shape[-1] + 0.3 * torch.eye(shape[-1], dtype=torch.float64))


def stable(seed: int, *shape: int) -> Tensor:
    """Matrices ``(*shape, shape[-1])`` of norm 0.95."""
    x = normal(seed, *shape, shape[-1])
    return 0.95 * x / torch.linalg.matrix_norm(x, 2)[..., None, None]


def constant_ssm(n: int, m: int, seed: int = 0) -> StateSpace:
    return StateSpace(
        stable(seed + 1, n),
        normal(seed + 2, n),
        random_cov(seed + 3, n, scale=0.3),
        normal(seed + 4, m, n),
        normal(seed + 5, m),
        Gaussian(normal(seed + 6, n), random_cov(seed + 7, n)),
    )


def varying_ssm(batch: int, steps: int, n: int, m: int, seed: int = 0) -> StateSpace:
    return StateSpace(
        stable(seed + 1, batch, steps, n),
        normal(seed + 2, batch, steps, n),
        random_cov(seed + 3, batch, steps, n, scale=0.3),
        normal(seed + 4, batch, steps, m, n),
        normal(seed + 5, batch, steps, m),
        Gaussian(normal(seed + 6, batch, n), random_cov(seed + 7, batch, n)),
    )


def random_measurements(batch: int, steps: int, m: int, seed: int = 0, varying: bool = False) -> Gaussian:
    cov = random_cov(seed + 12, batch, steps, m) if varying else random_cov(seed + 12, m)
    return Gaussian(normal(seed + 11, batch, steps, m), cov)


def observed_of(batch: int, steps: int, m: int, seed: int = 0) -> Tensor:
    """A mask with single channels and, where there are enough, whole steps missing."""
    mask = torch.rand(batch, steps, m, generator=rng(seed + 21)) > 0.3
    mask[:, steps // 2] = steps == 1
    return mask


def numpy_model(ssm: StateSpace, cov: Tensor, index: int, batch: int, steps: int) -> Model:
    """Series ``index`` as the oracles want it."""

    def at(x: Tensor, event_dims: int) -> np.ndarray:
        event = x.shape[x.dim() - event_dims :]
        x = x if x.dim() > event_dims else x.reshape(1, 1, *event)
        return x.expand(batch, steps, *event)[index].detach().double().numpy()

    def first(x: Tensor, event_dims: int) -> np.ndarray:
        event = x.shape[x.dim() - event_dims :]
        return x.expand(batch, *event)[index].detach().double().numpy()

    return Model(
        at(ssm.transition_matrix, 2),
        at(ssm.transition_offset, 1),
        at(ssm.transition_cov, 2),
        at(ssm.observation_matrix, 2),
        at(ssm.observation_offset, 1),
        at(cov, 2),
        first(ssm.initial.mean, 1),
        first(ssm.initial.cov, 2),
    )
