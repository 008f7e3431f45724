"""The training loop, read top to bottom."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.objectives.objective import Objective, ObjectiveValue
from ldm_filter.types import Gaussian, Sequences, StateSpace

__all__ = ["CollapseError", "History", "TrainingOptions", "train"]

Batches = Callable[[torch.Generator], Iterable[Sequences]]
MOST_RECOVERIES = 3
MOST_BAD_STEPS = 5


class CollapseError(RuntimeError):
    """Training could not be kept from a collapse; the message names what was seen."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        epochs: passes over the training windows.
        learning_rate: peak of the one-cycle schedule, of the encoder.
        dynamics_rate: the dynamics' and the noise's rate as a multiple of it (there are few parameters and each matters to all data).
        clip: largest norm of the gradient.
        patience: epochs without a better validation loss before training stops; ``None``: never.
        seed: of batches and masks; the same seed gives the same weights bit for bit on one machine.
        accelerator, devices, precision: as of Lightning Fabric (``"auto"``, 1, ``"32-true"``).
        mask_rate: share of entries hidden at random from every batch, so that the encoder learns to do without them.
        log_path: a JSONL file to which a line per epoch is appended.
        progress: show a bar.
    """

    epochs: int = 20
    learning_rate: float = 3e-3
    dynamics_rate: float = 3.0
    clip: float = 1.0
    patience: int | None = 10
    seed: int = 0
    accelerator: str = "auto"
    devices: int = 1
    precision: Any = "32-true"
    mask_rate: float = 0.0
    log_path: str | Path | None = None
    progress: bool = True


@dataclass
class History:
    """What happened: one row of figures per epoch (nats per step), and events in words."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    best_epoch: int = 0


class _Measured(nn.Module):
    """Encoder and dynamics in one forward, so that a data-parallel wrapper sees every parameter."""

    def __init__(self, model: LatentFilter) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: Tensor, observed: Tensor, volume: bool = False) -> tuple[StateSpace, Gaussian, Tensor, Tensor | None]:
        measurements, seen = self.model.encode(values, observed)
        return self.model.dynamics(), measurements, seen, self.model.encoder.log_volume(values, observed) if volume else None


def train(
    model: LatentFilter,
    objective: Objective,
    batches: Batches,
    steps_per_epoch: int,
    options: TrainingOptions,
    validation: Batches | None = None,
) -> History:
    """Fit a latent filter by latent distribution matching.

    Adam with a one-cycle learning rate; the gradient is clipped; the weights of the best validation epoch are kept. A step whose
    loss or gradient is not finite is skipped; several of them, or an epoch that ends in a collapse, bring the best weights back at
    half the rate.

    Args:
        model: changed in place.
        objective: what to maximise.
        batches: generator -> the batches of one epoch.
        steps_per_epoch: number of batches in it.
        options: see :class:`TrainingOptions`.
        validation: generator -> held-out batches; without it the training loss decides.

    Returns:
        The history.

    Raises:
        CollapseError: recoveries did not help; the model holds the best weights seen.
    """
    fabric = Fabric(accelerator=options.accelerator, devices=options.devices, precision=options.precision)
    fabric.launch()
    optimiser = torch.optim.Adam(_parameter_groups(model, options))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] for group in optimiser.param_groups], total_steps=options.epochs * steps_per_epoch + 1, pct_start=0.3
    )
    module, optimiser = fabric.setup(_Measured(model), optimiser)
    generator = torch.Generator().manual_seed(options.seed)
    history, best, best_loss, recoveries = History(), _snapshot(model), math.inf, 0
    bar = tqdm(range(options.epochs), desc="fit", unit="epoch", disable=not (options.progress and fabric.is_global_zero))
    for epoch in bar:
        started = time.perf_counter()
        row = _run_epoch(fabric, module, objective, batches(generator), options, generator, (optimiser, schedule), history)
        if validation is not None:
            row |= {f"validation_{name}": value for name, value in _evaluate(fabric, module, objective, validation(generator)).items()}
        loss = row.get("validation_loss", row["loss"])
        trouble = _trouble(row)
        if trouble:
            history.events.append(f"epoch {epoch}: {trouble}; back to the weights of epoch {history.best_epoch} at half the rate")
            recoveries += 1
            model.load_state_dict(best)
            optimiser.state.clear()
            for group in optimiser.param_groups:  # the one-cycle schedule reads its rates from the groups
                group.update({name: group[name] / 2 for name in ("initial_lr", "max_lr", "min_lr")})
            if recoveries > MOST_RECOVERIES:
                raise CollapseError(f"training collapsed {recoveries} times, last: {trouble}. Lower learning_rate or try another objective.")
        elif loss < best_loss:
            best, best_loss, history.best_epoch = _snapshot(model), loss, epoch
        row |= {"epoch": epoch, "seconds": time.perf_counter() - started}
        history.epochs.append(row)
        _log(fabric, options, row)
        bar.set_postfix(loss=f"{loss:.3f}")
        if options.patience is not None and epoch - history.best_epoch >= options.patience:
            history.events.append(f"epoch {epoch}: stopped early, no better validation loss for {options.patience} epochs")
            break
    model.load_state_dict(best)
    return history


