"""Single steps, the smoother, and where a training step spends its time: what the races of whole filters do not show."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pkgutil import resolve_name
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import ldm_filter
from benchmarks.dot_methods import fit_ldm
from benchmarks.dot_tasks import bench
from benchmarks.speed_problems import REGIMES, Size, problem
from benchmarks.speed_race import Limits, Row, timed
from ldm_filter.core.kalman import filter_sequence
from ldm_filter.core.nonlinear import StepModel, run_step
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.types import Gaussian

__all__ = ["lines", "profile", "smoothers", "state_steps"]

Call = Callable[[], list[Tensor]]
TOLERANCE = 1e-9  # of the largest entry
STEP_GOAL = 4.0
STAGES = {
    "encoder": "ldm_filter.models.latent_filter.LatentFilter.encode",
    "filter and its likelihood": "ldm_filter.training.stepper.predictive_log_density",
    "entropy and gauge": "ldm_filter.objectives.objective.Objective.__call__",
    "backward": "lightning_fabric.Fabric.backward",
    "clipping": "lightning_fabric.Fabric.clip_gradients",
    "optimiser": "torch.optim.Adam.step",
}
EPOCH = "ldm_filter.training.stepper.Stepper.epoch"


def state_steps(sizes: dict[str, Size], limits: Limits) -> Iterator[Row]:
    """One step of a batch whose transition differs by sequence, as it does where A depends on the state, with all gradients: compiled, and in torch.

    Args:
        sizes: name -> size; the steps are not used.
        limits: of time.
    """
    for name, size in sizes.items():
        yield {"size": name, **_beside_torch(_state_step(size), limits)}


def smoothers(sizes: dict[str, Size], limits: Limits) -> Iterator[Row]:
    """The Rauch-Tung-Striebel smoother of a filtered batch: compiled, and in torch; forward, and with gradients of the filter and the smoother."""
    for name, size in sizes.items():
        for regime in REGIMES:
            for backward in (False, True):
                yield {"size": name, "regime": regime, "backward": backward, **_beside_torch(_smoother(size, regime, backward), limits)}


def profile(budget: str) -> Iterator[Row]:
    """Seconds of each stage of the training steps of a fit of the figure-eight video; what no stage counts is the batches' and the loop's.

    Args:
        budget: of the task ``figure8``.
    """
    data, clock = bench("figure8", budget, 0), _Clock()
    with ExitStack() as patches:
        for stage, place in STAGES.items():
            patches.enter_context(patch(place, clock.stage(resolve_name(place), stage)))
        patches.enter_context(patch(EPOCH, clock.whole(resolve_name(EPOCH))))
        fit_ldm("log-det", data.settings, data)
    spent, everything = clock.spent, clock.everything
    spent["batches and the rest"] = everything - sum(spent.values())
    for stage, seconds in spent.items():
        yield {"stage": stage, "spent": seconds, "share": seconds / everything}


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """What, measured, goal and verdict, of the rows of all three."""
    found = []
    for row in rows:
        if row["part"] == "state steps":
            what = f"one step of a batch whose A differs by sequence, with gradients, {row['size']}: against torch"
            verdict = "reached" if row["ratio"] >= STEP_GOAL else "**short**"
            found.append([what, f"{row['ratio']:.1f} x, {1e6 * row['native']:.0f} µs", f"≥ {STEP_GOAL:.0f}", verdict])
        if row["part"] == "smoothers":
            way = "forward + backward" if row["backward"] else "forward"
            found.append([f"filter and smoother, {row['regime']}, {row['size']}, {way}: against torch", f"{row['ratio']:.0f} x", "", ""])
    shares = [f"{row['stage']} {100 * row['share']:.0f} %" for row in rows if row["part"] == "profile"]
    return [*found, *([["a training step of figure8: where its time goes", ", ".join(shares), "", ""]] if shares else [])]


class _Clock:
    """Seconds of the stages within the epochs; held-out data are judged between them."""

    def __init__(self) -> None:
        self.spent, self.everything, self.within = dict.fromkeys(STAGES, 0.0), 0.0, False

    def stage(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            output = function(*arguments, **named)
            self.spent[name] += self.within * (time.perf_counter() - started)
            return output

        return run

    def whole(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            started, self.within = time.perf_counter(), True
            output = function(*arguments, **named)
            self.everything, self.within = self.everything + time.perf_counter() - started, False
            return output

        return run


def _beside_torch(call: Call, limits: Limits) -> Row:
    """Seconds of both, in turns, and how many times faster the compiled one is.

    Raises:
        ValueError: their outputs differ.
    """
    outputs: dict[str, list[Tensor]] = {}
    took: dict[str, list[float]] = {"native": [], "torch": []}
    for name in took:
        with ldm_filter.backend(name):
            outputs[name] = call()
    error = max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(*outputs.values(), strict=True))
    if not error <= TOLERANCE:
        raise ValueError(f"compiled and torch differ by {error:.1e} of the largest entry")
    for _ in range(limits.repeats):
        for name, seconds in took.items():
            with ldm_filter.backend(name):
                seconds.append(timed(call, max(1, round(limits.block / timed(call, 1)))))
    native, loop = (median(seconds) for seconds in took.values())
    return {"native": native, "torch": loop, "ratio": loop / native, "error": error, "rounds": took["native"]}


def _state_step(size: Size) -> Call:
    data = problem(size._replace(steps=2), "per-sequence")
    batch, n = size.batch, size.n
    generator = torch.Generator().manual_seed(0)
    A = data.A + 0.01 * torch.randn(batch, n, n, generator=generator, dtype=torch.float64)
    given = (A, A[:, :, 0], data.Q, data.C, data.R[:, 0], data.z[:, 0], data.h0.expand(batch, n), data.P0.expand(batch, n, n))
    leaves = [x.detach().clone().requires_grad_() for x in given]
    seen = torch.full((batch,), size.m)

    def call() -> list[Tensor]:
        A, a, Q, C, R, z, mean, cov = leaves
        done = run_step(StepModel(A, a, Q, C, R, seen), z, Gaussian(mean, cov))
        loss = done.filtered.mean.square().sum() + done.filtered.cov.square().sum() + done.log_likelihood.sum()
        return [*(x.detach() for x in done.filtered), *torch.autograd.grad(loss, leaves)]

    return call


def _smoother(size: Size, regime: str, backward: bool) -> Call:
    data = problem(size, regime)
    leaves = [x.detach().clone().requires_grad_() for x in (data.A, data.Q, data.C, data.R, data.z)]

    def smooth() -> Any:
        A, Q, C, R, z = leaves
        ssm = data._replace(A=A, Q=Q, C=C, R=R, z=z).state_space()
        return smooth_sequence(ssm, filter_sequence(ssm, Gaussian(z, R)))

    def call() -> list[Tensor]:
        if backward:
            done = smooth()
            loss = done.smoothed.mean.square().sum() + done.smoothed.cov.square().sum()
            return [done.smoothed.mean.detach(), *torch.autograd.grad(loss, leaves)]
        with torch.no_grad():
            return list(smooth().smoothed)

    return call
