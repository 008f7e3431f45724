"""One optimisation step, one epoch of them, and what to look at afterwards: on one device or several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ldm_filter.core.linalg import cholesky, whiten
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.objectives.latent_models import predictive_log_density
from ldm_filter.objectives.objective import Objective, ObjectiveValue
from ldm_filter.training.processes import Gather, share
from ldm_filter.training.supervision import Figures, TargetDensity, named, target_density
from ldm_filter.types import Gaussian, Prediction, Sequences

__all__ = ["Stepper"]

MOST_BAD_STEPS = 5


class _Latents(NamedTuple):
    """Of a batch: log P(z_t | z_<t) under the dynamics, or the prediction of the model in their place; z; which steps have one; volumes; targets."""

    latent_model: Tensor | Prediction
    measurements: Gaussian
    seen: Tensor
    volume: Tensor | None
    targets: TargetDensity | None


class _Exact:
    """Keeps a batch as it is: a wrapper for half precision rounds every tensor that it finds among the arguments, time steps too."""

    def __init__(self, value: Sequences) -> None:
        self.value = value


class _Measured(nn.Module):
    """Encoder, latent model and head in one forward, so that a data-parallel wrapper sees every parameter."""

    def __init__(self, model: LatentFilter) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: Tensor, observed: Tensor, exact: _Exact, volume: bool, detach_target: bool) -> tuple[Any, ...]:
        measurements, seen = self.model.encode(values, observed)
        batch, targets = exact.value, None
        with torch.autocast(values.device.type, enabled=False):  # the encoder may run in half precision, the filter does not
            measurements = Gaussian(*(part.to(self.model.encoder.center.dtype) for part in measurements))
            if self.model.head is not None and batch.context.targets is not None:
                filtered, latent_model = self.model.dynamics.moments(measurements, seen, batch.context)
                targets = target_density(self.model.head, self.model.with_inputs(filtered, batch.context), batch)
            elif self.model.predictor is not None:
                latent_model = self.model.predictor(measurements, seen)
            else:
                latent_model = predictive_log_density(self.model.dynamics, measurements, seen, batch.context, detach_target)
        return latent_model, measurements, seen, self.model.encoder.log_volume(values, observed) if volume else None, targets


class Stepper:
    """Takes a model through batches.

    Args:
        fabric: launched.
        model: changed in place, moved to the fabric's device.
        objective: what to maximise.
        optimiser, schedule: of the model's parameters; the schedule advances with every step that is taken.
        clip: largest norm of the gradient.
        supervision: weight of the targets' likelihood in the loss; 1: the objective is not evaluated.
    """

    def __init__(
        self, fabric: Fabric, model: LatentFilter, objective: Objective, optimiser: Any, schedule: Any, clip: float, supervision: float = 0.0
    ) -> None:
        self.fabric, self.objective, self.schedule, self.clip, self.weight = fabric, objective, schedule, clip, supervision
        self.present = objective  # what training maximises just now; what held-out data are judged by is the objective itself
        self.dynamics, self.predictor = model.dynamics, model.predictor
        self.plain, self.encoder = _Measured(model), model.encoder
        self.module, self.optimiser = fabric.setup(self.plain, optimiser)
        self.gather = Gather(fabric)
        self.taken = 0
        self.skipped: list[str] = []
        self.last: Sequences | None = None

    def epoch(self, batches: Iterable[Sequences]) -> dict[str, float]:
        """One pass; the mean figures of the steps that were taken. After several bad steps in a row it is given up: the loss is NaN."""
        self.module.train()
        values: list[Tensor] = []
        bad = in_a_row = 0
        for batch in batches:
            problem = self.step(batch, values)
            if problem is None:
                self.last, in_a_row = batch, 0
                continue
            self.skipped.append(problem)
            bad, in_a_row = bad + 1, in_a_row + 1
            if in_a_row >= MOST_BAD_STEPS:
                break
        if not values or in_a_row >= MOST_BAD_STEPS:
            return {"loss": math.nan, "bad_steps": float(bad)}
        means = torch.as_tensor(self.fabric.all_reduce(torch.stack(values).nanmean(0), reduce_op="mean"))
        return named(means, self.weight) | {"bad_steps": float(bad)}

    def step(self, batch: Sequences, values: list[Tensor]) -> str | None:
        """One update; its figures are added to ``values``, or the reason is returned for which it was skipped.

        Raises:
            ValueError: the first step of all cannot be evaluated; there is nothing to go back to.
        """
        self.optimiser.zero_grad()
        try:
            value = self._value(share(batch, self.fabric.global_rank, self.fabric.world_size))
        except ValueError as error:  # the filter names a measurement or covariance that is not finite or not positive definite
            self.gather.tell(error)
            if not self.taken:
                raise
            return str(error)
        loss = value.loss(self.weight)
        self.fabric.backward(loss)
        norm = torch.as_tensor(self.fabric.clip_gradients(self.module, self.optimiser, max_norm=self.clip, error_if_nonfinite=False))
        loss = self.gather(loss.detach().reshape(1)).mean()
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            return f"loss {float(loss):.4g}, norm of the gradient {float(norm):.4g}"
        self.optimiser.step()
        self.schedule.step()
        self.taken += 1
        values.append(value.row())
        return None

    def _value(self, batch: Sequences) -> Figures:
        found = self._measure(self.fabric.to_device(batch))
        nll = None if found.targets is None else found.targets.nll(self.gather)
        if nll is not None and self.weight == 1.0:
            return Figures(None, nll)
        return Figures(self.present(found.latent_model, found.measurements, found.seen, self.gather, found.volume), nll)

    def _measure(self, batch: Sequences) -> _Latents:
        volume = self.objective.needs_volume and self.weight < 1.0
        return _Latents(*self.module(batch.values, batch.observed, _Exact(batch), volume, self.objective.detach_target))

    def evaluate(self, batches: Iterable[Sequences] | None) -> dict[str, float]:
        """Figures of held-out batches by the name of ``validation_...``; without any, the health of the last training batch alone."""
        try:
            if batches is not None:
                return {f"validation_{name}": value for name, value in self.figures(batches).items()}
            figures = {} if self.last is None else self.figures([self.last])
            return {name: value for name, value in figures.items() if name not in ObjectiveValue._fields}
        except ValueError as error:
            self.skipped.append(f"evaluation failed: {error}")
            return {"validation_loss": math.nan}

    @torch.no_grad()
    def figures(self, batches: Iterable[Sequences]) -> dict[str, float]:
        """The objective and the targets' likelihood on some batches, every process by itself on all of them, and the health of the model
        (but of one trained by targets alone, whose latents owe nothing to the objective).

        Raises:
            ValueError: it cannot be evaluated on one of them.
        """
        self.module.eval()
        values, weights, latents, squares = [], [], [], []
        for batch in map(self.fabric.to_device, batches):
            latent_model, measurements, seen, volume, targets = self._measure(batch)
            nll = None if targets is None else targets.nll(lambda part: part)
            alone = nll is not None and self.weight == 1.0
            value = None if alone else self.objective(latent_model, measurements, seen, log_volume=volume)
            values.append(Figures(value, nll).row())
            labelled = 0.0 if targets is None else float(targets.known.sum())
            weights.append(torch.tensor([float(seen.sum())] * len(ObjectiveValue._fields) + [labelled], dtype=torch.float64))
            if alone:
                continue
            latents.append(measurements.mean[seen].double())
            if isinstance(latent_model, Tensor):
                latent_model = Prediction(self.dynamics.filter(measurements, seen, batch.context).projected, seen)
            squares.append(_normalised_innovations(latent_model, measurements))
        figures = named(_weighted_mean(torch.stack(values), torch.stack(weights)), self.weight)
        figures |= _health(torch.cat(latents), torch.cat(squares)) if latents else {}
        return figures | ({} if self.predictor is not None else self.dynamics.health())

    def cosines(self, others: Mapping[str, Objective]) -> dict[str, float]:
        """``cosine_<name>``: that of the angle between the encoder's gradients of this objective and of others, on the last training batch.

        1: they would move the encoder alike; 0: one has nothing to do with the other. Every process looks at its own share.
        """
        if self.last is None or not others:
            return {}
        found = {}
        try:
            own = self._gradient(self.present)
            for name, other in others.items():
                found[f"cosine_{name}"] = float(torch.nn.functional.cosine_similarity(own, self._gradient(other), dim=0))
        except ValueError as error:  # an estimator that needs more samples, say; a diagnosis must not end the training
            self.skipped.append(f"gradients could not be compared: {error}")
        return found

    def _gradient(self, objective: Objective) -> Tensor:
        """Of the loss without its gauge, for the encoder's parameters, as one vector in float64."""
        assert self.last is not None
        batch = self.fabric.to_device(share(self.last, self.fabric.global_rank, self.fabric.world_size))
        # Not through the data-parallel wrapper, which only knows of whole steps.
        latent_model, measurements, seen, volume, _ = self.plain(
            batch.values, batch.observed, _Exact(batch), objective.needs_volume, objective.detach_target
        )
        value = objective(latent_model, measurements, seen, log_volume=volume)
        parameters = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(value.loss - value.gauge, parameters, allow_unused=True)
        return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, gradients, strict=True)]).double()

    def slow_down(self) -> None:
        """Forget the optimiser's averages and halve its rates: those that the one-cycle schedule reads, and the present one."""
        self.optimiser.state.clear()
        for group in self.optimiser.param_groups:
            group.update({name: group[name] / 2 for name in ("lr", "initial_lr", "max_lr", "min_lr")})

    def events(self) -> list[str]:
        """What was skipped since the last call, in words."""
        skipped, self.skipped = self.skipped, []
        return [f"{len(skipped)} step(s) skipped, first: {skipped[0]}"] if skipped else []