def _run_epoch(
    fabric: Fabric,
    module: nn.Module,
    objective: Objective,
    batches: Iterable[Sequences],
    options: TrainingOptions,
    generator: torch.Generator,
    stepping: tuple[Any, Any],
    history: History,
) -> dict[str, float]:
    """One pass; returns the mean figures. Steps that are not finite are skipped and counted."""
    optimiser, schedule = stepping
    module.train()
    values: list[ObjectiveValue] = []
    bad = 0
    for batch in batches:
        batch = _mask(batch, options.mask_rate, generator)
        optimiser.zero_grad()
        try:
            value = _objective_value(fabric, module, objective, batch)
            fabric.backward(value.loss)
            norm = fabric.clip_gradients(module, optimiser, max_norm=options.clip, error_if_nonfinite=False)
            finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(value.loss))
        except ValueError as error:  # the filter names a measurement or covariance that is not finite or not positive definite
            finite = False
            history.events.append(f"a step was skipped: {error}")
        if finite:
            optimiser.step()
            values.append(ObjectiveValue(*(part.detach() for part in value)))
        else:
            bad += 1
            if bad > MOST_BAD_STEPS:
                break
        schedule.step()
    if not values or bad > MOST_BAD_STEPS:
        return {"loss": math.nan, "bad_steps": float(bad)}
    means = {name: float(torch.stack([getattr(value, name) for value in values]).mean()) for name in ObjectiveValue._fields}
    return means | {"bad_steps": float(bad)}


def _objective_value(fabric: Fabric, module: nn.Module, objective: Objective, batch: Sequences) -> ObjectiveValue:
    values, observed = fabric.to_device(batch.values), fabric.to_device(batch.observed)
    ssm, measurements, seen, log_volume = module(values, observed, objective.needs_volume)
    gather = (lambda part: fabric.all_gather(part, sync_grads=True).flatten(0, 1)) if fabric.world_size > 1 else (lambda part: part)
    return objective(ssm, measurements, seen, gather, log_volume)


@torch.no_grad()
def _evaluate(fabric: Fabric, module: nn.Module, objective: Objective, batches: Iterable[Sequences]) -> dict[str, float]:
    """Mean figures over held-out batches, and the spread of the latents: their effective dimension tr(C)^2 / tr(C^2)."""
    module.eval()
    values, latents, weights = [], [], []
    for batch in batches:
        try:
            values.append(_objective_value(fabric, module, objective, batch))
        except ValueError:
            return {"loss": math.nan}
        _, measurements, seen, _ = module(fabric.to_device(batch.values), fabric.to_device(batch.observed))
        latents.append(measurements.mean[seen])
        weights.append(float(seen.sum()))
    share = torch.tensor(weights) / sum(weights)
    means = {name: float((share * torch.stack([getattr(value, name) for value in values]).cpu()).sum()) for name in ObjectiveValue._fields}
    cov = torch.cov(torch.cat(latents).double().mT).reshape(latents[0].shape[-1], -1)
    return means | {"effective_dim": float(cov.trace().square() / cov.square().sum().clamp_min(1e-300))}


def _trouble(row: dict[str, float]) -> str | None:
    """Name a collapse, or None. An entropy under -30 nats means latents without spread, as does an effective dimension of 0."""
    for name, value in row.items():
        if not math.isfinite(value):
            return f"{name} is {value}"
    for name in ("entropy", "validation_entropy"):
        if row.get(name, 0.0) < -30.0:
            return f"collapse of the latents: {name} fell to {row[name]:.1f} nats"
    if row.get("validation_effective_dim", 1.0) < 1e-3:
        return "collapse of the latents: they no longer vary"
    if row.get("validation_loss", row["loss"]) - row["loss"] > 1e3:
        return f"validation loss {row['validation_loss']:.1f} left the training loss {row['loss']:.1f}"
    return None


def _mask(batch: Sequences, rate: float, generator: torch.Generator) -> Sequences:
    if rate <= 0.0:
        return batch
    kept = batch.observed & (torch.rand(batch.observed.shape, generator=generator).to(batch.observed.device) >= rate)
    return batch._replace(observed=kept, values=torch.where(kept, batch.values, torch.zeros_like(batch.values)))


def _parameter_groups(model: LatentFilter, options: TrainingOptions) -> list[dict[str, Any]]:
    fast = [*model.dynamics.parameters(), *model.encoder.noise.parameters()]
    known = {id(parameter) for parameter in fast}
    slow = [parameter for parameter in model.parameters() if id(parameter) not in known]
    rate = options.learning_rate
    return [{"params": slow, "lr": rate}, {"params": fast, "lr": rate * options.dynamics_rate}]


def _snapshot(model: LatentFilter) -> dict[str, Tensor]:
    return copy.deepcopy({name: tensor.detach() for name, tensor in model.state_dict().items()})


def _log(fabric: Fabric, options: TrainingOptions, row: dict[str, float]) -> None:
    if options.log_path is None or not fabric.is_global_zero:
        return
    with Path(options.log_path).open("a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")
