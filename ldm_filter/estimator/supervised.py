"""Targets: read out of a fitted model by regression, or trained together with it."""

from __future__ import annotations

import copy
import numbers
from dataclasses import replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ldm_filter.data.containers import default_names
from ldm_filter.data.labels import parse
from ldm_filter.data.windows import Windows
from ldm_filter.estimator import fitting, settings
from ldm_filter.estimator.context import to_device
from ldm_filter.estimator.fitting import Plan
from ldm_filter.estimator.queries import Queries
from ldm_filter.estimator.readouts import rescale, turn_covariance, turning_pays
from ldm_filter.models.head import TargetHead
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.readout import fit_readout, split_off
from ldm_filter.training import TrainingOptions
from ldm_filter.training.warm_up import warm_up
from ldm_filter.types import Gaussian, Sequences

__all__ = [
    "NO_TARGETS",
    "Supervised",
    "Targets",
    "attach",
    "build_head",
    "default_weight",
    "labelled_plan",
    "parse_targets",
    "places",
    "start_encoder",
]

MOST_STEPS = 60_000
FEWEST_STEPS = 3  # with a target, for a regression


class Targets(NamedTuple):
    """What ``fit`` is given besides the data: targets, those of held-out data, their weight in the loss, epochs of the encoder by itself."""

    values: Any = None
    validation: Any = None
    weight: float | None = None
    warm_up: int = 0

    def check(self, params: dict[str, Any]) -> None:
        """Refuse what training with targets cannot do.

        Raises:
            ValueError: naming the argument and the mend. TypeError: a weight that is no number.
        """
        settings.check_counts(warm_up=self.warm_up or None)
        if self.values is None:
            for name, value in (("supervision", self.weight), ("validation_targets", self.validation), ("warm_up", self.warm_up or None)):
                if value is not None:
                    raise ValueError(f"{name} is given, but targets is None; pass the targets of the training data as well")
            return
        if self.weight is not None and (not isinstance(self.weight, numbers.Real) or isinstance(self.weight, bool)):
            raise TypeError(f"supervision is {self.weight!r} ({type(self.weight).__name__}), expected a number above 0, up to 1")
        if self.weight is not None and not 0.0 < self.weight <= 1.0:
            raise ValueError(f"supervision is {self.weight}, expected a weight above 0, up to 1 (the targets alone)")
        composed = settings.composition(params, square=True)
        if params["dynamics"] == "recurrent" or composed.latent_model != "dynamics" or composed.objective.detach_target:
            raise ValueError(
                "targets are given, and are trained through the filter's belief, which this choice of dynamics, latent_model or objective does not "
                "form in training; use the filter itself (latent_model='auto', no stop-gradient, dynamics other than 'recurrent') or fit_readout"
            )
        if params["state_dim"] == "auto":
            raise ValueError("state_dim is 'auto', whose sizes are compared without targets; choose a number for a fit with targets")


NO_TARGETS = Targets()


