"""From parsed data to a trained, calibrated model: every step of ``LDMFilter.fit`` in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm_filter.data.scaling import statistics
from ldm_filter.data.windows import Windows, split
from ldm_filter.estimator.context import to_device
from ldm_filter.estimator.inference import normalised_innovations
from ldm_filter.estimator.known import empty_model
from ldm_filter.estimator.settling import settle_process_noise
from ldm_filter.estimator.starting import start_motion
from ldm_filter.models.affine import AffineDynamics
from ldm_filter.models.base import Dynamics
from ldm_filter.models.continuous import ContinuousDynamics
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import ConstantNoise, Encoder
from ldm_filter.models.jumps import JumpDynamics
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.named import named_dynamics
from ldm_filter.models.recurrent import build_predictor
from ldm_filter.models.recurrent_dynamics import RecurrentDynamics
from ldm_filter.models.stepwise import StepwiseDynamics
from ldm_filter.models.subspace import canonical_variates
from ldm_filter.objectives.objective import Objective
from ldm_filter.objectives.presets import compose
from ldm_filter.training import History, TrainingOptions, train
from ldm_filter.types import Context, Sequences

__all__ = [
    "Plan",
    "build",
    "common_scale",
    "finish",
    "initialise",
    "make_plan",
    "mostly_complete",
    "plan_of",
    "restart_dynamics",
    "run_training",
    "window_length",
]

LEAST_UPDATES = 600
MOST_ROWS = 20_000
LEAST_SPLIT = 20  # steps of the shortest series, below which nothing is held out


@dataclass(frozen=True)
class Plan:
    """Windows, batches and epochs of one fit."""

    training: Windows
    validation: Windows | None
    batch_size: int
    epochs: int


def build(
    event_shape: tuple[int, ...], config: dict[str, Any], encoder: str | nn.Module, latent_dim: int, dtype: torch.dtype, input_dim: int = 0
) -> LatentFilter:
    """The untrained model; starting values come from ``config["seed"]`` alone."""
    if config["dynamics"] == "matrices":
        return empty_model(config["state_dim"], event_shape[0], input_dim, dtype)
    generator = torch.Generator().manual_seed(config["seed"])
    choices = {name: config[name] for name in ("objective", "latent_model", "space", "mutual_information", "noise")}
    chosen = compose(**choices, square=True)  # the space and the latent model do not depend on what is square
    space, settings = chosen.objective.space, dict(chosen.settings)
    if chosen.latent_model == "sources" and encoder == "auto":
        encoder = "linear"
    with torch.random.fork_rng(devices=[]):  # torch's layers draw their starting values from the global generator
        torch.manual_seed(config["seed"])
        measure = Encoder(event_shape, latent_dim, encoder, "input" if config["noise"] == "input" else "constant", space)
        predictor = None if chosen.latent_model == "dynamics" else build_predictor(chosen.latent_model, latent_dim, space, **settings)
        if isinstance(config["dynamics"], Dynamics):
            return LatentFilter(measure, _own(config["dynamics"], input_dim), predictor).to(dtype)
        if config["dynamics"] == "recurrent":
            return LatentFilter(measure, _recurrent(config["state_dim"], latent_dim, config["noise"], input_dim), predictor).to(dtype)
    kind = ContinuousDynamics if config["dynamics"] == "continuous" else LinearDynamics
    sizes = config["state_dim"], latent_dim
    base = kind(*sizes, config["transition_cov"], config["observation"], generator=generator, input_dim=input_dim)
    return LatentFilter(measure, named_dynamics(base, config["dynamics"], config["noise"], generator, config["settle_within"]), predictor).to(dtype)


def _own(dynamics: Dynamics, input_dim: int) -> Dynamics:
    if dynamics.input_dim != input_dim:
        raise ValueError(f"inputs have {input_dim} channels, and the module given as dynamics takes {dynamics.input_dim}; make them alike")
    return dynamics


def _recurrent(state_dim: int, latent_dim: int, noise: str, input_dim: int) -> RecurrentDynamics:
    if latent_dim != state_dim:
        raise ValueError(
            f"dynamics is 'recurrent', whose state is the latent itself, but state_dim is {state_dim} and latent_dim {latent_dim}; set both alike"
        )
    if noise != "constant" or input_dim:
        what = f"noise={noise!r}" if noise != "constant" else "inputs"
        raise ValueError(f"dynamics is 'recurrent', which takes no notice of {what}; leave them out or use dynamics='linear'")
    return RecurrentDynamics(latent_dim)


def make_plan(
    sequences: Sequences, validation: Sequences | float | None, window: int | None, batch_size: int | None, epochs: int | None, seed: int
) -> Plan:
    """Split, cut into windows, and choose what was left open: small data get smaller batches and more epochs.

    Without a choice of ``epochs`` there are 20, or as many as give 600 updates (at most 300).
    """
    generator = torch.Generator().manual_seed(seed)
    held_out: Sequences | None
    if isinstance(validation, float):
        sequences, held_out = split(sequences, validation, generator) if int(sequences.lengths.min()) >= LEAST_SPLIT else (sequences, None)
    else:
        held_out = validation
    length = window_length(sequences.lengths, window)
    return plan_of(Windows(sequences, length), None if held_out is None else Windows(held_out, length), batch_size, epochs, seed)


def window_length(lengths: Tensor, window: int | None) -> int:
    """Steps of a training window over series of these lengths."""
    return int(window or min(100, int(lengths.max())))


def plan_of(training: Windows, validation: Windows | None, batch_size: int | None, epochs: int | None, seed: int) -> Plan:
    """Windows with the batches and epochs that were left open."""
    count = len(training.index())
    batch_size = int(batch_size or max(4, min(32, count // 8)))
    updates = len(training.epoch(batch_size, torch.Generator().manual_seed(seed)))
    epochs = int(epochs or max(20, min(300, -(-LEAST_UPDATES // updates))))
    return Plan(training, validation, batch_size, epochs)


def mostly_complete(sequences: Sequences) -> bool:
    """Whether at least half of the steps with anything observed are complete, as the change of variables needs them."""
    flat = sequences.observed.flatten(2)
    return bool(2 * flat.all(-1).sum() >= flat.any(-1).sum())


@torch.no_grad()
def initialise(model: LatentFilter, sequences: Sequences) -> None:
    """Start from the classical filter: principal components, and dynamics by subspace identification of their series."""
    mean, std = statistics(sequences)
    values, observed = _rows(sequences)
    model.encoder.fit_normalisation(values, observed, mean.to(values.dtype), std.to(values.dtype))
    if model.predictor is None:
        _start_dynamics(model, sequences)


def _start_dynamics(model: LatentFilter, sequences: Sequences) -> None:
    """Dynamics and a constant R by subspace identification of the present latents."""
    if not model.dynamics.learned_observation:
        return
    pieces = next(Windows(sequences, min(200, int(sequences.lengths.max()))).batches(max(1, 100_000 // 200), shuffle=False))
    device = model.encoder.center.device
    measurements, seen = model.encode(pieces.values.to(device), pieces.observed.to(device))
    latents = _without_inputs(model, measurements.mean, seen, pieces.context)
    dt, dynamics, base = sequences.context.dt, model.dynamics, _linear_part(model.dynamics)
    interval = 1.0 if dt is None or base is None else float(dt[:, 1:].mean()) / base.interval
    try:
        ssm, measurement_cov = canonical_variates(latents, seen, dynamics.state_dim)
        dynamics.start_from(ssm, interval)
    except (ValueError, torch.linalg.LinAlgError):
        return  # too little data for the state's size: the plain start is kept
    if isinstance(model.encoder.noise, ConstantNoise):
        model.encoder.noise.set_covariance(measurement_cov)
    start_motion(model, latents, seen, pieces.context)


def _without_inputs(model: LatentFilter, latents: Tensor, seen: Tensor, context: Context) -> Tensor:
    """Start the feedthrough D by least squares of the latents on the inputs of the same step; what it leaves over."""
    inputs, base = model.dynamics.standardise(context.inputs), _linear_part(model.dynamics)
    if inputs is None or base is None:
        return latents
    inputs = inputs.to(latents)
    rows = inputs[seen]
    ridge = 1e-3 * len(rows) * torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device)
    weight = torch.linalg.solve(rows.mT @ rows + ridge, rows.mT @ (latents[seen] - latents[seen].mean(0))).mT
    base.feedthrough.copy_(weight)
    return latents - inputs @ weight.mT


def _linear_part(dynamics: Dynamics) -> AffineDynamics | None:
    found = dynamics.base if isinstance(dynamics, StepwiseDynamics) else dynamics
    return found if isinstance(found, AffineDynamics) else None


def run_training(model: LatentFilter, objective: Objective, plan: Plan, options: TrainingOptions) -> History:
    """Latent distribution matching on the plan's windows."""

    rows, complete = _rows(plan.training.sequences, 1000)
    complete = complete.flatten(1).all(-1)
    partial = not bool(complete.all()) or options.mask_rate > 0

    def batches(generator: torch.Generator) -> Iterator[Sequences]:
        if partial:  # what a missing channel costs follows the encoder as it learns, so that R stays that of complete steps
            _fit_missing(model, rows, complete)
        return plan.training.batches(plan.batch_size, generator)

    held_out = plan.validation
    validation = None if held_out is None else lambda _: held_out.batches(max(plan.batch_size, 64), shuffle=False)
    updates = len(plan.training.epoch(plan.batch_size, torch.Generator().manual_seed(options.seed)))
    return train(model, objective, batches, updates, options, validation)


