"""The filter of a stream: a step, late data, the smoothed past, and a state that can be put away."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_filter.core.gating import Gate, chi2_tail
from ldm_filter.core.inputs import check_count
from ldm_filter.core.linalg import round_cov
from ldm_filter.core.step import Belief, Corrected
from ldm_filter.models.base import Dynamics
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.streams.clock import OFF_GRID, check_step, seconds_of, show_time
from ldm_filter.streams.encode import cast, measure_of, numbers
from ldm_filter.streams.modules import ModuleMotion
from ldm_filter.streams.motion import Motion
from ldm_filter.streams.results import Entry, OnlineState, Smoothed, StepResult, from_plain, to_plain

__all__ = ["OnlineFilter"]


class OnlineFilter:
    """Filters a stream (or several side by side) observation by observation; equals filtering the whole series at once.

        h^- = A^k h + ...,   h = h^- + K (z - C h^- - c),   z, R = encoder(y)

    k is 1, more after a gap, and 0 at the first step, where the initial belief is the prediction. The belief is carried in float64
    whatever the dtype of the model. The model is copied: training it further does not change a running filter. The filter runs on
    the CPU; an encoder that is no small perceptron runs where the model is, on a CUDA device as a recorded graph, and so does there the
    filter step of 256 and more complete streams of 16 and more states.

    Args:
        model: a fitted :class:`~ldm_filter.models.latent_filter.LatentFilter`.
        step_seconds: the sampling interval. With it, a gap in ``time`` is predicted over.
        streams: None for one stream, or the number of streams that are stepped together.
        lag: steps that are kept, for :meth:`smoothed` and for observations that come late. Cost and memory grow with it, not with time.
        gate: what to do with outliers; None takes every observation as it comes.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or out of range.

    >>> from ldm_filter.models.dynamics import LinearDynamics
    >>> from ldm_filter.models.encoders import Encoder
    >>> online = OnlineFilter(LatentFilter(Encoder((6,), 2), LinearDynamics(4, 2)), step_seconds=0.02)
    >>> online.step(np.zeros(6), time=10.0).mean.shape
    torch.Size([4])
    >>> online.step(None, time=10.02).log_likelihood
    tensor(0.)
    """

    state: OnlineState

    def __init__(
        self, model: LatentFilter, step_seconds: float | None = None, streams: int | None = None, lag: int = 0, gate: Gate | None = None
    ) -> None:
        if not isinstance(model, LatentFilter):
            raise TypeError(f"model is a {type(model).__name__}, expected a LatentFilter; of an estimator, call its online()")
        if streams is not None:
            check_count("streams", streams)
        if lag != 0 or isinstance(lag, bool):
            check_count("lag", lag)
        if gate is not None and not isinstance(gate, Gate):
            raise TypeError(f"gate is a {type(gate).__name__}, expected a Gate or None; see ldm_filter.core.gating.Gate")
        self.step_seconds, self.streams, self.lag, self.gate = check_step(step_seconds), streams, lag, gate
        own = copy.deepcopy(model).eval()
        self._dtype = own.encoder.center.dtype
        self._numpy_dtype = np.dtype(str(self._dtype).removeprefix("torch."))
        self._motion = _motion_of(own, self.step_seconds)
        self.step_seconds = self._motion.step_seconds
        self._channelwise = own.encoder.channelwise
        self._measure = measure_of(own.encoder)
        lead = () if streams is None else (streams,)
        self._shape = (*lead, *model.encoder.event_shape)
        self._rank = len(model.encoder.event_shape)
        mean, cov = self._motion.initial
        initial = Belief(np.broadcast_to(mean, (*lead, *mean.shape)).copy(), np.broadcast_to(cov, (*lead, *cov.shape)).copy())
        self.state = OnlineState((), initial, 0, "")

    def step(self, y: np.ndarray | Tensor | None, time: Any = None, inputs: Any = None) -> StepResult:
        """Take in the next observation, or a late one; where anything is refused, the state stays as it was.

        Args:
            y: ``(channel,)`` or a frame ``(y, x[, colour])``, with ``streams`` a leading dimension, in the data's units; NaN where
                an entry is missing. None or all NaN: nothing was seen, the filter only predicts.
            time: of this observation, optional: seconds, or a datetime, pandas Timestamp or numpy datetime64 (exact to about a
                microsecond; without a zone it is read as UTC). With ``step_seconds`` a distance of k steps is k predictions, each of
                the others one. With a ``lag``, a time up to that many steps before the newest: the observation is put where it
                belongs (or fills entries that were missing there) and everything since is filtered again.
            inputs: known controls ``(input,)`` (with ``streams`` also one row for each) over the interval that ends here, where the model
                was fitted with them.

        Returns:
            The filtered state at the newest time; log-likelihood, NIS, p-value and weight of this observation.

        Raises:
            TypeError: y is no array or tensor of real numbers; time is of another kind than before.
            ValueError: shape of y, infinite values, a time that was there before, is older than the lag or lies more than a tenth of a
                step off the grid, inputs.
        """
        known = self._motion.read_inputs(inputs, self.streams)
        values = None if y is None else self._read(y)
        ahead, now, clock = self._advance(time)
        entries, steps = self.state.entries, self.state.steps
        if ahead <= 0 and entries:
            late, entries = self._late(ahead, now, values, known)
        else:
            newest = entries[-1].position if entries else 0
            late, entry = self._filtered(entries[-1] if entries else None, newest + ahead, now, values, known)
            entries = (*self._kept(entries, entry.position), entry)
        self.state = OnlineState(entries, self.state.initial, steps + 1, clock)
        return self._result(late)

    def smoothed(self) -> Smoothed:
        """The steps of the last ``lag`` and the newest, given everything so far: fixed-lag smoothing, equal to the smoother
        over the whole series, ended here.

        Steps that were gaps in time are not among them; call ``step(None)`` for each to have them.

        Raises:
            ValueError: no lag is kept, or there was no step yet.
        """
        entries = self.state.entries
        if not self.lag or not entries:
            raise ValueError(
                f"lag is {self.lag} after {self.state.steps} step(s), expected at least 1 and a step; give lag=... when the filter is made"
            )
        oldest = entries[-1].position - self.lag
        shown = [entry for entry in entries if entry.position >= oldest]
        beliefs = self._motion.smoothed(shown)
        axis = 0 if self.streams is None else 1
        mean = torch.from_numpy(np.stack([belief.mean for belief in beliefs], axis)).to(self._dtype)
        cov = round_cov(torch.from_numpy(np.stack([belief.cov for belief in beliefs], axis)), self._dtype)
        return Smoothed(mean, cov, tuple(entry.time for entry in shown))

    def save_state(self) -> dict[str, Any]:
        """The state as plain NumPy arrays, numbers and text (for pickle, ``np.savez`` or a database): a few kilobytes, and with a lag
        about as much for every step of it."""
        return to_plain(self.state, self._shape)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`save_state` was called, bit for bit; the filter must be made of the same model.

        Raises:
            TypeError: not what ``save_state`` gives.
            ValueError: a state of another format, model size or number of streams, or with numbers that are not finite.
        """
        self.state = from_plain(state, self.state, self._shape)

    # ---------------------------------------------------------------------------------------------------------- one step

    def _read(self, y: Any) -> np.ndarray:
        """The observation in the model's dtype, NaN where missing."""
        given = numbers(y)
        if given.shape != self._shape:
            names = "(streams, *observation)" if self.streams is not None else "one observation"
            raise ValueError(f"y has shape {given.shape}, expected {self._shape}: {names}; check the number and order of its dimensions")
        values = given if given.dtype == self._numpy_dtype else cast(given, self._numpy_dtype)
        infinite = np.isinf(values)
        if infinite.any():
            index = np.argwhere(infinite)[0].tolist()
            raise ValueError(f"y is {given[tuple(index)]} at index {index}; expected numbers finite in {self._dtype}, or NaN for missing: replace it")
        return values

    def _advance(self, time: Any) -> tuple[float, float | None, str]:
        """How many steps this call is ahead of the newest one (0 or less: late), and its time."""
        last, clock = self.state.time, self.state.clock
        one = 1 if self.state.entries else 0  # the initial belief is the prediction for the first step
        if time is None:
            return one, last + self.step_seconds if last is not None and self.step_seconds else last, clock
        now, kind = seconds_of(time)
        if last is None:
            return one, now, kind
        if kind != clock:
            raise TypeError(f"time is {time!r} ({kind}), but the last step had {clock}: {show_time(last, clock)}; give all times in one kind")
        if now <= last and not (self.lag and self.step_seconds):
            mend = "; or give a lag and a step to take late ones" if not self.lag else "; late ones need a model that knows its step"
            raise ValueError(
                f"time is {show_time(now, kind)}, not later than the last step at {show_time(last, clock)}; sort the data, drop what came twice{mend}"
            )
        if self.step_seconds is None:
            return one, now, kind
        if now <= last:
            return self._behind(now, kind), now, kind
        ratio = (now - last) / self.step_seconds
        if self._motion.any_time:
            return ratio, now, kind
        ahead = round(ratio)
        if ahead < 1 or abs(ratio - ahead) > OFF_GRID:
            raise ValueError(
                f"time is {show_time(now, kind)}, {ratio:.3f} steps of {self.step_seconds} s after the last one at {show_time(last, clock)}; "
                f"expected a whole number within {OFF_GRID}: resample to the grid, or leave time out to count each call as one step"
            )
        return ahead, now, kind

    def _behind(self, now: float, kind: str) -> float:
        """How many steps a late time is behind the newest one, 0 or less, counted from the remembered step nearest to it."""
        entries, step = self.state.entries, self.step_seconds
        assert step is not None
        when, nearest = min(((entry.time, entry.position) for entry in entries if entry.time is not None), key=lambda at: abs(now - at[0]))
        ratio = (now - when) / step
        newest, position = entries[-1].position, nearest + (ratio if self._motion.any_time else round(ratio))
        oldest = max(newest - self.lag, entries[0].position)
        if position < oldest:
            raise ValueError(
                f"time is {show_time(now, kind)}, {newest - position:g} steps before the newest, and the filter reaches back {newest - oldest:g}; "
                "drop it, or make the filter with a larger lag"
            )
        if not self._motion.any_time and abs(ratio - round(ratio)) > OFF_GRID:
            raise ValueError(
                f"time is {show_time(now, kind)}, {ratio:.3f} steps of {step} s from the step at {show_time(when, kind)}; "
                f"expected a whole number within {OFF_GRID}: resample to the grid"
            )
        return position - newest

    def _late(
        self, ahead: float, now: float | None, values: np.ndarray | None, inputs: np.ndarray | None
    ) -> tuple[Corrected | None, tuple[Entry, ...]]:
        """Put a late observation where it belongs, and filter again from there on."""
        entries = self.state.entries
        position = entries[-1].position + ahead
        at = next(i for i, entry in enumerate(entries) if entry.position >= position)
        here = entries[at] if entries[at].position == position else None
        values = values if here is None else self._merged(here, values, now)
        before = entries[at - 1] if at else None
        late, entry = self._filtered(before, position, now if here is None else here.time, values, inputs)
        redone = [*entries[:at], entry]
        for old in entries[at + (here is not None) :]:
            redone.append(self._filtered(redone[-1], old.position, old.time, old.values, old.inputs)[1])
        return late, tuple(redone)

    def _merged(self, here: Entry, values: np.ndarray | None, now: float | None) -> np.ndarray | None:
        """What is known of one step from two messages about different channels."""
        if here.values is None or values is None:
            return values if here.values is None else here.values
        twice = ~np.isnan(here.values) & ~np.isnan(values)
        if twice.any():
            raise ValueError(
                f"time is {show_time(float(now or 0.0), self.state.clock)}, where y was given before at index {np.argwhere(twice)[0].tolist()}; "
                "sort the data, drop what came twice, and give NaN for what is there already"
            )
        return np.where(np.isnan(values), here.values, values)

    def _filtered(
        self, before: Entry | None, position: float, time: float | None, values: np.ndarray | None, inputs: np.ndarray | None
    ) -> tuple[Corrected | None, Entry]:
        """Predict from the entry before (None: the initial belief stands) and take in what was seen."""
        motion, memory = self._motion, None if before is None else before.memory
        missing = None if values is None else np.isnan(values)
        if before is not None and values is not None and self.gate is None and missing is not None and not missing.any():
            whole = motion.whole(position - before.position, inputs)
            if whole is not None:
                predicted, corrected = whole(before.filtered, *self._measure(values, None))
                return corrected, Entry(position, time, values if self.lag else None, inputs, predicted, corrected.belief, corrected.run, memory)
        if before is None:
            predicted, run = self.state.initial, np.zeros(self.state.initial.mean.shape[:-1])
        else:
            predicted, run = motion.predict(before, position - before.position, inputs), before.run
        if missing is None or missing.all():
            return None, Entry(position, time, None, inputs, predicted, predicted, run, motion.rest(predicted, memory, inputs))
        assert values is not None
        if missing.any():
            z, R = self._measure(np.where(missing, np.zeros((), values.dtype), values), ~missing)
        else:
            z, R = self._measure(values, None)
        mask = ~missing if self._channelwise and missing.any() else None
        seen = ~missing.all(tuple(range(1, 1 + self._rank))) if self.streams is not None and missing.any() else None
        corrected, after = motion.correct(predicted, memory, z, R, inputs, self.gate, run, mask, seen)
        return corrected, Entry(position, time, values if self.lag else None, inputs, predicted, corrected.belief, corrected.run, after)

    def _kept(self, entries: tuple[Entry, ...], newest: float) -> tuple[Entry, ...]:
        """The steps within the lag and the one before, from which a late one is predicted."""
        if not self.lag:
            return ()
        first = next((i for i, entry in enumerate(entries) if entry.position >= newest - self.lag), len(entries))
        return entries[max(0, first - 1) :]

    def _result(self, corrected: Corrected | None) -> StepResult:
        mean, cov = self.state.belief
        lead = mean.shape[:-1]
        if corrected is None:
            log_likelihood, distance, weight = np.zeros(lead), np.full(lead, math.nan), np.ones(lead)
            latents = np.ones(lead)
        else:
            log_likelihood, distance, weight = corrected.log_likelihood, corrected.distance, corrected.weight
            latents = np.maximum(corrected.latents, 1)
        # copies: in float64 the result would else be the state itself, and whoever writes into one would change the other
        figures = np.array((log_likelihood, distance / latents, chi2_tail(distance, latents), weight))
        scalars = torch.from_numpy(figures).to(self._dtype)
        rounded = round_cov(torch.from_numpy(cov), self._dtype).clone()
        return StepResult(torch.from_numpy(mean).to(self._dtype, copy=True), rounded, *scalars.unbind(0))


def _motion_of(model: LatentFilter, step_seconds: float | None) -> Motion | ModuleMotion:
    """Matrices and arrays where the dynamics are linear-Gaussian given times and inputs, else their own methods, on the CPU."""
    if type(model.dynamics).filter is Dynamics.filter:
        return Motion(model.dynamics, step_seconds)
    return ModuleMotion(model.dynamics.cpu(), step_seconds, torch.empty(0, dtype=model.encoder.center.dtype))
