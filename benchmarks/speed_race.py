"""Checks every competitor against the torch reference, then times them in turns on the same data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed_jax import JAX
from benchmarks.speed_libraries import LIBRARIES, Entrant, Result, Run
from benchmarks.speed_problems import INPUTS, Problem
from benchmarks.speed_torch import TORCH, reference

__all__ = ["ENTRANTS", "Limits", "Row", "absent", "compare", "entrants", "race", "timed"]

Row = dict[str, Any]
Answers = dict[tuple[int, int, bool], Result]  # of the reference, by sequences, steps, and whether there are gradients
ENTRANTS: tuple[Entrant, ...] = (*TORCH, *JAX, *LIBRARIES)
# The check takes the first sequences, and of a single long series the first steps.
CHECKED_SEQUENCES, CHECKED_STEPS, LONG = 2, 400, 2000
# A written-out Cholesky factor of 8 x 8 has some 400 operations: with gradients it compiles for 10 s and is slower than the scan under vmap.
LANES = JAX[-1].name
# With gradients JAX is timed on at most so many steps and covariance entries.
JAX_STEPS, JAX_NUMBERS = 25_000, 16_000_000


class Limits(NamedTuple):
    """How much time is spent.

    Attributes:
        repeats: rounds in which everyone is timed once; the median counts.
        block: seconds that a quick filter is run again and again within a round.
        call: seconds that one call should not exceed; slower filters are timed on fewer sequences or steps.
    """

    repeats: int
    block: float
    call: float


class _Ready(NamedTuple):
    entrant: Entrant
    problem: Problem
    run: Run
    error: float
    number: int


def entrants() -> list[Entrant]:
    """Those whose package is installed."""
    return [entrant for entrant in ENTRANTS if find_spec(entrant.module)]


def absent() -> list[str]:
    """The packages that are missing, as pip calls them."""
    return sorted({entrant.package for entrant in ENTRANTS if entrant.package and not find_spec(entrant.module)})


def race(field: Sequence[Entrant], problem: Problem, backward: bool, limits: Limits, regime: str) -> Iterator[Row]:
    """Every competitor that can do it, checked, then timed in turns: A B C, A B C, ...

    Args:
        field: the competitors.
        problem: the same for all.
        backward: whether the gradients of the loss are wanted too.
        limits: of time.
        regime: of the problem.

    Yields:
        A row for each: its rate in filter steps per second (sequences x steps / seconds), the seconds of each round, the size it was timed
        on, its error in the check. One that fails, or whose output is wrong, is not timed; its row says why.
    """
    ready = []
    answers: Answers = {}
    for entrant in field:
        if regime not in entrant.regimes or (backward and not entrant.gradients) or _hopeless(entrant, problem, backward):
            continue
        try:
            ready.append(_prepare(entrant, problem, backward, limits, answers))
        except Exception as error:  # one competitor that breaks must not cost the others theirs
            yield {"entrant": entrant.name, "failure": f"{type(error).__name__}: {error}"[:300]}
    seconds: dict[str, list[float]] = {one.entrant.name: [] for one in ready}
    for _ in range(limits.repeats):
        for one in ready:
            seconds[one.entrant.name].append(timed(one.run.call, one.number))
    for one in ready:
        batch, steps = one.problem.size[:2]
        took = seconds[one.entrant.name]
        yield {
            "entrant": one.entrant.name,
            "rate": batch * steps / median(took),
            "seconds": took,
            "batch": batch,
            "steps": steps,
            "error": one.error,
        }


def timed(call: Callable[[], Any], number: int) -> float:
    """Mean seconds of one of ``number`` calls on end."""
    started = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - started) / number


def compare(given: Result, expected: Result, problem: Problem) -> float:
    """The largest difference between outputs on the sequences and steps that are expected, relative to the largest entry of each output.

    The gradients of covariances are compared after symmetrising: filters differ in how they spread it over the two triangles.

    Raises:
        ValueError: shapes differ, or there are numbers that are not finite.
    """
    batch, steps, n = expected.mean.shape
    covs = [np.broadcast_to(cov[:batch, :steps], (batch, steps, n, n)) for cov in (given.cov, expected.cov)]
    pairs = [(given.mean[:batch, :steps], expected.mean), (covs[0], covs[1])]
    if given.log_likelihood is not None and given.mean.shape[1] == steps:
        assert expected.log_likelihood is not None
        pairs.append((given.log_likelihood[:batch], expected.log_likelihood))
    if given.gradients is not None and expected.gradients is not None:
        for name, ours, theirs in zip(INPUTS, given.gradients, expected.gradients, strict=True):
            own = name == "z" or (name == "R" and not problem.constant)
            pairs.append((_symmetric(name, ours[:batch] if own else ours), _symmetric(name, theirs)))
    return max(_difference(ours, theirs) for ours, theirs in pairs)


def _difference(given: NDArray, expected: NDArray) -> float:
    if given.shape != expected.shape:
        raise ValueError(f"output has shape {given.shape}, expected {expected.shape}")
    if not np.isfinite(given).all():
        raise ValueError("output has numbers that are not finite")
    return float(np.abs(given - expected).max() / np.abs(expected).max())


def _symmetric(name: str, gradient: NDArray) -> NDArray:
    return (gradient + np.swapaxes(gradient, -1, -2)) / 2 if name in ("Q", "R", "P0") else gradient


def _hopeless(entrant: Entrant, problem: Problem, backward: bool) -> bool:
    return entrant.name == LANES and backward and problem.size.m > 4


def _prepare(entrant: Entrant, problem: Problem, backward: bool, limits: Limits, answers: Answers) -> _Ready:
    """Cut to what there is time for, compile, check, and see how often it must be called to be timed well."""
    problem = _affordable(entrant, problem, backward, limits.call)
    error = _check(entrant, problem, backward, answers)
    if not error <= entrant.tolerance:
        raise ValueError(f"its output is wrong: off by {error:.1e} of the largest entry, more than {entrant.tolerance:.0e}")
    run = entrant.prepare(problem, backward)
    return _Ready(entrant, problem, run, error, max(1, round(limits.block / timed(run.call, 1))))


def _affordable(entrant: Entrant, problem: Problem, backward: bool, seconds: float) -> Problem:
    """The first half, quarter, eighth ... of the sequences or steps: few sizes, so that few answers are needed for the check."""
    batch, steps, n, _ = problem.size
    if not entrant.cut:
        if entrant in JAX and backward:  # compiled for each size: a trial would take longer than it saves
            steps = min(steps, JAX_STEPS)
            batch = batch if problem.constant else max(1, min(batch, JAX_NUMBERS // (steps * n * n)))
        return problem.cut(batch, steps)
    trial = problem.cut(batch, min(steps, 8)) if entrant.cut == "steps" else problem.cut(1, min(steps, 100))
    run = entrant.prepare(trial, backward)
    run.call()
    rate = trial.size.batch * trial.size.steps / timed(run.call, 1)
    while entrant.cut == "sequences" and batch > 1 and batch * steps > rate * seconds:
        batch = (batch + 1) // 2
    while batch * steps > rate * seconds and steps > 20:
        steps = (steps + 1) // 2
    return problem.cut(batch, steps)


def _check(entrant: Entrant, problem: Problem, backward: bool, answers: Answers) -> float:
    """Error on the first sequences, with the code and at the size that is timed; of one long series, on its first steps."""
    batch, steps = problem.size[:2]
    batch = min(batch, CHECKED_SEQUENCES)
    if steps <= LONG:
        return _error_on(entrant, problem.watching(batch), problem.cut(batch, steps), backward, answers)
    part = problem.cut(batch, CHECKED_STEPS)
    whole = _error_on(entrant, problem, part, False, answers)
    return max(whole, _error_on(entrant, part, part, True, answers)) if backward else whole


def _error_on(entrant: Entrant, problem: Problem, part: Problem, backward: bool, answers: Answers) -> float:
    size = (part.size.batch, part.size.steps, backward)
    if size not in answers:
        answers[size] = reference(part, backward)
    run = entrant.prepare(problem, backward)
    return compare(run.read(run.call()), answers[size], problem)