class Supervised(Queries):
    """The methods of :class:`~ldm_filter.LDMFilter` that take targets of a fitted model."""

    def fit_readout(
        self,
        data: Any,
        targets: Any,
        kind: str | None = None,
        covariance: str = "auto",
        inputs: Any = None,
        times: Any = None,
        validation: tuple[Any, Any] | None = None,
    ) -> Self:
        """Fit a supervised read-out of physical quantities; ``filter`` and ``smooth`` then also give ``target_mean`` and ``target_cov``.

        Args:
            data, inputs, times: as for ``filter``.
            targets: container of the same length(s), ``(time, target)`` per series; NaN where unknown.
            kind: ``"linear"``, ``"mlp"`` or ``"auto"``; default that of the model.
            covariance: of what the read-out cannot explain. ``"constant"``: one for all steps, beside the filter's own.
                ``"state-dependent"``: it turns and stretches with the estimate, for targets that move on a curve (along which their errors
                lie, so that one ellipse for all steps holds no level rightly); see `ldm_filter.metrics.covariance_regression`.
                ``"auto"``: the second where it makes the targets of series that it was not fitted on likelier by more than one standard
                error over series, which takes at least 8 series (of a network's read-out, of the fifth that judges it); else the first.
            validation: (data, targets) that no fit has seen: all covariances are then scaled by one factor so that NEES / d is 1 there
                (`ldm_filter.metrics.variance_scale`); for a model without inputs.

        Returns:
            self. ``target_scale_`` is the factor, 1 without validation.

        Raises:
            ValueError: lengths of data and targets differ, a target known at fewer than 3 steps, an unknown kind or covariance, or a validation
                that is no such pair.
        """
        settings.check_choice("covariance", covariance, settings.READOUT_COVARIANCES)
        if validation is not None and (not isinstance(validation, tuple) or len(validation) != 2):
            raise ValueError(f"validation is a {type(validation).__name__}, expected a pair (data, targets)")
        belief, values, observed, names = self._regression(data, targets, inputs, times)
        few = [label for label, count in zip(names, observed.flatten(0, 1).sum(0).tolist(), strict=True) if count < FEWEST_STEPS]
        if few:
            raise ValueError(
                f"targets {few} are known at fewer than {FEWEST_STEPS} steps, which leaves nothing to regress on; give more, or leave them out"
            )
        fitted = fit_readout(belief, values, observed, kind or self.readout)
        known = (belief, values, observed) if fitted.kind == "linear" else split_off(belief, values, observed)[1]
        if covariance == "state-dependent" or (covariance == "auto" and turning_pays(fitted, *known)):
            turn_covariance(fitted, *known)
        self.target_scale_ = 1.0 if validation is None else rescale(fitted, *self._regression(*validation, None, None, names)[:3])
        self.target_readout_ = fitted.to(self._model().encoder.center.device)
        self.target_names_ = names
        return self

    def calibrate_targets(self, data: Any, targets: Any, covariance: str = "scaled", inputs: Any = None, times: Any = None) -> Self:
        """Set the covariance of the targets on held-out data, after ``fit(targets=...)`` or ``fit_readout``; their means stay.

        A likelihood that is maximised on training series is surer of them than of others, and a few steps at which the filter is lost can cost more
        than all the rest. Series that only chose the epoch (``validation=`` of ``fit``) will do.

        Args:
            data, inputs, times: as for ``filter``; series that the filter was not trained on.
            targets: container of the same length(s), ``(time, target)`` per series; NaN where unknown.
            covariance: ``"scaled"``: all covariances times the one factor that makes NEES / d 1 (`ldm_filter.metrics.variance_scale`).
                ``"state-dependent"``: turned, stretched and grown with the estimate and with what it was before
                (`ldm_filter.metrics.covariance_regression`), in place of an earlier such regression.

        Returns:
            self. ``target_scale_`` is the factor by which NEES / d was off before (1: it was right).

        Raises:
            ValueError: no targets so far, lengths that differ, an unknown covariance, or too many targets for one that turns.
        """
        settings.check_choice("covariance", covariance, settings.CALIBRATED_COVARIANCES)
        self._model()
        if self.target_readout_ is None:
            raise ValueError("the model has no read-out of targets to calibrate; use fit(targets=...) or fit_readout(data, targets) first")
        belief, values, observed, _ = self._regression(data, targets, inputs, times, list(self.target_names_))
        readout = copy.deepcopy(self.target_readout_).cpu()
        self.target_scale_ = rescale(readout, belief, values, observed)
        if covariance == "state-dependent":
            readout.straighten()
            turn_covariance(readout, belief, values, observed)
        self.target_readout_ = readout.to(self._model().encoder.center.device)
        return self

    def _regression(
        self, data: Any, targets: Any, inputs: Any, times: Any, expected: list[str] | None = None
    ) -> tuple[Gaussian, Tensor, Tensor, list[str]]:
        """Filtered states, targets (those ``expected``, in that order) with 0 where unknown, which are known, and their names."""
        run = self._run(data, inputs, times)
        wanted, names = parse_targets(targets, run.sequences)
        if expected is not None:
            wanted, names = wanted[..., places(names, expected)], expected
        belief = Gaussian(*(part.cpu() for part in self._model().with_inputs(run.result.filtered, run.sequences.context)))
        observed = ~torch.isnan(wanted)
        return belief, torch.where(observed, wanted, torch.zeros_like(wanted)), observed, names


def places(names: list[str], expected: list[str], name: str = "targets") -> list[int]:
    """Where each expected target is: by name, or by position where one side has no names.

    Raises:
        ValueError: other targets.
    """
    if set(names) == set(expected):
        return [names.index(label) for label in expected]
    unnamed = list(default_names(len(names)))
    if len(names) == len(expected) and unnamed in (names, expected):
        return list(range(len(names)))
    raise ValueError(f"{name} holds {len(names)} channels {names}, the model's read-out has {len(expected)}: {expected}; select or rename them")


def parse_targets(targets: Any, sequences: Sequences, name: str = "targets") -> tuple[Tensor, list[str]]:
    """Targets ``(B, T, D)`` of parsed data, NaN where unknown and in the padding, and their names.

    Raises:
        ValueError: not one row for each step of the data.
    """
    wanted, labels = parse(targets, dtype=sequences.values.dtype, name=name)
    if wanted.values.shape[:2] != sequences.values.shape[:2] or not torch.equal(wanted.lengths, sequences.lengths):
        found, expected = tuple(wanted.values.shape[:2]), tuple(sequences.values.shape[:2])
        raise ValueError(f"{name} have (series, time) {found}, data {expected}; give one row per step, NaN where a target is unknown")
    values, observed = wanted.values.flatten(2), wanted.observed.flatten(2)
    return torch.where(observed, values, torch.full_like(values, torch.nan)), list(labels.channels)