def _weighted_mean(rows: Tensor, weights: Tensor) -> Tensor:
    """Of the figures of batches, each by its number of steps; NaN where no batch has one."""
    there = ~torch.isnan(rows)
    weights = torch.where(there, weights, 0.0)
    return torch.where(there, rows, 0.0).mul(weights).sum(0) / weights.sum(0)


def _health(latents: Tensor, squares: Tensor) -> dict[str, float]:
    """The least standard deviation of the latents ``(N, m)`` along any direction, their effective dimension, and a typical NIS / m.

    The effective dimension is the participation ratio (tr S)^2 / tr S^2 of the covariance S, from 1 to m.

    Both bear a broken measurement among the data: it can only add to a spread, and typical is the median over what it is for a
    consistent model.
    """
    size = latents.shape[1]
    health = {"nis": float(squares.median()) / (1.0 - 2.0 / (9.0 * size)) ** 3} if len(squares) else {}
    if len(latents) > 4 * size:  # else the covariance has no full rank whatever the encoder
        powers = torch.linalg.eigvalsh(torch.cov(latents.mT).reshape(size, size)).clamp_min(0.0)
        health["spread"] = float(powers[0].sqrt())
        health["dimension"] = float(powers.sum() ** 2 / powers.square().sum().clamp_min(1e-300))
    return health


def _normalised_innovations(prediction: Prediction, measurements: Gaussian) -> Tensor:
    """NIS / m of the steps that a Gaussian predicts, ``(N,)``; of other predictions none."""
    density, counted = prediction
    if not isinstance(density, Gaussian):
        return measurements.mean.new_zeros(0, dtype=torch.float64)
    white = whiten(cholesky(density.cov.double()), (measurements.mean - density.mean).double())
    return white.square().mean(-1)[counted]
