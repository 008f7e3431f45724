"""What is compared on videos with known causes: the learned filter, classical filters of principal components and of the centroid, the exact one.

The centroid of brightness is what a tracker would measure by hand; ``pca-…`` and ``ldm-…`` see pixels only. Actions are known to ``ldm-…`` alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.records import Clock, Outcome
from benchmarks.scene_tasks import SETTINGS, Bench, Estimate, Split, bench, evaluate, judge
from datasets import bouncing_ball
from ldm_filter import LDMFilter, metrics
from ldm_filter.baselines import ConstantVelocity, PCAKalman, hold_last, linear_interpolation
from ldm_filter.core.kalman import filter_sequence
from ldm_filter.core.smoothing import smooth_sequence

__all__ = ["default_methods", "run"]

OF_HIDDEN = ("pca-em-kf", "cv-kf", "hold-last", "linear-interpolation")
OF_SHOWN = ("pca-em-kf", "pca-affine")


class Fitted(NamedTuple):
    """A trained method: a split -> its estimate of states; how many updates made it."""

    estimate: Callable[[Split], Estimate]
    train_steps: int


def default_methods(task: str, condition: str = "") -> tuple[str, ...]:
    """The learned filter and everything it must stand beside."""
    chosen = SETTINGS[task]
    oracle = ("oracle",) if task == "bouncing-ball" else ()
    return (f"ldm-{chosen.dynamics}", *(OF_SHOWN if chosen.hidden is None else OF_HIDDEN), *oracle)


def run(task: str, condition: str, method: str, budget: str, seed: int) -> Outcome:
    """Fit a method on training videos, read the truth out, and judge it on test videos.

    Args:
        task: a key of ``SETTINGS``. condition: ``""``.
        method: ``oracle`` (bouncing-ball), one of the baselines, or ``ldm-<dynamics>`` with dynamics of LDMFilter.
        budget: ``smoke | cpu | full``.
        seed: of the data and of the method.

    Raises:
        ValueError: an unknown task, method or budget.
    """
    data = bench(task, budget, seed)
    started, clock = time.perf_counter(), Clock()
    if method == "oracle" and task == "bouncing-ball":
        mean, cov = _exact_ball(data.test)
        return Outcome(judge(mean, cov, data), "none", time.perf_counter() - started, 0)
    fitted = _fit(method, data)
    spent = clock.read()
    figures = evaluate(fitted.estimate(data.readout), fitted.estimate(data.test), data) | spent
    return Outcome(figures, "affine", time.perf_counter() - started, fitted.train_steps)


def _fit(method: str, data: Bench) -> Fitted:
    if method.startswith("ldm-"):
        return _fit_ldm(method.removeprefix("ldm-"), data)
    if method in ("pca-em-kf", "pca-affine"):
        return _fit_pca(data, filtered=method == "pca-em-kf")
    if method == "cv-kf":
        return _fit_constant_velocity(data)
    if method in ("hold-last", "linear-interpolation"):
        fill = hold_last if method == "hold-last" else linear_interpolation
        return Fitted(lambda part: _certain(fill(_centroid(part.frames))), 0)
    raise ValueError(f"method is {method!r}, expected {', '.join(dict.fromkeys((*OF_HIDDEN, *OF_SHOWN)))}, ldm-<dynamics>, or oracle (bouncing-ball)")


def _fit_ldm(dynamics: str, data: Bench) -> Fitted:
    chosen = data.settings
    model = LDMFilter(
        chosen.state_dim,
        chosen.latent_dim,
        encoder=chosen.encoder,
        dynamics=dynamics,
        objective=chosen.objective,
        readout="linear",
        window=chosen.window,
        learning_rate=chosen.learning_rate,
        dynamics_rate=chosen.dynamics_rate,
        patience=chosen.patience,
        seed=data.seed,
        device=chosen.device,
    )
    frames = _with_gaps(data)
    model.fit(frames, inputs=data.train.actions, epochs=chosen.epochs, batch_size=chosen.batch_size, progress=False)
    kind = "filtered" if chosen.hidden is None else "smoothed"

    def estimate(part: Split) -> Estimate:
        result = model.filter(part.frames, inputs=part.actions) if kind == "filtered" else model.smooth(part.frames, inputs=part.actions)
        return Estimate(result[f"{kind}_mean"].values, result[f"{kind}_cov"].values, result.nis.values)

    kept = len(frames) - round(0.1 * len(frames))
    windows = kept * max(1, chosen.steps // (chosen.window or chosen.steps))
    return Fitted(estimate, len(model.history_.epochs) * -(-windows // chosen.batch_size))


def _with_gaps(data: Bench) -> NDArray[np.float32]:
    """Training frames, with a run of frames hidden, at a random place, in some of the sequences."""
    chosen, frames = data.settings, data.train.frames
    if chosen.hidden is None or not chosen.gaps:
        return frames
    rng, length = np.random.default_rng([data.seed, 3100]), chosen.hidden.stop - chosen.hidden.start
    frames = frames.copy()
    for place in rng.choice(len(frames), int(chosen.gaps * len(frames)), replace=False):
        start = rng.integers(2, chosen.steps - length)
        frames[place, start : start + length] = np.nan
    return frames


def _fit_pca(data: Bench, filtered: bool) -> Fitted:
    """Principal components with a linear filter by EM, or, unfiltered, frame by frame."""
    states, components = data.settings.baseline
    model = PCAKalman(states if filtered else components, components, iterations=50 if filtered else 0).fit(data.train.frames)

    def estimate(part: Split) -> Estimate:
        seen = torch.as_tensor(~np.isnan(part.frames).any((2, 3)))
        measured = model.measure(np.nan_to_num(part.frames))
        if not filtered:
            return _certain(measured.mean.numpy())
        ssm = model.model_.ssm
        result = filter_sequence(ssm, measured, seen)
        belief = result.filtered if data.settings.hidden is None else smooth_sequence(ssm, result).smoothed
        projected = result.projected
        nis = metrics.nis(projected.mean, projected.cov.expand(*projected.mean.shape, components), measured.mean, seen.numpy(), normalised=True)
        return Estimate(belief.mean.numpy(), belief.cov.expand(*belief.mean.shape, states).numpy(), nis)

    return Fitted(estimate, len(model.log_likelihood_) - 1)


def _fit_constant_velocity(data: Bench) -> Fitted:
    hidden = data.settings.hidden
    assert hidden is not None
    model = ConstantVelocity().fit(_centroid(data.train.frames), gap=min(hidden.stop - hidden.start, data.settings.steps // 3))

    def estimate(part: Split) -> Estimate:
        found = model.smooth(_centroid(part.frames), observation_noise=False)
        return Estimate(found.mean, np.square(found.std)[..., None] * np.eye(2))

    return Fitted(estimate, 0)


def _centroid(frames: NDArray) -> NDArray:
    """Mean place of brightness, (x, y) in pixels, NaN where hidden; brightness below a third of the brightest is background."""
    values = np.asarray(frames, dtype=float)
    values = np.where(values < 1.0 / 3.0, 0.0, values)  # keeps NaN
    total = values.sum((2, 3))
    y, x = (np.arange(size) + 0.5 for size in values.shape[2:])
    return np.stack([values.sum(2) @ x, values.sum(3) @ y], axis=-1) / total[..., None]


def _certain(mean: NDArray) -> Estimate:
    """A mean without a covariance of its own: the read-out's residuals give it one."""
    return Estimate(mean, np.zeros((*mean.shape, mean.shape[-1])))


