"""Filtering with a gate against outliers, and how improbable each observation is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_filter.core.gating import Gate, chi2_tail
from ldm_filter.core.linalg import round_cov
from ldm_filter.core.step import Belief, Corrected, Transition, correct, predict, select
from ldm_filter.estimator.inference import Field, Run, normalised_innovations, observation_moments
from ldm_filter.models.base import Dynamics
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.readout import Readout
from ldm_filter.online import ModuleStep
from ldm_filter.types import FilterResult, Gaussian

__all__ = ["Gated", "anomaly_fields", "as_gate", "run_gated"]

_DIMS = ("series", "time")


class Gated(NamedTuple):
    """What a gate did: variables for the result, and counts over all series."""

    fields: dict[str, Field]
    counts: dict[str, Any]


def as_gate(gate: Gate | str) -> Gate:
    """A gate, or one of the kind that is named.

    Raises:
        TypeError, ValueError: neither.
    """
    if isinstance(gate, str):
        return Gate(gate)
    if not isinstance(gate, Gate):
        raise TypeError(f'gate is a {type(gate).__name__}, expected a Gate, or "hard", "inflate" or "student-t"')
    return gate


class _Step(NamedTuple):
    """What one gated step leaves: the prediction, what it says of the measurement, and what the gate made of it."""

    predicted: Belief
    projected: Belief
    corrected: Corrected


def run_gated(run: Run, model: LatentFilter, gate: Gate) -> tuple[Run, Gated]:
    """The run again, step by step, with outliers rejected or weighed down: the step is that of the online filter.

    Raises:
        ValueError: a gate that raises R, where the dynamics take no notice of R.
    """
    seen = run.seen.cpu().numpy()
    linear = type(model.dynamics).filter is Dynamics.filter
    steps = list((_linear_steps if linear else _module_steps)(run, model, gate))
    densities, weight, runs = (np.stack([getattr(step.corrected, name) for step in steps], 1) for name in ("log_likelihood", "weight", "run"))
    density = torch.from_numpy(densities).to(run.measurements.mean)
    predicted, filtered, projected = zip(*((step.predicted, step.corrected.belief, step.projected) for step in steps), strict=True)
    result = FilterResult(_stacked(predicted, run), _stacked(filtered, run), _stacked(projected, run), density)
    columns: dict[str, Field] = {"gate_weight": (_DIMS, torch.from_numpy(weight)), "gate_outside": (_DIMS, torch.from_numpy(runs.astype(np.int64)))}
    return run._replace(result=result), Gated(columns, _counts(gate, weight, runs, seen))


def _linear_steps(run: Run, model: LatentFilter, gate: Gate) -> Iterator[_Step]:
    fields = _fields(model, run)
    seen, masks = run.seen.cpu().numpy(), run.mask.cpu().numpy()
    z, R = (part.cpu().double().numpy() for part in run.measurements)
    n = fields[0].shape[-1]
    mean, cov = (part.detach().cpu().double().numpy() for part in model.dynamics.initial())
    belief = Belief(np.broadcast_to(mean, (len(seen), n)), np.broadcast_to(cov, (len(seen), n, n)))
    outside = np.zeros(len(seen))
    for t in range(seen.shape[1]):
        A, a, Q, C, c = (field[:, min(t, field.shape[1] - 1)] for field in fields)
        noise = R[:, min(t, R.shape[1] - 1)]
        predicted = predict(belief, Transition(A, a, Q)) if t else belief
        mask = masks[:, t] if masks.ndim == 3 else None
        corrected = select(seen[:, t], correct(predicted, z[:, t], noise, C, c, gate, outside, mask), predicted, outside)
        belief, outside = corrected.belief, corrected.run
        yield _Step(predicted, predict(predicted, Transition(C, c, noise)), corrected)


def _module_steps(run: Run, model: LatentFilter, gate: Gate) -> Iterator[_Step]:
    one, masks = ModuleStep(model.dynamics, model.encoder.center), run.mask.cpu().numpy()
    z, R = (part.cpu().double().numpy() for part in run.measurements)
    belief, memory, outside = one.start(len(z)), None, np.zeros(len(z))
    for t in range(z.shape[1]):
        context, noise = run.sequences.context.steps(t, t + 1), R[:, min(t, R.shape[1] - 1)]
        predicted = one.predict(belief, memory, context) if t else belief
        projected = one.project(predicted, noise, context)
        corrected, memory = one.correct(predicted, memory, z[:, t], noise, masks[:, t], context, gate, outside)
        belief, outside = corrected.belief, corrected.run
        yield _Step(predicted, projected, corrected)


@torch.no_grad()
def _fields(model: LatentFilter, run: Run) -> list[np.ndarray]:
    """A, a, Q, C, c as ``(1 | B, 1 | T, ...)``."""
    ssm = model.dynamics.state_space(run.sequences.context)
    events = (2, 1, 2, 2, 1)
    fields = [part.detach().cpu().double().numpy() for part in ssm[:5]]
    return [part[None, None] if part.ndim == event else part for part, event in zip(fields, events, strict=True)]


def anomaly_fields(run: Run, model: LatentFilter, readout: Readout) -> dict[str, Field]:
    """p-values and scores of every step and of every entry of the observation."""
    m = run.measurements.mean.shape[-1]
    nis = normalised_innovations(run.measurements, run.result.projected, run.mask).cpu().numpy()
    count = np.full(nis.shape, float(m)) if run.mask.ndim == 2 else run.mask.sum(-1).cpu().numpy()
    p = torch.from_numpy(chi2_tail(nis * count, count))
    mean, std = observation_moments(model, readout, run.result.predicted, run.sequences.context)
    distance = ((run.sequences.values.to(mean.device) - mean).double() / std.double()).abs()
    single = torch.special.erfc(distance / 2.0**0.5).masked_fill(~run.sequences.observed.to(mean.device), torch.nan).cpu()
    dims = (*_DIMS, *run.labels.event_dims)
    return {
        "p_value": (_DIMS, p),
        "score": (_DIMS, _score(p)),
        "channel_p_value": (dims, single),
        "channel_score": (dims, _score(single)),
    }


def _score(p: Tensor) -> Tensor:
    """-log10 p, finite also where p is too small for a float."""
    return -p.clamp_min(1e-300).log10()


def _stacked(beliefs: Sequence[Belief], run: Run) -> Gaussian:
    cov = torch.from_numpy(np.stack([belief.cov for belief in beliefs], 1))
    like = run.measurements.mean
    return Gaussian(torch.from_numpy(np.stack([belief.mean for belief in beliefs], 1)).to(like), round_cov(cov, like.dtype).to(like.device))


def _counts(gate: Gate, weight: np.ndarray, run: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    outside = run > 0
    return {
        "kind": gate.kind,
        "probability": gate.probability,
        "patience": gate.patience,
        "measurements": int(seen.sum()),
        "outside": int((outside & seen).sum()),
        "rejected": int(((weight == 0) & seen).sum()),
        "weighed_down": int(((weight > 0) & (weight < 1) & seen).sum()),
        "openings": int((run == gate.patience + 1).sum()),
    }
