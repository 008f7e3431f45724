"""Training in stages, where all at once could be fooled: first the encoder, then noise that depends on the state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from ldm_filter.estimator.fitting import Plan, run_training
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.stepwise import StepwiseDynamics
from ldm_filter.objectives.objective import Objective
from ldm_filter.training import History, TrainingOptions

__all__ = ["frozen", "train"]


def train(model: LatentFilter, objective: Objective, plan: Plan, options: TrainingOptions) -> History:
    """Latent distribution matching on the plan's windows; noise of the state is learned afterwards, the encoder held fixed.

    An encoder that may choose where in the state R is large can stretch its latents there: what it wins in entropy, R does not take back. With the
    encoder and the motion fixed the entropy is a constant, and R(h) is that of maximum likelihood. With targets all is learned at once.
    """
    dynamics = model.dynamics
    if not isinstance(dynamics, StepwiseDynamics) or dynamics.state_noise is None or model.predictor is not None or model.head is not None:
        return run_training(model, objective, plan, options)
    noise, dynamics.state_noise = dynamics.state_noise, None
    history = run_training(model, objective, plan, options)
    dynamics.state_noise = noise
    noise.set_scale(dynamics.initial().cov.detach())
    with frozen(model.encoder.linear, model.encoder.network, dynamics.base):
        second = replace(options, epochs=max(1, options.epochs // 2), mask_rate=0.0, compare={}, checkpoint_path=None)
        found = run_training(model, Objective("log-det"), replace(plan, epochs=second.epochs), second)
    history.events += [
        f"noise of the state, the encoder fixed: {found.epochs[max(found.best_epoch, 0)]['alignment']:.3f} nats per step",
        *found.events,
    ]
    return history


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Without gradients for the parameters that have them."""
    trainable = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
