"""What is compared on the dot videos: the learned filter, the classical ones, the exact one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.dot_judge import Estimate, evaluate, evaluate_oracle
from benchmarks.dot_tasks import SETTINGS, VARIANTS, Bench, Settings, bench
from benchmarks.records import Clock, Outcome, checkpoint
from ldm_filter import LDMFilter, metrics
from ldm_filter.baselines import PCAKalman
from ldm_filter.core.kalman import filter_sequence

__all__ = ["BASELINES", "default_methods", "fit_ldm", "run"]

BASELINES = ("pca-em-kf", "pca-em-kf-adaptive", "pca-affine")
LIMIT_SECONDS = 60.0


class Fitted(NamedTuple):
    """A trained method: frames -> estimate, and how many updates (of gradients, or of EM) made it."""

    estimate: Callable[[NDArray], Estimate]
    train_steps: int


def default_methods(task: str, condition: str = "") -> tuple[str, ...]:
    """The learned filter with the objective that ``LDMFilter`` takes by default there, and everything it must stand beside."""
    ours = "ldm-conditional-log-det" if SETTINGS[task].noise == "input" else "ldm-log-det"
    variants = {"jump": ("free", "adaptive", "constant"), "state-noise": ("dot", "state")}.get(task, ())
    return (ours, *(f"{ours}+{variant}" for variant in variants), *BASELINES, "oracle")


def run(task: str, condition: str, method: str, budget: str, seed: int) -> Outcome:
    """Fit a method on training frames, read the position out, and judge it on test sequences.

    Args:
        task: a key of ``SETTINGS``. condition: ``""``.
        method: ``oracle``, one of ``BASELINES``, or ``ldm-<objective>`` with an objective of LDMFilter, or ``ldm-<objective>+<variant>`` with one
            of ``VARIANTS``.
        budget: ``smoke | cpu | full``.
        seed: of the data and of the method.

    Raises:
        ValueError: an unknown task, method or budget.
    """
    data = bench(task, budget, seed)
    oracle = data.oracle  # every method is compared with it; it is no part of their time
    if method == "oracle":
        return Outcome(evaluate_oracle(data), "none", oracle.seconds, 0)
    started = time.perf_counter()
    clock = Clock()
    fitted = _fit(method, data.settings, data)
    spent = clock.read()
    figures = evaluate(fitted.estimate(data.readout.frames), fitted.estimate(data.test.frames), data) | spent
    seconds = time.perf_counter() - started
    if data.settings.timed and method.startswith("ldm-"):
        figures |= _within_limit(method, data, spent["fit_cpu_seconds"], figures["r2"])
    return Outcome(figures, "affine", seconds, fitted.train_steps)


def _fit(method: str, settings: Settings, data: Bench) -> Fitted:
    if method.startswith("ldm-"):
        return fit_ldm(method.removeprefix("ldm-"), settings, data)
    if method == "pca-affine":
        return _fit_pca(settings, data)
    if method in BASELINES:
        return _fit_pca_kalman(settings, data, adaptive=method.endswith("-adaptive"))
    raise ValueError(f"method is {method!r}, expected oracle, {', '.join(BASELINES)} or ldm-<objective>")


def fit_ldm(name: str, settings: Settings, data: Bench) -> Fitted:
    objective, _, variant = name.partition("+")
    if variant and variant not in VARIANTS:
        raise ValueError(f"method is 'ldm-{name}', expected one of {', '.join(VARIANTS)} after the plus")
    settings = replace(settings, **VARIANTS.get(variant, {}))  # type: ignore[arg-type]
    model = LDMFilter(
        settings.state_dim,
        settings.latent_dim,
        encoder=settings.encoder,
        dynamics=settings.dynamics,
        noise=settings.noise,
        settle_within=settings.settle_within,
        objective=objective,
        readout="linear",  # to the pixels, which nothing here judges
        learning_rate=settings.learning_rate,
        dynamics_rate=settings.dynamics_rate,
        seed=data.seed,
        device=settings.device,
    )
    going_on = checkpoint() if settings == data.settings else None  # not for the shorter fit within a limit
    model.fit(data.train, epochs=settings.epochs, batch_size=settings.batch_size, validation=0.1, progress=False, checkpoint=going_on)

    def estimate(frames: NDArray) -> Estimate:
        result = model.filter(frames)
        noise_cov = result.latent_cov.values if settings.noise == "input" else None
        predicted = result.predicted_cov.values if settings.noise in ("adaptive", "jump") else None
        return Estimate(result.filtered_mean.values, result.filtered_cov.values, result.nis.values, noise_cov, predicted)

    kept = len(data.train) - round(0.1 * len(data.train))
    return Fitted(estimate, len(model.history_.epochs) * -(-kept // settings.batch_size))


def _fit_pca_kalman(settings: Settings, data: Bench, adaptive: bool) -> Fitted:
    model = PCAKalman(*settings.baseline, adaptive_noise=adaptive).fit(data.train)

    def estimate(frames: NDArray) -> Estimate:
        measured = model.measure(frames)
        result = filter_sequence(model.model_.ssm, measured)
        shape = (*result.filtered.mean.shape, settings.baseline[0])
        projected, m = result.projected, settings.baseline[1]
        nis = metrics.nis(projected.mean, projected.cov.expand(*projected.mean.shape, m), measured.mean, normalised=True)
        varies = adaptive and settings.noise == "input"
        return Estimate(result.filtered.mean.numpy(), result.filtered.cov.expand(shape).numpy(), nis, _numpy(measured.cov, varies))

    return Fitted(estimate, len(model.log_likelihood_) - 1)


def _fit_pca(settings: Settings, data: Bench) -> Fitted:
    """Principal components without a filter: each frame on its own."""
    components = settings.baseline[1]
    model = PCAKalman(components, components, iterations=0).fit(data.train)

    def estimate(frames: NDArray) -> Estimate:
        mean = model.measure(frames).mean.numpy()
        return Estimate(mean, np.zeros((*mean.shape, components)))

    return Fitted(estimate, 0)


def _numpy(tensor: torch.Tensor, wanted: bool) -> NDArray | None:
    return tensor.numpy() if wanted else None


def _within_limit(method: str, data: Bench, seconds: float, r2: float) -> dict[str, float]:
    """R2 of a fit that took at most 60 s of CPU time: of the main one, or of one with as many epochs as that allows (its schedule ends with it)."""
    settings = data.settings
    while seconds > LIMIT_SECONDS:
        epochs = int(settings.epochs * 0.85 * LIMIT_SECONDS / seconds)
        if epochs < 1:
            return {}
        settings = replace(settings, epochs=epochs)
        clock = Clock()
        fitted = _fit(method, settings, data)
        seconds = clock.read()["fit_cpu_seconds"]
        r2 = evaluate(fitted.estimate(data.readout.frames), fitted.estimate(data.test.frames), data)["r2"]
    return {"r2_at_60s": r2, "seconds_at_60s": seconds}
