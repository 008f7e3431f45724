"""What is compared on the Lorenz images, and what each method knows.

| method | knows |
|---|---|
| `ldm-polynomial` | frames and the states of all training series |
| `ldm-log-det` | frames; the states of some series for an affine read-out |
| `pca-em-kf`, `pca-affine` | as the second |
| `oracle` | the equations, the renderer, all noise levels |
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.calibration import consistency, variant
from benchmarks.lorenz_image_oracle import particle_moments
from benchmarks.lorenz_image_tasks import Bench, bench, judge
from benchmarks.records import Clock, Outcome, checkpoint
from datasets.lorenz_images import SIZE
from ldm_filter import LDMFilter, metrics
from ldm_filter.baselines import PCAKalman
from ldm_filter.core.kalman import filter_sequence

__all__ = ["default_methods", "run"]

HELD_OUT = 0.05  # of the training videos, which decide when training is best
CHUNK = 50  # series that are filtered at a time


class Answer(NamedTuple):
    """Mean and covariance of the state at every test frame, the updates that led there, the kind of read-out, further figures."""

    mean: NDArray
    cov: NDArray
    train_steps: int
    readout: str
    extra: dict[str, float]


class Encoder(nn.Module):
    """Images ``(N, 28, 28)`` -> ``(N, outputs)``: 16 filters of 8x8 pixels every 4 pixels, two dense layers."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        side = (SIZE + 4 - 8) // 4 + 1
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, SIZE)),
            nn.Conv2d(1, 16, 8, stride=4, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * side**2, 128),
            nn.LayerNorm(128),
            nn.SiLU(),
            nn.Linear(128, outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def default_methods(task: str, condition: str = "") -> tuple[str, ...]:
    """The learned filters with and without states, and everything they must stand beside."""
    return ("ldm-polynomial", "ldm-log-det", "pca-em-kf", "pca-affine", "oracle")


def run(task: str, condition: str, method: str, budget: str, seed: int) -> Outcome:
    """Fit a method on training videos and judge its filtered estimates of the state on test videos.

    Args:
        task: ``lorenz-images``. condition: one of its ``CONDITIONS``.
        method: ``ldm-polynomial``, ``pca-em-kf``, ``pca-affine``, ``oracle``, or ``ldm-<objective>`` without states, with an affine read-out.
        budget: ``smoke | cpu | full``. seed: of the data and of the method.

    Raises:
        ValueError: an unknown task, condition, method or budget.
    """
    data = bench(task, condition, budget, seed)
    started, clock = time.perf_counter(), Clock()
    found = _answer(method, data, clock)
    figures = judge(found.mean, found.cov, data.test.states) | found.extra
    return Outcome(figures, found.readout, time.perf_counter() - started, found.train_steps)


def _answer(method: str, data: Bench, clock: Clock) -> Answer:
    chosen = data.settings
    if method == "oracle":
        moments = particle_moments(data.test.frames, data.share, chosen.particles, chosen.first, data.seed)
        return Answer(*moments, 0, "none", clock.read())
    if method in ("pca-em-kf", "pca-affine"):
        return _classical(data, clock, filtered=method == "pca-em-kf")
    if method.startswith("ldm-"):
        return _learned(method.removeprefix("ldm-"), data, clock)
    raise ValueError(f"method is {method!r}, expected oracle, pca-em-kf, pca-affine, ldm-polynomial or ldm-<objective>")


def _learned(kind: str, data: Bench, clock: Clock) -> Answer:
    chosen, supervised = data.settings, kind == "polynomial"
    torch.manual_seed(data.seed)
    latents = 3 if supervised else chosen.latent_dim
    own: dict[str, Any] = {"dynamics": "polynomial"} if supervised else {"objective": kind}
    model = LDMFilter(
        3 if supervised else chosen.state_dim,
        latents,
        encoder=Encoder(latents),
        readout="linear",
        window=chosen.window,
        learning_rate=chosen.learning_rate,
        dynamics_rate=chosen.dynamics_rate,
        seed=data.seed,
        device=chosen.device,
        **own,
    )
    frames, states, held = _grey(data.train.frames), data.train.states, max(2, round(HELD_OUT * chosen.series))
    training: dict[str, Any] = {"validation": frames[:held]}
    if supervised:
        training |= {"targets": states[held:], "validation_targets": states[:held], "warm_up": chosen.warm_up}
    epochs = chosen.epochs if supervised else chosen.free_epochs
    model.fit(frames[held:], epochs=epochs, batch_size=chosen.batch_size, progress=False, checkpoint=checkpoint(), **training)
    spent = clock.read()
    if not supervised:
        rows = slice(held, held + chosen.readout)
        model.fit_readout(frames[rows], states[rows], kind="linear", covariance="constant")
    windows = (chosen.series - held) * -(-chosen.steps // chosen.window)
    updates = len(model.history_.epochs) * -(-windows // chosen.batch_size)
    del frames
    mean, cov, nis = _filtered(model, data)
    extra = spent | consistency(nis) | _calibrated(model, data, held)
    return Answer(mean, cov, updates, "supervised" if supervised else "affine", extra)


def _filtered(model: LDMFilter, data: Bench) -> tuple[NDArray, NDArray, NDArray]:
    """Mean and covariance of the state, and NIS / m, at the test frames."""
    pieces = np.array_split(data.test.frames, max(1, len(data.test.frames) // CHUNK))
    results = [model.filter(_grey(piece)) for piece in pieces]
    mean, cov, nis = (np.concatenate([getattr(result, name).values for result in results]) for name in ("target_mean", "target_cov", "nis"))
    return mean, cov, nis


def _calibrated(model: LDMFilter, data: Bench, held: int) -> dict[str, float]:
    """Figures with covariances set on the ``held`` videos that chose the epoch: by one factor, and turned with the estimate."""
    figures: dict[str, float] = {}
    for covariance, name in (("scaled", "scaled"), ("state-dependent", "turned")):
        model.calibrate_targets(_grey(data.train.frames[:held]), data.train.states[:held], covariance)
        figures |= variant(judge(*_filtered(model, data)[:2], data.test.states), name)
    return figures


def _grey(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (frames / np.float32(255)).astype(np.float32)


def _classical(data: Bench, clock: Clock, filtered: bool) -> Answer:
    """Principal components with an affine read-out: of single frames, or of an EM-fitted filter."""
    states, components = data.settings.baseline
    some = slice(data.settings.readout)
    model = PCAKalman(states if filtered else components, components, iterations=50 if filtered else 0).fit(_grey(data.train.frames[some]))
    spent = clock.read()

    def estimate(frames: NDArray) -> tuple[NDArray, NDArray]:
        measured = model.measure(_grey(frames))
        if not filtered:
            mean = measured.mean.numpy()
            return mean, np.zeros((*mean.shape, components))
        belief = filter_sequence(model.model_.ssm, measured).filtered
        return belief.mean.numpy(), belief.cov.expand(*belief.mean.shape, states).numpy()

    known, known_cov = estimate(data.train.frames[some])
    fit = metrics.affine_fit(known, data.train.states[some])
    test, test_cov = estimate(data.test.frames)
    cov = metrics.decoded_covariance(fit.matrix, test_cov, fit.residual_cov, reference=known_cov)
    return Answer(fit.apply(test), cov, len(model.log_likelihood_) - 1, "affine", spent)
