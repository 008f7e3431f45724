"""Dynamics with a filter of their own, one step at a time: through the very methods that filter a whole series.

A gate stands between the encoder and the update: from the predicted measurement it decides what of the measurement is let through, (z, R / w)
or nothing at all; the update, and what adaptive or recurrent dynamics remember, see only that.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_filter.core.gating import Gate
from ldm_filter.core.step import Belief, Corrected, correct, release, select
from ldm_filter.models.base import Dynamics
from ldm_filter.streams.motion import read_inputs
from ldm_filter.streams.results import Entry
from ldm_filter.types import Context, FilterResult, Gaussian

__all__ = ["ModuleMotion", "ModuleStep"]


class ModuleStep:
    """One step of any dynamics for a batch: beliefs as float64 arrays ``(B, n)``, what is remembered as ``(B, k)``, or None.

    Args:
        dynamics: not changed.
        like: a tensor of the dtype and on the device of the model.
    """

    def __init__(self, dynamics: Dynamics, like: Tensor) -> None:
        self.dynamics, self._like = dynamics, like

    @torch.no_grad()
    def start(self, batch: int) -> Belief:
        """The prediction for the first step."""
        mean, cov = (_array(part) for part in self.dynamics.initial())
        return Belief(np.broadcast_to(mean, (batch, *mean.shape)).copy(), np.broadcast_to(cov, (batch, *cov.shape)).copy())

    @torch.no_grad()
    def predict(self, before: Belief, memory: np.ndarray | None, context: Context) -> Belief:
        """Over the one step of a context."""
        extra = () if memory is None else (self._own(memory),)
        return _numbers(self.dynamics.predict(self._gaussian(before), context, *extra))

    @torch.no_grad()
    def project(self, belief: Belief, R: np.ndarray, context: Context) -> Belief:
        """The measurement that a belief predicts."""
        return _numbers(self.dynamics.project(self._gaussian(belief), self._exact(R), context))

    @torch.no_grad()
    def correct(
        self,
        predicted: Belief,
        memory: np.ndarray | None,
        z: np.ndarray,
        R: np.ndarray,
        seen: np.ndarray,
        context: Context,
        gate: Gate | None,
        run: np.ndarray,
    ) -> tuple[Corrected, np.ndarray | None]:
        """Condition on measurements ``(B, m)``; also what is to be remembered.

        Args:
            seen: bool ``(B,)``, or ``(B, m)`` per latent. run: measurements outside the gate on end, ``(B,)``.
            predicted, z, R, gate: as of :func:`ldm_filter.core.step.correct`. memory: of the step before.

        Raises:
            ValueError: a gate that raises R, and dynamics that take no notice of R.
        """
        belief, noise = self._gaussian(predicted), self._exact(np.broadcast_to(R, (len(z), *R.shape[-2:])))
        decided = self._decide(belief, z, noise, seen, context, gate, run)
        measurement, observed = Gaussian(self._exact(z), noise), torch.from_numpy(seen).to(noise.device)
        past = (self._own(memory),) if self.dynamics.recalls and memory is not None else ()
        filtered, density = self.dynamics.update(belief, measurement, observed, context, *past)
        if gate is not None:
            factor = release(decided.distance, decided.latents, gate, decided.run)
            belief = belief._replace(cov=self._exact(factor)[:, None, None] * belief.cov)
            noise = noise / self._exact(np.where(decided.weight > 0.0, decided.weight, 1.0))[:, None, None]
            taken = seen & (decided.weight > 0.0).reshape(-1, *[1] * (seen.ndim - 1))
            measurement, observed = measurement._replace(cov=noise), torch.from_numpy(taken).to(noise.device)
            filtered, _ = self.dynamics.update(belief, measurement, observed, context, *past)
        after = self._remember(belief, measurement, observed, filtered, context, memory)
        return decided._replace(belief=_numbers(filtered), log_likelihood=_array(density)), after

    def rest(self, predicted: Belief, memory: np.ndarray | None, context: Context) -> np.ndarray | None:
        """What is to be remembered after a step without a measurement."""
        m = self.dynamics.latent_dim
        z, R, nothing = np.zeros((len(predicted.mean), m)), np.eye(m), np.zeros(len(predicted.mean), dtype=bool)
        return self.correct(predicted, memory, z, R, nothing, context, None, np.zeros(len(z)))[1]

    def _decide(
        self, belief: Gaussian, z: np.ndarray, noise: Tensor, seen: np.ndarray, context: Context, gate: Gate | None, run: np.ndarray
    ) -> Corrected:
        """Density, distance and weight, found in the latent: there C is I, and the prediction's covariance is C P C'."""
        spread = self.dynamics.project(belief, torch.zeros_like(noise), context)
        rest = self.dynamics.project(belief, noise, context).cov - spread.cov
        if gate is not None and gate.kind != "hard" and not bool(rest.any()):
            raise ValueError(f"gate is {gate.kind!r}, which raises R, and {type(self.dynamics).__name__} take no notice of R; use 'hard'")
        m = z.shape[-1]
        known = _numbers(spread)
        decided = correct(known, z, _array(rest), np.eye(m), np.zeros(m), gate, run, None if seen.ndim == 1 else seen)
        return select(np.asarray(seen if seen.ndim == 1 else seen.any(-1)), decided, known, run)

    def _remember(
        self, predicted: Gaussian, measurement: Gaussian, observed: Tensor, filtered: Gaussian, context: Context, memory: np.ndarray | None
    ) -> np.ndarray | None:
        projected = self.dynamics.project(predicted, measurement.cov, context)
        before, now, seen = (Gaussian(*(part.unsqueeze(1) for part in belief)) for belief in (predicted, filtered, projected))
        result = FilterResult(before, now, seen, projected.mean.new_zeros(len(projected.mean), 1))
        piece = Gaussian(measurement.mean.unsqueeze(1).to(self._like), measurement.cov.unsqueeze(1).to(self._like))
        after = self.dynamics.remember(piece, observed.unsqueeze(1), result, None if memory is None else self._own(memory))
        return None if after is None else _array(after[:, -1])

    def _gaussian(self, belief: Belief) -> Gaussian:
        return Gaussian(self._exact(belief.mean), self._exact(belief.cov))

    def _exact(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(x, dtype=np.float64)).to(self._like.device)

    def _own(self, memory: np.ndarray) -> Tensor:
        return torch.from_numpy(memory).to(self._like)


class ModuleMotion:
    """Such dynamics in a stream: :class:`ModuleStep` behind the interface of :class:`~ldm_filter.streams.motion.Motion`.

    Args:
        dynamics: of the filter; not changed. step_seconds: the sampling interval, None where it is not known.
        like: a tensor of the model.
    """

    def __init__(self, dynamics: Dynamics, step_seconds: float | None, like: Tensor) -> None:
        self._step = ModuleStep(dynamics, like)
        self._dynamics = dynamics
        self.any_time = dynamics.uses_time == "any"
        self.interval = float(getattr(getattr(dynamics, "base", dynamics), "interval", 1.0))
        self.step_seconds = step_seconds if step_seconds is not None else self.interval if self.any_time else None
        self.initial = Belief(*(part[0] for part in self._step.start(1)))

    def whole(self, distance: float, inputs: np.ndarray | None) -> None:
        """There is no step that is like all others."""
        return None

    def predict(self, before: Entry, distance: float, inputs: np.ndarray | None) -> Belief:
        """p(h_t | y_<t), a distance in sampling intervals after an entry."""
        memory = None if before.memory is None else _rows(before.memory, 1)
        return self._led(self._step.predict(_batch(before.filtered), memory, self._context(distance, inputs)), before.filtered)

    def correct(
        self,
        predicted: Belief,
        memory: np.ndarray | None,
        z: np.ndarray,
        R: np.ndarray,
        inputs: np.ndarray | None,
        gate: Gate | None,
        run: np.ndarray,
        mask: np.ndarray | None,
        seen: np.ndarray | None,
    ) -> tuple[Corrected, np.ndarray | None]:
        """As of :meth:`Motion.correct <ldm_filter.streams.motion.Motion.correct>`."""
        lead, m = predicted.mean.shape[:-1], z.shape[-1]
        count = len(_batch(predicted).mean)
        known = np.ones(count, dtype=bool) if seen is None else seen.reshape(count)
        known = known if mask is None else mask.reshape(count, m) & known[:, None]
        noise = R if R.ndim == 2 else R.reshape(count, m, m)
        past = None if memory is None else _rows(memory, 1)
        found, after = self._step.correct(
            _batch(predicted), past, z.reshape(count, m), noise, known, self._context(1, inputs), gate, run.reshape(count)
        )
        shaped = {name: np.asarray(getattr(found, name)) for name in ("log_likelihood", "distance", "weight", "run", "latents")}
        shaped = {name: value.reshape(lead) if value.size == count else value for name, value in shaped.items()}
        corrected = Corrected(self._led(found.belief, predicted), **shaped)
        return corrected, None if after is None else after.reshape(*lead, after.shape[-1])

    def rest(self, predicted: Belief, memory: np.ndarray | None, inputs: np.ndarray | None) -> np.ndarray | None:
        """What is to be remembered after a step at which nothing was seen."""
        after = self._step.rest(_batch(predicted), None if memory is None else _rows(memory, 1), self._context(1, inputs))
        return None if after is None else after.reshape(*predicted.mean.shape[:-1], after.shape[-1])

    @torch.no_grad()
    def smoothed(self, entries: list[Entry]) -> list[Belief]:
        """The entries given the last of them, by the dynamics' own smoother."""
        if len(entries) == 1:
            return [entries[0].filtered]

        def stacked(name: str) -> Gaussian:
            beliefs = [_batch(getattr(entry, name)) for entry in entries]
            return Gaussian(*(torch.from_numpy(np.stack([belief[k] for belief in beliefs], 1)).to(self._step._like.device) for k in (0, 1)))

        predicted = stacked("predicted")
        result = FilterResult(predicted, stacked("filtered"), predicted, predicted.mean[..., 0])
        distances = [1.0, *(after.position - before.position for before, after in pairwise(entries))]
        contexts = [self._context(distance, entry.inputs) for distance, entry in zip(distances, entries, strict=True)]
        dt = torch.tensor([distances], dtype=torch.float64, device=predicted.mean.device) * self.interval
        inputs = None if contexts[0].inputs is None else torch.cat([context.inputs for context in contexts if context.inputs is not None], 1)
        found = self._dynamics.smooth(result, Context(dt if set(distances) != {1.0} else None, inputs)).smoothed
        covs = found.cov.expand(*found.mean.shape, found.mean.shape[-1])
        return [self._led(Belief(_array(found.mean[:, t]), _array(covs[:, t])), entry.filtered) for t, entry in enumerate(entries)]

    def read_inputs(self, inputs: Any, streams: int | None) -> np.ndarray | None:
        """As of :func:`~ldm_filter.streams.motion.read_inputs`."""
        return read_inputs(inputs, streams, self._dynamics.input_dim)

    def _context(self, distance: float, inputs: np.ndarray | None) -> Context:
        like = self._step._like
        dt = None if distance == 1 else torch.tensor([[distance * self.interval]], dtype=torch.float64, device=like.device)
        return Context(dt, None if inputs is None else torch.from_numpy(np.atleast_2d(inputs)).to(like.device)[:, None])

    @staticmethod
    def _led(belief: Belief, like: Belief) -> Belief:
        """With the leading dimensions that the stream's beliefs have."""
        return Belief(belief.mean.reshape(like.mean.shape), belief.cov.reshape(like.cov.shape))


def _rows(x: np.ndarray, event_dims: int) -> np.ndarray:
    return x.reshape(-1, *x.shape[x.ndim - event_dims :])


def _batch(belief: Belief) -> Belief:
    return Belief(_rows(belief.mean, 1), _rows(belief.cov, 2))


def _numbers(belief: Gaussian) -> Belief:
    return Belief(_array(belief.mean), _array(belief.cov.expand(*belief.mean.shape, belief.mean.shape[-1])))


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy().copy()
