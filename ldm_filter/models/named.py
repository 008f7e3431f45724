"""Dynamics by the names that LDMFilter gives them."""

from __future__ import annotations

import torch

from ldm_filter.models.affine import AffineDynamics
from ldm_filter.models.base import Dynamics
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.jumps import JumpDynamics
from ldm_filter.models.noise import AdaptiveProcessNoise, StateNoise
from ldm_filter.models.nonlinear import METHODS, LocallyLinearDynamics, NonlinearDynamics
from ldm_filter.models.polynomial import PolynomialDynamics
from ldm_filter.models.stepwise import StepwiseDynamics

__all__ = ["named_dynamics"]


def named_dynamics(
    base: AffineDynamics, dynamics: str, noise: str, generator: torch.Generator | None = None, settle_within: int | None = None
) -> Dynamics:
    """The dynamics that ``LDMFilter(dynamics=..., noise=...)`` means, with ``base`` as their linear part; ``base`` itself where nothing is asked for.

    Args:
        base: linear dynamics. dynamics: ``"locally-linear"``, ``"ekf"``, ``"ukf"``, ``"polynomial"``; any other name leaves the motion to the base.
        noise: ``"adaptive"``, ``"state"`` or ``"jump"``; any other is the encoder's concern.
        settle_within: of :class:`~ldm_filter.models.jumps.JumpDynamics`, with ``noise="jump"`` alone.

    Raises:
        ValueError: jumps beside a motion that is not linear.
    """
    if noise == "jump":
        if dynamics not in ("linear", "continuous"):
            raise ValueError(f"noise is 'jump', whose calm motion is linear, and dynamics is {dynamics!r}; leave dynamics out, or use 'adaptive'")
        return JumpDynamics(base, settle_within=settle_within)
    adaptive = AdaptiveProcessNoise(base.state_dim, generator=generator) if noise == "adaptive" else None
    state_noise = StateNoise(base.state_dim, base.latent_dim, generator=generator) if noise == "state" else None
    if isinstance(base, LinearDynamics) and dynamics == "locally-linear":
        return LocallyLinearDynamics(base, adaptive=adaptive, state_noise=state_noise, generator=generator)
    if isinstance(base, LinearDynamics) and dynamics in METHODS:
        return NonlinearDynamics(base, dynamics, adaptive=adaptive, state_noise=state_noise, generator=generator)
    if isinstance(base, LinearDynamics) and dynamics == "polynomial":
        return PolynomialDynamics(base, adaptive=adaptive, state_noise=state_noise)
    return base if adaptive is None and state_noise is None else StepwiseDynamics(base, adaptive, state_noise)
