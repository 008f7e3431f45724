"""The parts of the speed benchmark. Each is run in a process of its own and yields rows of numbers, ready for JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from benchmarks import speed_machine, speed_steps
from benchmarks.speed_jax import JAX
from benchmarks.speed_problems import REGIMES, WORKLOADS, Problem, Size, problem
from benchmarks.speed_race import ENTRANTS, Limits, Row, absent, entrants, race, timed
from benchmarks.speed_torch import OURS, PLAIN
from benchmarks.speed_training import until_good
from ldm_filter.core.step import Belief, StepFilter, Transition

__all__ = ["BUDGETS", "PARTS", "Budget", "memory_cases"]


class Budget(NamedTuple):
    """What is measured and for how long.

    Attributes:
        workloads: name -> size.
        limits: of the races.
        curves: axis -> values, the others as in ``CURVE_SIZE``.
        curve_limits: of the points on them.
        thread_workloads, memory_workloads: names out of ``workloads``.
        long_series: steps of the single series whose memory is measured.
        online: steps of the online filter, and the seconds after which it stops.
        jax: whether filters that are compiled for every size take part.
        training: seeds of the fits, and the budget of their task.
        step_sizes: of the single steps. smoother_workloads: names out of ``workloads``.
    """

    workloads: dict[str, Size]
    limits: Limits
    curves: dict[str, tuple[int, ...]]
    curve_limits: Limits
    thread_workloads: tuple[str, ...]
    memory_workloads: tuple[str, ...]
    long_series: int
    online: tuple[int, float]
    jax: bool
    training: tuple[int, str]
    step_sizes: tuple[Size, ...]
    smoother_workloads: tuple[str, ...]


T = TypeVar("T")
CURVE_SIZE = Size(64, 100, 4, 2)
BUDGETS = {
    "full": Budget(
        workloads=WORKLOADS,
        limits=Limits(repeats=5, block=0.03, call=0.1),
        curves={"batch": (1, 16, 256, 4096), "steps": (10, 100, 1000, 10_000), "n": (2, 4, 8, 16, 32), "m": (1, 2, 4, 8)},
        curve_limits=Limits(repeats=3, block=0.02, call=0.1),
        thread_workloads=("W2", "W4"),
        memory_workloads=("W2",),
        long_series=1_000_000,
        online=(1_000_000, 15.0),
        jax=True,
        training=(3, "cpu"),
        step_sizes=(Size(64, 1, 4, 2), Size(256, 1, 8, 4), Size(1024, 1, 8, 4), Size(256, 1, 16, 8)),
        smoother_workloads=("W1", "W2"),
    ),
    "smoke": Budget(
        workloads={"W1": Size(4, 10, 4, 2), "W3": Size(1, 30, 4, 2)},
        limits=Limits(repeats=2, block=0.0, call=0.01),
        curves={"batch": (1, 3), "m": (1, 2)},
        curve_limits=Limits(repeats=1, block=0.0, call=0.01),
        thread_workloads=("W1",),
        memory_workloads=(),
        long_series=1000,
        online=(100, 1.0),
        jax=False,
        training=(1, "smoke"),
        step_sizes=(Size(3, 1, 4, 2),),
        smoother_workloads=("W1",),
    ),
}


def machine(budget: Budget) -> Iterator[Row]:
    """What one core can do, and which competitors are missing."""
    yield speed_machine.measure() | {"absent": absent()}


def races(budget: Budget) -> Iterator[Row]:
    """Everyone on every workload, in both regimes, forward and forward + backward."""
    field = [one for one in entrants() if budget.jax or one not in JAX]
    for name, size in budget.workloads.items():
        for regime in REGIMES:
            data = problem(size, regime)
            for backward in (False, True):
                for row in race(field, data, backward, budget.limits, regime):
                    yield {"workload": name, "regime": regime, "backward": backward, **row}


def curves(budget: Budget) -> Iterator[Row]:
    """How cost grows with each size, forward + backward: ldm-filter in both regimes, the plain loop and the scan in JAX where R varies."""
    rivals = [one for one in entrants() if one is PLAIN or (budget.jax and one is JAX[1])]
    for axis, values in budget.curves.items():
        for value in values:
            size = CURVE_SIZE._replace(**{axis: value})
            for regime in REGIMES:
                field = [OURS, *(rivals if regime == "per-sequence" else [])]
                for row in race(field, problem(size, regime), True, budget.curve_limits, regime):
                    yield {"axis": axis, "value": value, "regime": regime, **row}


def threads(budget: Budget) -> Iterator[Row]:
    """ldm-filter with one thread and with more, in turns; and whether the numbers that come out are the same to the last bit."""
    counts = [count for count in (1, 2, 4, 8, 16) if count <= speed_machine.cores()]
    for name in budget.thread_workloads:
        for regime in REGIMES:
            for backward in (False, True):
                call = OURS.prepare(problem(budget.workloads[name], regime), backward).call
                outputs = [_flat(_with_threads(count, call)) for count in counts]
                number = max(1, round(budget.limits.block / timed(call, 1)))
                took: dict[int, list[float]] = {count: [] for count in counts}
                for _ in range(budget.limits.repeats):
                    for count in counts:
                        took[count].append(_with_threads(count, lambda call=call, number=number: timed(call, number)))  # type: ignore[misc]
                for count, output in zip(counts, outputs, strict=True):
                    same = all(torch.equal(x, y) for x, y in zip(output, outputs[0], strict=True))
                    yield {
                        "workload": name,
                        "regime": regime,
                        "backward": backward,
                        "threads": count,
                        "seconds": took[count],
                        "speedup": median(took[1]) / median(took[count]),
                        "same": same,
                    }


def _with_threads(count: int, call: Callable[[], T]) -> T:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


def _flat(output: object) -> list[torch.Tensor]:
    if isinstance(output, tuple):
        return [tensor for item in output for tensor in _flat(item)]
    return [output] if isinstance(output, torch.Tensor) else []


def memory(budget: Budget, entrant: str, workload: str, regime: str, direction: str) -> Iterator[Row]:
    """Peak of a fresh process that runs one filter once: all of it, and what the run added to its inputs.

    Args:
        budget: has the sizes.
        entrant: name of a competitor.
        workload: one of the budget's, or "series" for its one long series.
        regime: of the problem.
        direction: "forward" or "backward", with the gradients.
    """
    size = budget.workloads.get(workload, Size(1, budget.long_series, 4, 2))
    backward = direction == "backward"
    (one,) = (candidate for candidate in ENTRANTS if candidate.name == entrant)
    data = problem(size, regime)
    one.prepare(data.cut(1, 3), backward).call()  # loads the code
    run = one.prepare(data, backward)
    before = speed_machine.memory_now()
    output = run.call()
    peak = speed_machine.memory_peak()
    del output
    what = {"entrant": entrant, "workload": workload, "regime": regime, "backward": backward, "batch": size.batch, "steps": size.steps}
    yield what | {"peak": peak, "added": max(0, peak - before)}


def memory_cases(budget: Budget, installed: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """The arguments of `memory`: the long series, and gradients of the plain loop, of JAX and of ldm-filter."""
    names = [name for name in (OURS.name, PLAIN.name, JAX[1].name) if name in installed]
    series = [(OURS.name, "series", "constant", "forward")]
    return series + [(name, workload, regime, "backward") for workload in budget.memory_workloads for regime in REGIMES for name in names]


def online(budget: Budget) -> Iterator[Row]:
    """One filter step for one observation from Python, without an encoder (n 8, m 4): microseconds at first and at last."""
    data = problem(Size(1, 1000, 8, 4), "constant")
    step = _online_step(data)
    most, limit = budget.online
    block = min(most // 10, 1000)
    took: list[float] = []
    started = time.perf_counter()
    while len(took) * block < most and time.perf_counter() - started < limit:
        begun = time.perf_counter()
        for t in range(block):
            step(t)
        took.append((time.perf_counter() - begun) / block)
    tenth = max(1, len(took) // 10)
    yield {"steps": len(took) * block, "first": median(took[:tenth]), "last": median(took[-tenth:]), "median": median(took)}


def training(budget: Budget) -> Iterator[Row]:
    """How long a fit of the figure-eight video takes until the position can be read."""
    yield from until_good(*budget.training)


def state_steps(budget: Budget) -> Iterator[Row]:
    """Single steps whose transition depends on the state."""
    yield from speed_steps.state_steps({f"{size.batch} x n {size.n}, m {size.m}": size for size in budget.step_sizes}, budget.limits)


def smoothers(budget: Budget) -> Iterator[Row]:
    """Filter and smoother."""
    yield from speed_steps.smoothers({name: budget.workloads[name] for name in budget.smoother_workloads}, budget.limits)


def profile(budget: Budget) -> Iterator[Row]:
    """Where a training step spends its time."""
    yield from speed_steps.profile(budget.training[1])


def _online_step(data: Problem) -> Callable[[int], None]:
    """The step that a stream takes; the belief is carried on."""
    filter_ = StepFilter(Transition(data.A.numpy(), np.zeros(data.size.n), data.Q.numpy()), data.C.numpy(), np.zeros(data.size.m))
    z, R = data.z[0].numpy(), np.ascontiguousarray(data.R.numpy())
    belief = Belief(data.h0.numpy(), np.ascontiguousarray(data.P0.numpy()))

    def step(t: int) -> None:
        nonlocal belief
        belief = filter_(belief, z[t], R)[1].belief

    return step


# In the order of their running: what the goals speak of comes first.
PARTS: dict[str, Callable[..., Iterator[Row]]] = {
    "machine": machine,
    "races": races,
    "threads": threads,
    "online": online,
    "training": training,
    "state steps": state_steps,
    "smoothers": smoothers,
    "profile": profile,
    "memory": memory,
    "curves": curves,
}
