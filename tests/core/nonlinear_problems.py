"""State-space models that are not linear, and linear ones in their clothes, for the tests of nonlinear filters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm_filter.core.linearisation import (
    Linearise,
    Step,
    Transition,
    cubature,
    extended,
    linear,
    sigma_point,
    unscented,
)
from ldm_filter.core.nonlinear import AdaptiveNoise, NonlinearStateSpace
from ldm_filter.types import FilterResult, Gaussian, StateSpace
from tests.core.problems import normal

B, T, N, M = 3, 7, 4, 2
DT = 0.1
KINDS: dict[str, Callable[[Transition, int], Linearise]] = {
    "extended": lambda transition, size: extended(transition),
    "cubature": lambda transition, size: sigma_point(transition, cubature(size)),
    "unscented": lambda transition, size: sigma_point(transition, unscented(size)),
}


def clothed(ssm: StateSpace, kind: str = "linear") -> NonlinearStateSpace:
    """A linear model as a nonlinear one."""
    transition, linearise = linear(ssm)
    linearise = linearise if kind == "linear" else KINDS[kind](transition, ssm.initial.mean.shape[-1])
    return NonlinearStateSpace(transition, linearise, ssm.observation_matrix, ssm.observation_offset, ssm.initial)


def everything(result: FilterResult) -> tuple[Tensor, ...]:
    return (*result.predicted, *result.filtered, *result.projected, result.log_likelihood)


def pendulum(kind: str, cov: Tensor | None = None, stiffness: float | Tensor = 9.81) -> NonlinearStateSpace:
    """(angle, velocity) of a pendulum, the sine of no component seen: the angle alone is measured."""
    cov = torch.diag(torch.tensor([1e-3, 2e-2], dtype=torch.float64)) if cov is None else cov

    def transition(state: Tensor, step: Step) -> Gaussian:
        angle, velocity = state.unbind(-1)
        faster = velocity - DT * stiffness * torch.sin(angle)
        return Gaussian(torch.stack([angle + DT * faster, faster], dim=-1), cov)

    one = torch.ones(1, dtype=torch.float64)
    initial = Gaussian(torch.tensor([2.0, 0.0], dtype=torch.float64), torch.diag(torch.tensor([0.3, 0.5], dtype=torch.float64)))
    return NonlinearStateSpace(transition, KINDS[kind](transition, 2), torch.tensor([[1.0, 0.0]]).double(), 0.0 * one, initial)


def swings(batch: int, steps: int) -> Gaussian:
    angle = 2.0 * torch.cos(2.2 * DT * torch.arange(steps, dtype=torch.float64)) + 0.2 * normal(3, batch, steps)
    return Gaussian(angle.unsqueeze(-1), torch.full((1, 1), 0.04, dtype=torch.float64))


def restless(ssm: StateSpace, gain: float | Tensor = 0.3) -> NonlinearStateSpace:
    """A linear model whose Q grows with the surprises of the last steps."""
    eye = torch.eye(ssm.initial.mean.shape[-1], dtype=torch.float64)
    adaptive = AdaptiveNoise(
        torch.ones(1, dtype=torch.float64),
        lambda memory, surprise: 0.5 * memory + 0.5 * surprise.unsqueeze(-1),
        lambda s: gain * s.unsqueeze(-1) * eye,
    )
    return clothed(ssm)._replace(adaptive=adaptive)
