"""What the online filter gives and what it remembers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ldm_filter.core.step import Belief

__all__ = ["Entry", "OnlineState", "Smoothed", "StepResult", "from_plain", "to_plain"]

_FORMAT = "ldm-filter-online-3"
_FIELDS = ("format", "steps", "clock", "positions", "times", "mean", "cov", "predicted_mean", "predicted_cov", "run", "memory", "values", "inputs")


class StepResult(NamedTuple):
    """What one step yields, detached, on the CPU and in the dtype of the model; with ``streams`` every field has that leading dimension.

    Attributes:
        mean: of p(h_t | y_<=t), ``(n,)``, t the newest time.
        cov: ``(n, n)``.
        log_likelihood: log p(z_t | z_<t) of this observation in nats, 0 where nothing is observed.
        nis: e' S^-1 e / m, the normalised innovation squared per latent, 1 on average for a calibrated filter; NaN where nothing
            is observed.
        p_value: how probable an observation at least as far off is under the model, P(chi2_m > m nis); NaN where nothing is observed.
        weight: what a gate made of the observation: 1 taken as it came (always so without a gate), 0 rejected, between weighed down.
    """

    mean: Tensor
    cov: Tensor
    log_likelihood: Tensor
    nis: Tensor
    p_value: Tensor
    weight: Tensor


class Smoothed(NamedTuple):
    """The last steps in the light of everything since.

    Attributes:
        mean: of p(h_s | y_<=t) for the last steps s, the newest last, ``(steps, n)``; with ``streams`` ``(streams, steps, n)``.
        cov: ``(steps, n, n)``, or with ``streams`` in front.
        times: of these steps in seconds, None where times were not given.
    """

    mean: Tensor
    cov: Tensor
    times: tuple[float | None, ...]


class Entry(NamedTuple):
    """One step that is remembered.

    Attributes:
        position: sampling intervals since the first step; whole numbers where the dynamics keep to the grid.
        time: in seconds, None where times were not given.
        values: what was seen, NaN where missing; None for nothing, or where no lag is kept.
        inputs: of the interval that ends here, None for a model without.
        predicted, filtered: the beliefs before and after.
        run: measurements outside the gate on end, ``()`` or ``(streams,)``.
        memory: what the dynamics have to know besides the belief to go on, ``(k,)`` or ``(streams, k)``; None: nothing.
    """

    position: float
    time: float | None
    values: np.ndarray | None
    inputs: np.ndarray | None
    predicted: Belief
    filtered: Belief
    run: np.ndarray
    memory: np.ndarray | None = None


class OnlineState(NamedTuple):
    """All that a filter remembers. A step replaces it and never writes into it.

    Attributes:
        entries: the steps within the lag and one more, the newest last; only the last step where no lag is kept; none before the first.
        initial: the belief before the first step.
        steps: observations taken in so far, calls with nothing included.
        clock: ``"seconds"``, ``"dates"`` or ``"dates with a zone"``: what kind of times came; "" for none.
    """

    entries: tuple[Entry, ...]
    initial: Belief
    steps: int
    clock: str

    @property
    def belief(self) -> Belief:
        """p(h_t | y_<=t) after the newest step (before the first: the initial belief), float64."""
        return self.entries[-1].filtered if self.entries else self.initial

    @property
    def time(self) -> float | None:
        """Of the newest step in seconds, or None where times were never given."""
        return self.entries[-1].time if self.entries else None


def to_plain(state: OnlineState, shape: tuple[int, ...]) -> dict[str, Any]:
    """A state as arrays, numbers and text. ``shape`` is that of an observation (with the streams in front)."""
    entries = state.entries
    lead = state.initial.mean.shape[:-1]

    def stack(arrays: list[np.ndarray], tail: tuple[int, ...]) -> np.ndarray:
        return np.array(arrays, dtype=np.float64) if arrays else np.zeros((0, *tail))

    mean, cov = state.initial.mean.shape, state.initial.cov.shape
    nothing = np.full(shape, np.nan)
    kept = any(entry.values is not None for entry in entries)
    return {
        "format": _FORMAT,
        "steps": state.steps,
        "clock": state.clock,
        "positions": np.array([entry.position for entry in entries], dtype=np.float64),
        "times": np.array([np.nan if entry.time is None else entry.time for entry in entries]),
        "mean": stack([entry.filtered.mean for entry in entries], mean),
        "cov": stack([entry.filtered.cov for entry in entries], cov),
        "predicted_mean": stack([entry.predicted.mean for entry in entries], mean),
        "predicted_cov": stack([entry.predicted.cov for entry in entries], cov),
        "run": stack([entry.run for entry in entries], lead),
        "memory": np.array([entry.memory for entry in entries if entry.memory is not None]),
        "inputs": np.array([entry.inputs for entry in entries if entry.inputs is not None]),
        "values": stack([nothing if entry.values is None else entry.values for entry in entries] if kept else [], shape),
    }


def from_plain(plain: Any, like: OnlineState, shape: tuple[int, ...]) -> OnlineState:
    """The inverse of :func:`to_plain`, checked against the state of a filter of the same model.

    Raises:
        TypeError: not what ``save_state`` gives.
        ValueError: another format, model size or number of streams, or numbers that are not finite.
    """
    if not isinstance(plain, dict) or not set(_FIELDS) <= plain.keys():
        raise TypeError(f"state is a {type(plain).__name__} without the fields of a saved state; expected what save_state() returned")
    if plain["format"] != _FORMAT:
        raise ValueError(f"state has format {plain['format']!r}, expected {_FORMAT!r}; load it with the ldm-filter that saved it")
    count = len(plain["positions"])
    arrays = {}
    sizes = {"mean": like.initial.mean.shape, "cov": like.initial.cov.shape, "run": like.initial.mean.shape[:-1]}
    for name, tail in (*sizes.items(), ("predicted_mean", sizes["mean"]), ("predicted_cov", sizes["cov"])):
        saved = np.array(plain[name], dtype=np.float64)
        if saved.shape != (count, *tail):
            raise ValueError(f"state has {name} of shape {saved.shape}, expected {(count, *tail)}; make model and streams as when it was saved")
        if not np.isfinite(saved).all():
            raise ValueError(f"state has a {name} that is not finite; expected what save_state() returned: load an older state")
        arrays[name] = saved
    values = np.array(plain["values"], dtype=np.float64)
    if values.shape not in ((0, *shape), (count, *shape)):
        raise ValueError(f"state has values of shape {values.shape}, expected {(count, *shape)}; make the filter of the model that saved it")
    known = np.array(plain["inputs"], dtype=np.float64)
    memory = np.array(plain["memory"], dtype=np.float64)
    if len(memory) not in (0, count) or (len(memory) and memory.shape[1:-1] != sizes["run"]) or not np.isfinite(memory).all():
        raise ValueError(f"state has a memory of shape {memory.shape}, expected finite numbers ({count}, ..., k); load an older state")
    entries = tuple(
        Entry(
            float(plain["positions"][i]),
            None if np.isnan(plain["times"][i]) else float(plain["times"][i]),
            values[i].copy() if len(values) and not np.isnan(values[i]).all() else None,
            known[i].copy() if len(known) else None,
            Belief(arrays["predicted_mean"][i].copy(), arrays["predicted_cov"][i].copy()),
            Belief(arrays["mean"][i].copy(), arrays["cov"][i].copy()),
            arrays["run"][i].copy(),
            memory[i].copy() if len(memory) else None,
        )
        for i in range(count)
    )
    return OnlineState(entries, like.initial, int(plain["steps"]), str(plain["clock"]))
