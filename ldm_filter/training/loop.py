"""The training loop, read top to bottom."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.networks import Mixing
from ldm_filter.models.recurrent_dynamics import RecurrentDynamics
from ldm_filter.objectives.objective import Objective
from ldm_filter.training.options import CollapseError, History, TrainingOptions
from ldm_filter.training.resume import Resume
from ldm_filter.training.stepper import Stepper
from ldm_filter.types import Sequences

__all__ = ["train"]

Batches = Callable[[torch.Generator], Iterable[Sequences]]
MOST_RECOVERIES = 3
LEAST_NATS = -12.0  # per latent; a Gaussian of standard deviation 4e-7 has that entropy
LEAST_SPREAD = 1e-4  # standard deviation of the latents along any direction; the gauge holds it at about 1
MOST_NIS = 1e3  # and its reciprocal
MIXING_RATE = 30.0  # of a linear encoder, whose one matrix matters to all data
PREDICTOR_RATE = 3.0  # a predictor must learn faster than the encoder (stop-gradient needs that), but it is a network and no matrix


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
    loss or gradient is not finite is skipped; several of them in a row, or an epoch that ends in a collapse, bring the best weights
    back at half the rate.

    Args:
        model: changed in place.
        objective: what to maximise.
        batches: generator -> the batches of one epoch.
        steps_per_epoch: number of batches in it.
        options: see :class:`TrainingOptions`.
        validation: generator -> held-out batches; without it, or where it is too small for the objective, the training loss decides.

    Returns:
        The history.

    Raises:
        CollapseError: recoveries did not help; the model holds the best weights seen.
        ValueError: the very first step cannot be evaluated (a batch too small for the estimator, say).
    """
    fabric = _launch(options, model)
    optimiser = torch.optim.Adam(_parameter_groups(model, options))
    rates = [group["lr"] for group in optimiser.param_groups]
    schedule = OneCycleLR(optimiser, rates, total_steps=options.epochs * steps_per_epoch + 1, pct_start=0.3)
    stepper = Stepper(fabric, model, objective, optimiser, schedule, options.clip, options.supervision if model.head is not None else 0.0)
    generator = torch.Generator().manual_seed(options.seed)
    history, best = History(), _Best(model, options.tolerance)
    resume = Resume(options, {"model": model, "best": best, "optimiser": optimiser, "schedule": schedule}, generator, history)
    bar = tqdm(range(options.epochs), desc="fit", unit="epoch", disable=not (options.progress and fabric.is_global_zero))
    with _random_numbers(options.seed, fabric.device), bar:
        validation = _usable(validation, stepper, generator, history)
        told_before = resume.load()
        recoveries, stepper.taken = told_before.get("recoveries", 0), told_before.get("taken", 0)
        for epoch in bar:
            if epoch < len(history.epochs) or told_before.get("ended", False):
                continue
            started, told = time.perf_counter(), len(history.events)
            stepper.present = objective.at(epoch / options.epochs)
            row = stepper.epoch(_masked(batches(generator), options.mask_rate, generator))
            row |= stepper.evaluate(None if validation is None else validation(generator)) | stepper.cosines(options.compare)
            row = fabric.broadcast(row | {"epoch": epoch, "seconds": time.perf_counter() - started})  # every process decides alike
            history.epochs.append(row)
            history.events += [f"epoch {epoch}: {event}" for event in stepper.events()]
            trouble, loss = _trouble(row, model.dynamics.latent_dim), row.get("validation_loss", row["loss"])
            if trouble:
                history.events.append(f"epoch {epoch}: {trouble}; back to the {best.name} at half the rate")
                recoveries += 1
                best.restore()
                stepper.slow_down()
            else:
                best.offer(loss, epoch, passing=stepper.present.share > 0.0)
            history.best_epoch = best.epoch
            idle = epoch - best.progress
            if options.patience is not None and idle >= options.patience:
                history.events.append(f"epoch {epoch}: stopped early, no better loss for {idle} epochs")
            _log(fabric, options, row, history.events[told:])
            bar.set_postfix(loss=f"{loss:.3f}")
            resume.save(recoveries=recoveries, taken=stepper.taken, ended=options.patience is not None and idle >= options.patience)
            if recoveries > MOST_RECOVERIES:
                raise CollapseError(f"training collapsed {recoveries} times, last: {trouble}. Lower learning_rate or try another objective.", history)
            if options.patience is not None and idle >= options.patience:
                break
    best.restore()
    return history