def _exact_ball(test: Split, steps: int = 10, starts: int = 61) -> tuple[NDArray, NDArray]:
    """The path of exact reflections through the centroids that are seen, by least squares: Gauss-Newton from several velocities, the best kept.

    Returns:
        Positions ``(N, 2)`` at the judged steps and their covariance.
    """
    seen = _centroid(test.frames)
    shown = ~np.isnan(seen[0, :, 0])
    elapsed = bouncing_ball.STEP * np.arange(seen.shape[1])
    best, error = np.zeros((*seen.shape[::2], 2)), np.full((len(seen), 2), np.inf)
    for velocity in np.linspace(-bouncing_ball.FASTEST, bouncing_ball.FASTEST, starts):
        # Each coordinate moves by itself: (position, velocity) at the first frame.
        found = np.stack([seen[:, 0], np.full_like(seen[:, 0], velocity)], axis=-1)
        for _ in range(steps):
            path, slope = _path(found, elapsed[shown])
            rest = seen[:, shown].swapaxes(1, 2) - path
            found = found + np.linalg.solve(slope.swapaxes(-1, -2) @ slope + 1e-9 * np.eye(2), slope.swapaxes(-1, -2) @ rest[..., None])[..., 0]
        rest = np.square(seen[:, shown].swapaxes(1, 2) - _path(found, elapsed[shown])[0]).sum(-1)
        better = rest < error
        best[better], error[better] = found[better], rest[better]
    path, slope = _path(best, elapsed)
    noise = error.mean() / (shown.sum() - 2)
    information = slope[:, :, shown].swapaxes(-1, -2) @ slope[:, :, shown] + 1e-9 * np.eye(2)
    variance = noise * np.einsum("ncti,ncij,nctj->nct", slope, np.linalg.inv(information), slope)
    return path.swapaxes(1, 2)[test.asked], (variance.swapaxes(1, 2)[..., None] * np.eye(2))[test.asked]


def _path(start: NDArray, elapsed: NDArray) -> tuple[NDArray, NDArray]:
    """Positions ``(N, 2, T)`` of (position, velocity) at the first frame ``(N, 2, 2)``, and their derivatives ``(N, 2, T, 2)``."""
    position, velocity = bouncing_ball.reflect(start[..., :1], start[..., 1:], elapsed)
    sign = np.where(velocity * start[..., 1:] >= 0, 1.0, -1.0)
    return position, np.stack([sign, sign * elapsed], axis=-1)