@torch.no_grad()
def restart_dynamics(model: LatentFilter, plan: Plan) -> None:
    """Bring the latents of an encoder that was trained by itself to zero mean and unit variance, and find dynamics for them."""
    values, observed = _rows(plan.training.sequences, 5000)
    device = model.encoder.center.device
    measurements, seen = model.encode(values.unsqueeze(1).to(device), observed.unsqueeze(1).to(device))
    latents = measurements.mean[seen]
    model.encoder.rescale(latents.mean(0), latents.std(0))
    _start_dynamics(model, plan.training.sequences)


@torch.no_grad()
def finish(model: LatentFilter, plan: Plan) -> None:
    """Measure what missing channels cost, the share of Q, the common scale of Q and R, and the Q that settles after jumps as fast as asked for; fix
    the gauge (zero mean, unit variance of every latent), bring the state to canonical form. With targets, whose likelihood has decided about the
    scale and whose read-out about the basis, these two stay."""
    values, observed = _rows(plan.training.sequences, 5000)
    _fit_missing(model, values, observed.flatten(1).all(-1))
    if plan.validation is not None and model.head is None:
        settle_process_noise(model, plan.validation, plan.training)
        model.scale_covariances(common_scale(model, plan.validation))
    if isinstance(model.dynamics, JumpDynamics):
        model.dynamics.settle(model.encoder.complete_cov())
    if model.dynamics.learned_observation:
        device = model.encoder.center.device
        measurements, seen = model.encode(values.unsqueeze(1).to(device), observed.unsqueeze(1).to(device))
        latents = measurements.mean[seen]
        if model.head is not None:
            model.fix_gauge(latents.mean(0), latents.std(0))
            return
        model.centre()
        model.fix_gauge(torch.zeros_like(latents[0]), latents.std(0))
        model.canonicalise()


