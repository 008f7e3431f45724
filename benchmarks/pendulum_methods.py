"""What is compared on the pendulum images: the filter with and without targets, networks on the same encoder, classical filters, the oracle."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.calibration import KEPT, consistency, variant
from benchmarks.pendulum_classical import CLASSICAL, classical_moments
from benchmarks.pendulum_networks import Encoder, answer, fit_rival
from benchmarks.pendulum_oracle import particle_moments
from benchmarks.pendulum_tasks import SETTINGS, Bench, bench, judge, unfolded, with_gaps
from benchmarks.records import Clock, Outcome, checkpoint
from ldm_filter import LDMFilter, metrics

__all__ = ["default_methods", "run"]

RIVALS = {"gru": True, "encoder": False}
HELD_OUT = 0.05  # of the training sequences, which decide when training is best
CHUNK = 50  # series that are filtered at a time


class Answer(NamedTuple):
    """Mean and covariance of (sin, cos) at every test image, the updates that led there, what kind of read-out it is, further figures."""

    mean: NDArray
    cov: NDArray
    train_steps: int
    readout: str
    extra: dict[str, float] = {}  # noqa: RUF012 (never changed)


def default_methods(task: str, condition: str = "") -> tuple[str, ...]:
    """The learned filter of a task, and everything it must stand beside."""
    settings = SETTINGS[task]
    ours = "ldm-supervised" if settings.supervised else "ldm-conditional-log-det"
    return (ours, *(RIVALS if settings.supervised else ()), *CLASSICAL, "oracle")


def run(task: str, condition: str, method: str, budget: str, seed: int) -> Outcome:
    """Fit a method on training sequences and judge its filtered estimates on test sequences.

    Args:
        task: a key of ``SETTINGS``. condition: ``""``.
        method: ``oracle``, ``pca-em-kf``, ``pca-affine``, ``gru``, ``encoder`` (single images), ``ldm-supervised``, or ``ldm-<objective>``
            without targets, with an MLP read-out fitted afterwards.
        budget: ``smoke | cpu | full``. seed: of the data and of the method.

    Raises:
        ValueError: an unknown task, method or budget.
    """
    data = bench(task, budget, seed)
    started, clock = time.perf_counter(), Clock()
    found = _answer(method, data, clock)
    figures = judge(found.mean, found.cov, data.test.target) | found.extra
    return Outcome(figures, found.readout, time.perf_counter() - started, found.train_steps)


def _answer(method: str, data: Bench, clock: Clock) -> Answer:
    if method == "oracle":
        return Answer(*particle_moments(data.settings.data, data.test, data.settings.particles, data.seed), 0, "none", clock.read())
    if method in RIVALS:
        device = torch.device("cuda" if data.settings.device == "auto" and torch.cuda.is_available() else "cpu")
        model, updates = fit_rival(data, RIVALS[method], device)
        spent = clock.read()
        return Answer(*answer(model, data.test.frames, data.test.stamps, device), updates, "supervised", spent)
    if method in CLASSICAL:
        moments, iterations, extra = classical_moments(method, data, clock)
        return Answer(*moments, iterations, "affine", extra)
    if method.startswith("ldm-"):
        return _learned(method.removeprefix("ldm-"), data, clock)
    raise ValueError(f"method is {method!r}, expected oracle, {', '.join(CLASSICAL)}, {', '.join(RIVALS)}, ldm-supervised or ldm-<objective>")


def _learned(objective: str, data: Bench, clock: Clock) -> Answer:
    settings, supervised = data.settings, objective == "supervised"
    images, targets = unfolded(data.train, data.steps)
    torch.manual_seed(data.seed)
    model = LDMFilter(
        settings.state_dim,
        settings.latent_dim,
        # Without targets a network that is free to say R finds ways to please the objective: R then follows the image's noise features alone.
        encoder=Encoder(2 * settings.latent_dim if supervised else settings.latent_dim),
        dynamics=settings.dynamics,
        noise="input",
        objective="auto" if supervised else objective,
        learning_rate=settings.learning_rate,
        dynamics_rate=settings.dynamics_rate,
        seed=data.seed,
        device=settings.device,
    )
    held = round(HELD_OUT * settings.series)
    training: dict[str, Any] = {"validation": images[:held]}
    if supervised:
        training |= {"targets": targets[held:], "validation_targets": targets[:held], "warm_up": settings.warm_up, "supervision": 1.0}
    shown = with_gaps(images[held:], settings, data.seed) if settings.gapped else images[held:]
    model.fit(shown, epochs=settings.epochs, batch_size=settings.batch_size, progress=False, checkpoint=checkpoint(), **training)
    spent = clock.read()
    extra = spent if supervised else spent | _affine(model, data)
    if not supervised:
        rows = slice(held, held + settings.readout)
        model.fit_readout(images[rows], targets[rows], kind="mlp", covariance="state-dependent")
    updates = len(model.history_.epochs) * -(-(settings.series - held) // settings.batch_size)
    mean, cov, nis = _filtered(model, data)
    extra |= consistency(nis) | _calibrated(model, data, images[:held], targets[:held])
    if not supervised:
        extra["mlp_r2"] = float(metrics.r2(mean, data.test.target))  # its read-out is one
    return Answer(mean, cov, updates, "supervised" if supervised else "MLP", extra)


def _calibrated(model: LDMFilter, data: Bench, images: NDArray, targets: NDArray) -> dict[str, float]:
    """Figures with covariances set on the sequences that chose the epoch: by one factor, and turned with the estimate."""
    figures: dict[str, float] = {}
    for covariance, name in (("scaled", "scaled"), ("state-dependent", "turned")):
        model.calibrate_targets(images, targets, covariance)
        figures |= variant(judge(*_filtered(model, data)[:2], data.test.target), name, (*KEPT, "nll_full"))
    return figures


def _filtered(model: LDMFilter, data: Bench) -> tuple[NDArray, NDArray, NDArray]:
    """Target mean, its covariance and NIS / m at the test images."""
    parts = []
    for start in range(0, len(data.test.frames), CHUNK):
        rows = slice(start, start + CHUNK)
        result = model.filter(unfolded(data.test, data.steps, rows)[0])
        stamps = data.test.stamps[rows]
        series = np.arange(len(stamps))[:, None]
        parts.append([getattr(result, name).values[series, stamps] for name in ("target_mean", "target_cov", "nis")])
    mean, cov, nis = (np.concatenate(part) for part in zip(*parts, strict=True))
    return mean, cov, nis


def _affine(model: LDMFilter, data: Bench) -> dict[str, float]:
    """R2 of an affine read-out of the filtered state, fitted on the sequences that the read-out may use."""
    rows, some = slice(data.settings.readout), slice(min(200, data.settings.test))
    known, test = (model.filter(unfolded(drawn, data.steps, part)[0]).filtered_mean.values for drawn, part in ((data.train, rows), (data.test, some)))
    return {"affine_r2": float(metrics.affine_r2(known, data.train.target[rows], test, data.test.target[some]))}