def attach(sequences: Sequences, targets: Any, name: str = "targets", expected: list[str] | None = None) -> tuple[Sequences, list[str]]:
    """The sequences with targets in their context (those ``expected``, in that order), and their names; as they are where there are none.

    Raises:
        ValueError: not one row for each step, a target that is never known, or others than expected.
    """
    if targets is None:
        return sequences, []
    values, names = parse_targets(targets, sequences, name)
    if expected is not None:
        values, names = values[..., places(names, expected, name)], expected
    never = torch.isnan(values).flatten(0, 1).all(0)
    if bool(never.any()):
        raise ValueError(f"{name} {[label for label, empty in zip(names, never.tolist(), strict=True) if empty]} are never known; leave them out")
    return sequences._replace(context=sequences.context._replace(targets=values)), names


def default_weight(sequences: Sequences) -> float:
    """1, the targets alone, where every step has one; else 0.5, so that steps without one teach as well."""
    targets = sequences.context.targets
    assert targets is not None
    inside = torch.arange(targets.shape[1]) < sequences.lengths[:, None]
    return 1.0 if bool((~torch.isnan(targets)).any(-1)[inside].all()) else 0.5


def labelled_plan(plan: Plan) -> Plan:
    """The plan without held-out windows where only the training windows know targets: what knows none cannot judge."""
    targets = plan.training.sequences.context.targets
    if targets is None or plan.validation is None:
        return plan
    judges = plan.validation.sequences.context.targets
    return replace(plan, validation=None) if judges is None or bool(torch.isnan(judges).all()) else plan


def start_encoder(model: LatentFilter, plan: Plan, options: TrainingOptions, epochs: int) -> list[float]:
    """Train the encoder by itself on the targets, then start the dynamics anew from its latents; the loss of every epoch."""
    targets = plan.training.sequences.context.targets
    assert targets is not None
    if not epochs:
        return []
    size, device = targets.shape[-1], model.encoder.center.device
    if size > model.encoder.latent_dim:
        raise ValueError(f"warm_up needs a latent for each of the {size} targets, and latent_dim is {model.encoder.latent_dim}; raise it")
    columns = [column[~torch.isnan(column)] for column in targets.flatten(0, 1).unbind(-1)]
    centre, spread = (torch.stack([figure(column) for column in columns]).to(device) for figure in (torch.mean, torch.std))
    updates = len(plan.training.epoch(plan.batch_size, torch.Generator().manual_seed(options.seed)))
    standard = Gaussian(centre, torch.diag(spread.clamp_min(1e-8).square()))
    losses = warm_up(model, lambda generator: plan.training.batches(plan.batch_size, generator), updates, epochs, standard, options)
    fitting.restart_dynamics(model, plan)
    return losses


@torch.no_grad()
def build_head(model: LatentFilter, windows: Windows, kind: str, seed: int) -> TargetHead:
    """A head that starts at the linear regression of the known targets on the beliefs of the untrained filter, over up to 60,000 steps.

    Raises:
        ValueError: a target that is never known in the training windows.
    """
    index = windows.index()
    batch = windows.take(index[:: max(1, -(-len(index) * windows.length // MOST_STEPS))])
    assert batch.context.targets is not None
    device = model.encoder.center.device
    parts = []
    for piece in torch.arange(len(batch.values)).split(64):
        context = to_device(type(batch.context)(*(None if part is None else part[piece if len(part) > 1 else [0]] for part in batch.context)), device)
        filtered = model.moments(batch.values[piece].to(device), batch.observed[piece].to(device), context)[0]
        parts.append(model.with_inputs(filtered, context))
    mean = torch.cat([part.mean for part in parts])
    cov = torch.cat([part.cov.expand(*part.mean.shape, part.mean.shape[-1]) for part in parts])
    targets = batch.context.targets.to(device)
    inside = torch.arange(targets.shape[1], device=device) < batch.lengths.to(device)[:, None]
    known = ~torch.isnan(targets) & inside.unsqueeze(-1)
    linear = fit_readout(Gaussian(mean, cov), torch.where(known, targets, torch.zeros_like(targets)), known, kind="linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = TargetHead(mean.shape[-1], targets.shape[-1], "linear" if kind == "linear" else "mlp").to(mean)
    head.start_from(linear, Gaussian(mean, cov), torch.where(known, targets, torch.full_like(targets, torch.nan)))
    return head