class _Best:
    """The weights of the lowest loss so far; at first those of the start."""

    def __init__(self, model: LatentFilter, tolerance: float = 0.0) -> None:
        self.model, self.loss, self.epoch = model, math.inf, -1
        self.tolerance, self.mark, self.progress = tolerance, math.inf, -1  # the last epoch that was better than the one before by more than that
        self.weights = copy.deepcopy(model.state_dict())

    @property
    def name(self) -> str:
        return "starting weights" if self.epoch < 0 else f"weights of epoch {self.epoch}"

    def offer(self, loss: float, epoch: int, passing: bool = False) -> None:
        """Keep the present weights where their loss is the lowest; while the objective is still on its way, always and for the time being."""
        if passing or loss < self.loss:
            self.loss, self.epoch = math.inf if passing else loss, epoch
            if passing or loss < self.mark - self.tolerance:
                self.mark, self.progress = self.loss, epoch
            self.weights = copy.deepcopy(self.model.state_dict())

    def restore(self) -> None:
        self.model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "epoch": self.epoch, "mark": self.mark, "progress": self.progress, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss, self.epoch, self.mark, self.progress, self.weights = (state[name] for name in ("loss", "epoch", "mark", "progress", "weights"))


def _trouble(row: dict[str, float], latents: int) -> str | None:
    """Name a collapse, or None. The bounds are far out: only training that has failed reaches them, and no legitimate data do."""
    for name, value in row.items():
        if not math.isfinite(value):
            return f"{name} is {value}"
    for name, value in row.items():
        kind = name.removeprefix("validation_")
        if kind == "entropy" and value < LEAST_NATS * latents:
            return f"collapse of the latents: {name} fell to {value:.1f} nats"
        if kind == "spread" and value < LEAST_SPREAD:
            return f"collapse of the latents: they span fewer than {latents} dimensions ({name} is {value:.1g})"
        if kind == "nis" and not 1.0 / MOST_NIS < value < MOST_NIS:
            return f"the model no longer fits its latents: {name} is {value:.3g}, and 1 is expected"
    return None


def _usable(validation: Batches | None, stepper: Stepper, generator: torch.Generator, history: History) -> Batches | None:
    """The validation data, or None with a note where the objective cannot be evaluated on them."""
    if validation is None:
        return None
    try:
        stepper.figures(validation(generator))
    except ValueError as error:
        history.events.append(f"the training loss decides, as the validation data cannot: {error}")
        return None
    return validation


def _masked(batches: Iterable[Sequences], rate: float, generator: torch.Generator) -> Iterator[Sequences]:
    """Hide a share of the entries of every batch."""
    for batch in batches:
        if rate > 0.0:
            kept = batch.observed & (torch.rand(batch.observed.shape, generator=generator).to(batch.observed.device) >= rate)
            batch = batch._replace(observed=kept, values=torch.where(kept, batch.values, torch.zeros_like(batch.values)))
        yield batch


def _launch(options: TrainingOptions, model: LatentFilter) -> Fabric:
    accelerator, precision = options.accelerator, options.precision
    if accelerator == "auto":  # not Fabric's choice, which may be a device without the float64 that the filter needs
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "64-true":  # Fabric would round what the model returns to float32; the base precision leaves all as it is
        model.double()
        precision = "32-true"
    # The encoder's layer for missing entries has no part in a batch without any.
    strategy = "auto" if options.devices == 1 else "ddp_find_unused_parameters_true"
    fabric = Fabric(accelerator=accelerator, strategy=strategy, devices=options.devices, precision=precision)
    fabric.launch()
    return fabric


@contextmanager
def _random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """A user's module may draw from torch's global generator (dropout does): seeded in here, and left as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _parameter_groups(model: LatentFilter, options: TrainingOptions) -> list[dict[str, Any]]:
    recurrent = isinstance(model.dynamics, RecurrentDynamics)
    fast = [*([] if recurrent else model.dynamics.parameters()), *model.encoder.noise.parameters()]
    predictor = [*([] if model.predictor is None else model.predictor.parameters()), *(model.dynamics.parameters() if recurrent else [])]
    mixing = [*model.encoder.network.parameters()] if isinstance(model.encoder.network, Mixing) else []
    known = {id(parameter) for parameter in [*fast, *predictor, *mixing]}
    slow = [parameter for parameter in model.parameters() if id(parameter) not in known]
    rate = options.learning_rate
    groups = [(slow, rate), (fast, rate * options.dynamics_rate), (mixing, rate * MIXING_RATE)]
    groups.append((predictor, rate * min(PREDICTOR_RATE, options.dynamics_rate)))
    return [{"params": parameters, "lr": its_rate} for parameters, its_rate in groups if parameters]


def _log(fabric: Fabric, options: TrainingOptions, row: dict[str, float], events: list[str]) -> None:
    if options.log_path is None or not fabric.is_global_zero:
        return
    path = Path(options.log_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {name: value if math.isfinite(value) else None for name, value in row.items()} | ({"events": events} if events else {})
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
