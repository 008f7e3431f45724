"""Kalman filters of other libraries that work in NumPy: filterpy, pykalman, simdkalman, statsmodels. None of them has gradients.

Each ``prepare`` brings the problem into the form that its library likes; only the call that it returns is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed_problems import Problem

__all__ = ["LIBRARIES", "Entrant", "Result", "Run"]


class Result(NamedTuple):
    """What a filter returned, for the check.

    Attributes:
        mean, cov: filtered, ``(B, T, n)`` and ``(1 | B, T, n, n)``.
        log_likelihood: ``(B,)``; None where the library does not return it.
        gradients: of the loss, one for each of ``speed_problems.INPUTS``; None for a forward pass.
    """

    mean: NDArray
    cov: NDArray
    log_likelihood: NDArray | None = None
    gradients: tuple[NDArray, ...] | None = None


class Run(NamedTuple):
    """A prepared filter: what is timed, and how its output is read."""

    call: Callable[[], Any]
    read: Callable[[Any], Result]


class Entrant(NamedTuple):
    """One competitor.

    Attributes:
        name: in the table.
        package: what must be installed, as pip calls it; None for what is written here.
        module: what is imported of it.
        prepare: problem, whether gradients are wanted -> the run.
        regimes: those that it can do.
        gradients: whether it has any.
        cut: what a slow one leaves out where time is short: "sequences" for one that takes them one by one, "steps" for one that loops
            over time, "" for one that runs everything.
        tolerance: of its outputs, relative to the largest entry.
    """

    name: str
    package: str | None
    module: str
    prepare: Callable[[Problem, bool], Run]
    regimes: tuple[str, ...] = ("constant", "per-sequence")
    gradients: bool = False
    cut: str = "sequences"
    tolerance: float = 1e-9


def _arrays(problem: Problem) -> tuple[NDArray, ...]:
    return tuple(x.numpy() for x in problem[:7])


def _one_by_one(filter_one: Callable[[int], tuple[Any, ...]], batch: int, swap: bool = False) -> Run:
    """A filter of one series over the batch; ``swap`` where time is the last axis of what it returns."""

    def read(outputs: Sequence[tuple[Any, ...]]) -> Result:
        mean, cov, *rest = (np.stack(field) for field in zip(*outputs, strict=True))
        if swap:
            mean, cov = np.moveaxis(mean, -1, 1), np.moveaxis(cov, -1, 1)
        return Result(mean, cov, rest[0] if rest else None)

    return Run(lambda: [filter_one(b) for b in range(batch)], read)


def _filterpy(problem: Problem, backward: bool) -> Run:
    from filterpy.kalman import KalmanFilter

    A, Q, C, R, h0, P0, z = _arrays(problem)
    batch, _, n, m = problem.size

    def filter_one(b: int) -> tuple[Any, ...]:
        kf = KalmanFilter(dim_x=n, dim_z=m)
        kf.x, kf.P, kf.F, kf.H, kf.Q = h0.copy(), P0.copy(), A, C, Q
        kf.R = R if problem.constant else kf.R
        # the second pair of its outputs, the predictions, cannot be switched off
        return kf.batch_filter(z[b], Rs=None if problem.constant else R[b], update_first=True)[:2]

    return _one_by_one(filter_one, batch)


def _pykalman(problem: Problem, backward: bool) -> Run:
    from pykalman import KalmanFilter

    A, Q, C, R, h0, P0, z = _arrays(problem)
    kf = KalmanFilter(A, C, Q, R, initial_state_mean=h0, initial_state_covariance=P0)
    return _one_by_one(lambda b: kf.filter(z[b]), problem.size.batch)


def _simdkalman(problem: Problem, backward: bool) -> Run:
    import simdkalman

    A, Q, C, R, h0, P0, z = _arrays(problem)
    kf = simdkalman.KalmanFilter(A, Q, C, R)
    options = {"smoothed": False, "filtered": True, "observations": False, "log_likelihood": True}
    constant = 0.5 * problem.size.steps * problem.size.m * np.log(2 * np.pi)  # which it leaves out

    def read(result: Any) -> Result:
        return Result(result.filtered.states.mean, result.filtered.states.cov, np.asarray(result.log_likelihood) - constant)

    return Run(lambda: kf.compute(z, 0, initial_value=h0, initial_covariance=P0, **options), read)


def _statsmodels(problem: Problem, backward: bool) -> Run:
    from statsmodels.tsa.statespace.kalman_filter import KalmanFilter

    A, Q, C, R, h0, P0, z = _arrays(problem)
    batch, _, n, m = problem.size

    def bound(b: int) -> Any:
        """One filter for each series: binding another series to a used one leaves it with the old data."""
        kf = KalmanFilter(k_endog=m, k_states=n, transition=A, design=C, selection=np.eye(n), state_cov=Q)
        kf.initialize_known(h0, P0)
        kf.memory_no_forecast = kf.memory_no_predicted = kf.memory_no_gain = kf.memory_no_smoothing = kf.memory_no_std_forecast = True
        kf.bind(np.asfortranarray(z[b].T))  # column major and time last, as it stores them
        kf["obs_cov"] = R if problem.constant else np.asfortranarray(np.moveaxis(R[b], 0, -1))
        return kf

    filters = [bound(b) for b in range(batch)]

    def filter_one(b: int) -> tuple[Any, ...]:
        result = filters[b].filter()
        return result.filtered_state, result.filtered_state_cov, result.llf

    return _one_by_one(filter_one, batch, swap=True)


LIBRARIES = (
    Entrant("filterpy", "filterpy", "filterpy", _filterpy),
    Entrant("pykalman", "pykalman", "pykalman", _pykalman, regimes=("constant",)),
    Entrant("simdkalman", "simdkalman", "simdkalman", _simdkalman, regimes=("constant",), cut="steps"),
    Entrant("statsmodels", "statsmodels", "statsmodels", _statsmodels, tolerance=1e-8),
)
