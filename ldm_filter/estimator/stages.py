"""Training in stages: first the encoder, then, with it held fixed, noise of the state or the filter that another latent model had no need of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from ldm_filter.estimator.fitting import Plan, restart_dynamics, run_training, window_length
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.stepwise import StepwiseDynamics
from ldm_filter.objectives.objective import Objective
from ldm_filter.training import History, TrainingOptions

__all__ = ["fit_dynamics", "frozen", "series_plan", "train"]

LEAST_BATCH = 4


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


def fit_dynamics(model: LatentFilter, plan: Plan, options: TrainingOptions, history: History) -> Plan:
    """After training with another latent model: the filter of the latents that it found, the encoder held fixed.

    Subspace identification, then the filter's likelihood on long windows (with a fixed encoder the entropy is a constant).

    Args:
        model: changed in place; its predictor is given up.
        plan: that of the other latent model, whose windows may be pairs.
        options: of its training. history: gets a line of what was found.

    Returns:
        The plan with the windows that the filter was fitted on.
    """
    model.predictor = None
    plan = series_plan(plan)
    restart_dynamics(model, plan)
    with frozen(model.encoder.linear, model.encoder.network):
        found = run_training(model, Objective("log-det"), plan, replace(options, mask_rate=0.0))
    name = "validation_alignment" if "validation_alignment" in found.epochs[-1] else "alignment"
    row = found.epochs[max(found.best_epoch, 0)]
    history.events += [f"the filter of these latents: {row[name]:.3f} nats per step, in epoch {row['epoch']:.0f} of its own", *found.events]
    return plan


def series_plan(plan: Plan) -> Plan:
    """The plan with windows of up to 100 steps and about as many steps in a batch.

    A pair of neighbours is the first step of a filter and the next: fitted to those, its covariances would be of a filter that is still finding in.
    """
    training, validation, length = plan.training, plan.validation, window_length(plan.training.lengths, None)
    if training.length >= length:
        return plan
    batch_size = min(plan.batch_size, max(LEAST_BATCH, round(plan.batch_size * training.length / length)))
    if validation is not None:
        validation = validation.recut(window_length(validation.lengths, None))
    return Plan(training.recut(length), validation, batch_size, plan.epochs)


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
