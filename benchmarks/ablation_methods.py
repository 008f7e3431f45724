"""Runs the ablations: the learned filter of a dot-video task with one thing changed, on that task's data and by its judge."""

from __future__ import annotations

import time
from typing import Any

from numpy.typing import NDArray

from benchmarks.ablations import ABLATIONS, Variant
from benchmarks.dot_judge import Estimate, evaluate
from benchmarks.dot_tasks import Bench, bench
from benchmarks.records import Clock, Outcome, checkpoint
from ldm_filter import LDMFilter

__all__ = ["CONDITIONS", "default_methods", "run"]

CONDITIONS: dict[str, tuple[str, ...]] = {task: tuple(c for t, c in ABLATIONS if t == task) for task, _ in ABLATIONS}


def default_methods(task: str, condition: str) -> tuple[str, ...]:
    """All variants of an ablation."""
    return tuple(ABLATIONS[task, condition].variants)


def run(task: str, condition: str, method: str, budget: str, seed: int) -> Outcome:
    """Fit a variant and judge it as the task judges its own filter.

    Raises:
        ValueError: an unknown task, condition, method or budget.
    """
    if (task, condition) not in ABLATIONS:
        raise ValueError(f"condition is {condition!r}, expected one of {CONDITIONS.get(task, ())} for {task}")
    variants = ABLATIONS[task, condition].variants
    if method not in variants:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(variants)}")
    data = bench(task, budget, seed)
    started, clock = time.perf_counter(), Clock()
    model = _fit(variants[method], data)
    spent = clock.read()
    readout, test = (_estimate(model, variants[method], part.frames) for part in (data.readout, data.test))
    figures = evaluate(readout, test, data) | spent
    return Outcome(figures, "affine", time.perf_counter() - started, len(model.history_.epochs))


def _fit(variant: Variant, data: Bench) -> LDMFilter:
    settings = data.settings
    arguments: dict[str, Any] = {
        **{"state_dim": settings.state_dim, "latent_dim": settings.latent_dim, "encoder": settings.encoder, "noise": settings.noise},
        **{"learning_rate": settings.learning_rate, "dynamics_rate": settings.dynamics_rate, "device": settings.device},
        **{"readout": "linear", "seed": data.seed, **variant.changes},
    }
    model = LDMFilter(**arguments)
    going_on = checkpoint()
    return model.fit(data.train, epochs=settings.epochs, batch_size=settings.batch_size, validation=0.1, progress=False, checkpoint=going_on)


def _estimate(model: LDMFilter, variant: Variant, frames: NDArray) -> Estimate:
    result = model.filter(frames)
    if variant.judged == "latent":
        return Estimate(result.latent_mean.values, result.latent_cov.values)
    noise_cov = result.latent_cov.values if model.noise == "input" else None
    return Estimate(result.filtered_mean.values, result.filtered_cov.values, result.nis.values, noise_cov)