@torch.no_grad()
def common_scale(model: LatentFilter, windows: Windows) -> float:
    """The maximum-likelihood factor of Q, R and P_0 together, with all else as it is: mean NIS / m over the steps of windows.

        c = argmax sum_t log N(e_t; 0, c S_t) = mean_t (e_t' S_t^-1 e_t) / m

    On held-out windows: an encoder fits the noise of those that it was trained on, so that its innovations are larger on others.
    """
    total, count = 0.0, 0
    device = model.encoder.center.device
    for batch in windows.batches(64, shuffle=False):
        context = to_device(batch.context, device)
        measurements, seen = model.encode(batch.values.to(device), batch.observed.to(device))
        projected = model.dynamics.filter(measurements, seen, context).projected
        total += float(normalised_innovations(measurements, projected, seen)[seen].sum())
        count += int(seen.sum())
    return total / max(count, 1)


@torch.no_grad()
def _fit_missing(model: LatentFilter, values: Tensor, complete: Tensor) -> None:
    if int(complete.sum()) >= 10:
        device = model.encoder.center.device
        whole = values[complete].to(device)
        model.encoder.fit_missing(whole, torch.ones_like(whole, dtype=torch.bool))


def _rows(sequences: Sequences, most: int = MOST_ROWS) -> tuple[Tensor, Tensor]:
    """Observations ``(N, *event)`` at which something was seen, evenly spread over series and time."""
    seen = sequences.observed.flatten(2).any(-1).nonzero()
    if len(seen) > most:
        seen = seen[torch.linspace(0, len(seen) - 1, most).round().long()]
    series, step = seen.unbind(1)
    return sequences.values[series, step], sequences.observed[series, step]
