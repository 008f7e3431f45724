"""How the state moves between the observations of a stream, and how it is seen: the dynamics' matrices as arrays."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_filter.core.device_step import DeviceStep
from ldm_filter.core.gating import Gate
from ldm_filter.core.step import Belief, Corrected, StepFilter, Transition, compose, correct, predict, select, smooth_back
from ldm_filter.models.base import Dynamics, Fields
from ldm_filter.streams.results import Entry
from ldm_filter.types import Context

__all__ = ["Motion", "read_inputs"]


class Motion:
    """The linear-Gaussian model of a stream, given the distances in time and the inputs.

    Args:
        dynamics: of the filter; not changed.
        step_seconds: the sampling interval, None where it is not known.
    """

    @torch.no_grad()
    def __init__(self, dynamics: Dynamics, step_seconds: float | None) -> None:
        ssm = dynamics.state_space()
        self._dynamics, self._device = dynamics, ssm.transition_matrix.device
        self.any_time = dynamics.uses_time == "any"
        self.interval = float(getattr(dynamics, "interval", 1.0))
        self.step_seconds = step_seconds if step_seconds is not None else self.interval if self.any_time else None
        A, a, Q, C, c = (_array(field) for field in ssm[:5])
        self._way, self._seen = Transition(A, a, Q), (C, c)
        on_device = self._device.type == "cuda"
        self._whole = DeviceStep(self._way, C, c, self._device) if on_device else StepFilter(self._way, C, c)
        self.initial = Belief(*(_array(field) for field in dynamics.initial()))
        self._over = lru_cache(maxsize=64)(self._at)

    def transition(self, distance: float, inputs: np.ndarray | None) -> Transition:
        """Over a distance in sampling intervals (a whole number, or with dynamics in continuous time any), with the inputs held."""
        if inputs is None and distance == 1:
            return self._way
        if inputs is None and not self.any_time:
            return self._power(int(distance))
        fields = self._over(distance) if inputs is None else self._at(distance, inputs)
        return Transition(fields.transition_matrix, fields.transition_offset, fields.transition_cov)

    def observation(self, inputs: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """C and c."""
        if inputs is None:
            return self._seen
        fields = self._at(1, inputs)
        return fields.observation_matrix, fields.observation_offset

    def whole(self, distance: float, inputs: np.ndarray | None) -> StepFilter | DeviceStep | None:
        """:meth:`predict` and :meth:`correct` at once, for a step like all others."""
        return self._whole if distance == 1 and inputs is None else None

    def predict(self, before: Entry, distance: float, inputs: np.ndarray | None) -> Belief:
        """p(h_t | y_<t), a distance in sampling intervals after an entry."""
        return predict(before.filtered, self.transition(distance, inputs))

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
        """Condition on a measurement; also what is remembered besides the belief (of linear dynamics: nothing).

        Args:
            predicted, z, R, gate, run, mask: as of :func:`ldm_filter.core.step.correct`.
            memory: after the step before. seen: bool ``(streams,)``, the streams with a measurement; None: all.
        """
        corrected = correct(predicted, z, R, *self.observation(inputs), gate, run, mask)
        return corrected if seen is None else select(seen, corrected, predicted, run), None

    def rest(self, predicted: Belief, memory: np.ndarray | None, inputs: np.ndarray | None) -> np.ndarray | None:
        """What is remembered after a step at which nothing was seen: nothing."""
        return None

    def smoothed(self, entries: list[Entry]) -> list[Belief]:
        """The entries given the last of them: Rauch-Tung-Striebel, backwards."""
        beliefs = [entries[-1].filtered]
        for before, after in zip(reversed(entries[:-1]), reversed(entries[1:]), strict=True):
            way = self.transition(after.position - before.position, after.inputs)
            beliefs.append(smooth_back(before.filtered, after.predicted, beliefs[-1], way.matrix))
        return beliefs[::-1]

    def read_inputs(self, inputs: Any, streams: int | None) -> np.ndarray | None:
        """As of :func:`read_inputs`."""
        return read_inputs(inputs, streams, self._dynamics.input_dim)

    def _power(self, steps: int) -> Transition:
        """Any number of steps as one, in about log2(steps) products, so that a stream that slept for a week wakes at once."""
        way, power = None, self._way
        while steps:
            if steps & 1:
                way = power if way is None else compose(power, way)
            steps >>= 1
            power = compose(power, power) if steps else power
        assert way is not None  # steps is at least 1
        return way

    @torch.no_grad()
    def _at(self, distance: float, inputs: np.ndarray | None = None) -> Any:
        """The fields of one step, float64."""
        dt = None
        if distance != 1:
            dt = torch.tensor([[distance * self.interval]], dtype=torch.float64, device=self._device)
        known = None if inputs is None else torch.from_numpy(np.atleast_2d(inputs)).to(self._device)[:, None]
        fields = self._dynamics.at_step(Context(dt, known), torch.float64)
        events = (2, 1, 2, 2, 1)
        arrays = (_array(part) for part in fields)
        return Fields(*(part[0] if part.ndim > event and len(part) == 1 else part for part, event in zip(arrays, events, strict=True)))  # type: ignore[arg-type]


def read_inputs(inputs: Any, streams: int | None, input_dim: int) -> np.ndarray | None:
    """Inputs ``(u,)``, or one row for each stream, checked.

    Raises:
        ValueError: inputs for a model without, none for a model with, another shape, or numbers that are not finite.
    """
    if not input_dim:
        if inputs is not None:
            raise ValueError("inputs were given, but this model has none; leave inputs out")
        return None
    if inputs is None:
        raise ValueError(f"inputs is None, but the model was fitted with {input_dim} inputs; pass them at every step")
    known = np.array(inputs.detach().cpu() if isinstance(inputs, Tensor) else inputs, dtype=np.float64)
    shapes = [(input_dim,)] + ([] if streams is None else [(streams, input_dim)])
    if known.shape not in shapes:
        raise ValueError(f"inputs have shape {known.shape}, expected {' or '.join(map(str, shapes))}; check their number and order")
    if not np.isfinite(known).all():
        raise ValueError(f"inputs hold {known.tolist()}, expected finite numbers: what is not known is a channel of y, not an input")
    return known


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy().copy()
