"""What gates against outliers cost and save, and what a step of the online filter takes: a learned and a known filter, gated in every way."""

from __future__ import annotations

import pickle
import resource
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_discrete_lyapunov

from benchmarks.records import Outcome
from ldm_filter import LDMFilter

__all__ = ["TASKS", "default_methods", "judge", "run", "tracks"]

TASKS: dict[str, tuple[str, ...]] = {"gates": ("one per cent of outliers", "no outliers", "level shift"), "online": ("",)}
GATES = ("hard", "inflate", "student-t")
OUTLIERS, CLEAN, SHIFT = TASKS["gates"]
# A damped random walk and its speed, seen in two noisy ways.
A, Q = np.array([[1.0, 0.1], [-0.02, 0.97]]), np.diag([1e-4, 4e-2])
C, R = np.array([[1.0, 0.0], [1.0, 0.3]]), np.diag([0.05, 0.1])
GROSS, LEVEL = 20.0, 4.0  # standard deviation of an outlier; size of a shift, two standard deviations of the walk and 18 of the noise
SPOILED = 0.01
LASTING = 20  # steps for which a filter is to be near, before it counts as settled
CHANNELS, HIDDEN = 6, 4
BUDGETS = {"smoke": (4, 120, 1, 200), "cpu": (40, 600, 15, 1_000_000)}  # series, steps, epochs; steps of the online filter
BUDGETS["full"] = BUDGETS["cpu"]


class Tracks(NamedTuple):
    """Truth and measurements, ``(series, time, 2)``."""

    truth: NDArray
    seen: NDArray


def tracks(series: int, steps: int, seed: int) -> Tracks:
    """Draws of the walk, from its stationary law on."""
    random = np.random.default_rng(seed)
    h, states = np.zeros((series, 2)), []
    for _ in range(200 + steps):
        h = h @ A.T + random.normal(size=h.shape) * np.sqrt(np.diag(Q))
        states.append(h)
    truth = np.stack(states[200:], 1) @ C.T
    return Tracks(truth, truth + random.normal(size=truth.shape) * np.sqrt(np.diag(R)))


def default_methods(task: str, condition: str = "") -> tuple[str, ...]:
    if task == "online":
        return ("ldm-mlp", "ldm-linear")
    return tuple(f"{maker}-{kind}" for maker in ("ldm", "known") for kind in ("plain", *GATES))


def run(task: str, condition: str, method: str, budget: str, seed: int) -> Outcome:
    """Fit where there is something to fit, then judge.

    Raises:
        ValueError: an unknown task, condition or method.
    """
    if condition not in TASKS.get(task, ()) or method not in default_methods(task, condition):
        raise ValueError(f"({task!r}, {condition!r}) has no method {method!r}; expected one of {', '.join(default_methods(task, condition))}")
    started = time.perf_counter()
    if task == "online":
        figures, epochs = _online(method.removeprefix("ldm-"), budget, seed)
        return Outcome(figures, "none", time.perf_counter() - started, epochs)
    maker, _, kind = method.partition("-")
    epochs = BUDGETS[budget][2] if maker == "ldm" else 0
    model = _fitted(budget, seed) if maker == "ldm" else LDMFilter.from_matrices(A, Q, C, R, np.zeros(2), solve_discrete_lyapunov(A, Q))
    figures = judge(model, condition, None if kind == "plain" else kind, *BUDGETS[budget][:2], seed)
    return Outcome(figures, "linear" if maker == "ldm" else "none", time.perf_counter() - started, epochs)


@cache
def _fitted(budget: str, seed: int) -> LDMFilter:
    """On series without outliers."""
    series, steps, epochs, _ = BUDGETS[budget]
    return LDMFilter(state_dim=2, encoder="linear", readout="linear", seed=seed).fit(
        tracks(series, steps, 100 + seed).seen, epochs=epochs, progress=False
    )


def judge(model: LDMFilter, condition: str, gate: str | None, series: int, steps: int, seed: int) -> dict[str, float]:
    """Against the truth, beside the same filter without a gate on the same data without outliers or shift.

    ``growth``: by how much of itself the root mean square error grows, in per cent. ``settled``: steps after a shift until the gated filter is
    for 20 steps on end no further from the truth than the one without a gate, but for the largest error that is usual; mean over series, and most.
    """
    truth, seen = tracks(series, steps, 200 + seed)
    random = np.random.default_rng(300 + seed)
    if condition == SHIFT:
        return _shifted(model, gate, truth, seen)
    hit = random.random(seen.shape[:2]) < (SPOILED if condition == OUTLIERS else 0.0)
    spoiled = np.where(hit[..., None], seen + GROSS * random.normal(size=seen.shape), seen)
    error, usual = (np.sqrt(np.mean((found - truth) ** 2)) for found in (_estimate(model, spoiled, gate), _estimate(model, seen, None)))
    return {"rmse": float(error), "growth": float(100.0 * (error / usual - 1.0))}


def _shifted(model: LDMFilter, gate: str | None, truth: NDArray, seen: NDArray) -> dict[str, float]:
    middle = truth.shape[1] // 2
    jump = np.where(np.arange(truth.shape[1])[:, None] >= middle, LEVEL * C[:, 0], 0.0)
    gated, plain = (np.abs(_estimate(model, seen + jump, kind) - truth - jump).max(-1) for kind in (gate, None))
    usual = plain[:, :middle].max(1, keepdims=True)
    near = gated[:, middle:] <= plain[:, middle:] + usual
    lasting: NDArray = np.all(np.lib.stride_tricks.sliding_window_view(near, LASTING, axis=1), axis=-1)
    steps = np.where(np.any(lasting, axis=1), np.argmax(lasting, axis=1), near.shape[1])
    return {"settled": float(steps.mean()), "settled_most": float(steps.max())}


def _estimate(model: LDMFilter, seen: NDArray, gate: str | None) -> NDArray:
    return model.filter(seen, gate=gate).reconstruction_mean.to_numpy()


def _online(encoder: str, budget: str, seed: int) -> tuple[dict[str, float], int]:
    """Single steps in a row, from Python: their median in microseconds, also at first and at last; how memory grows in MiB."""
    *_, epochs, steps = BUDGETS[budget]
    random = np.random.default_rng(seed)
    phase = 0.2 * np.arange(1000)[:, None] + np.arange(CHANNELS)
    data = (np.sin(phase) + 0.1 * random.normal(size=phase.shape)).astype(np.float32)
    model = LDMFilter(state_dim=HIDDEN, encoder=encoder, readout="linear", seed=seed).fit(data, epochs=epochs, progress=False)
    online, took = model.online(), np.full(steps, np.nan, dtype=np.float32)  # written once: its pages are there before memory is looked at
    held = 0
    for t in range(steps):
        begun = time.perf_counter()
        online.step(data[t % 1000])
        took[t] = time.perf_counter() - begun
        if t == steps // 10:
            held = _resident()
    figures = {"steps": float(steps), "step_us": 1e6 * float(np.median(took))}
    tenth = steps // 10
    figures |= {"step_us_first": 1e6 * float(np.median(took[:tenth])), "step_us_last": 1e6 * float(np.median(took[-tenth:]))}
    figures["grown_mib"] = (_resident() - held) / 2**20
    return figures | {"state_kib": len(pickle.dumps(online.save_state())) / 1024.0}, epochs


def _resident() -> int:
    """Bytes of this process in memory: now, or at their peak where the system does not tell."""
    now = Path("/proc/self/statm")
    if now.exists():
        return int(now.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
