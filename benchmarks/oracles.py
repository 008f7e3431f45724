"""The best any filter can do on the dot videos: exact Bayes filters that know the generator.

Every motion of ``datasets.dots`` is a phase on a circle, so its belief is a density on the circle, held on a fine grid:

    predict   p(a_t | y_<t) = sum_a' k(a_t - a') p(a' | y_<t)      k: the true transition density of the phase
    update    p(a_t | y_<=t) ~ N(y_t; frame(a_t), v_t I) p(a_t | y_<t)
    report    E[position(a_t)], Cov[position(a_t)], log p(y_t | y_<t)

The sum over the grid is the trapezoidal rule on a periodic function, which is exact to rounding as soon as the spacing is
below the width of what is integrated. No parameter is learned or tuned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from datasets.dots import Circle, Dots, Figure8, Square, StateNoise, Task, find_task

__all__ = ["OracleResult", "bayes_filter", "offset_normal_density"]

Motion = Figure8 | Square | Circle
CIRCLE_POINTS, CLOCK_POINTS = 720, 7200


class OracleResult(NamedTuple):
    """What the exact filter knows after each frame.

    Attributes:
        mean: ``(series, steps, 2)`` float64, E[position_t | frames up to t].
        cov: ``(series, steps, 2, 2)`` float64, its covariance.
        predicted_cov: of the same shape, Cov[position_t | frames before t].
        log_likelihood: ``(series, steps)`` float64, log p(frame_t | frames before t), all constants included.
    """

    mean: NDArray[np.float64]
    cov: NDArray[np.float64]
    predicted_cov: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]


def bayes_filter(task: str | Task, dots: Dots, points: int | None = None) -> OracleResult:
    """Exact filtered position, covariance and likelihood of dot videos, given the truth about the generator.

    The filter sees ``dots.frames`` and the true ``dots.noise_var`` of each frame (on ``state-noise`` it sees the frames
    only: there the variance is a function of the state); it never looks at the position.

    Args:
        task: a key of ``datasets.dots.TASKS``, or the ``Task`` that the videos were drawn from.
        dots: the videos, from ``datasets.dots.generate(task, ...)``.
        points: grid points on the circle; default 720, and 7200 for figure8 and square, whose phase is a perfect clock and
            ends up known to a fraction of a degree.

    Returns:
        ``OracleResult``, positions in the motion's units.

    Raises:
        ValueError: an unknown task, frames of another size, or a grid too coarse for the motion.

    >>> from datasets.dots import generate
    >>> videos = generate("circular-constant-noise", series=4, steps=30)
    >>> error = bayes_filter("circular-constant-noise", videos).mean - videos.position
    >>> bool((error**2).mean() < 0.02)
    True
    """
    chosen = find_task(task)
    size = chosen.screen.size
    if dots.frames.ndim != 4 or dots.frames.shape[2:] != (size, size):
        raise ValueError(f"dots.frames has shape {dots.frames.shape}; this task has frames (series, steps, {size}, {size})")
    if points is None:
        points = CIRCLE_POINTS if isinstance(chosen.motion, Circle) else CLOCK_POINTS
    position = chosen.motion.position(_grid(points))
    predict = _transition(chosen.motion, points)
    log_density = _frame_density(chosen, position)
    series, steps = dots.frames.shape[:2]
    shape = (series, steps, 2)
    result = OracleResult(np.empty(shape), np.empty((*shape, 2)), np.empty((*shape, 2)), np.empty((series, steps)))
    belief = np.full((series, points), 1 / points)
    for step in range(steps):
        prior = belief if step == 0 else predict(belief)
        belief, result.log_likelihood[:, step] = _update(prior, log_density(dots.frames[:, step], dots.noise_var[:, step]))
        result.mean[:, step], result.cov[:, step] = _moments(belief, position)
        result.predicted_cov[:, step] = _moments(prior, position)[1]
    return result


def _moments(belief: NDArray, position: NDArray) -> tuple[NDArray, NDArray]:
    """Mean ``(series, 2)`` and covariance ``(series, 2, 2)`` of the position."""
    mean = belief @ position
    second = (belief @ (position[:, :, None] * position[:, None, :]).reshape(-1, 4)).reshape(-1, 2, 2)
    return mean, second - mean[:, :, None] * mean[:, None, :]


def offset_normal_density(offset: NDArray, variance: float) -> NDArray:
    """Density of the angle between u and normalise(u + sqrt(variance) N(0, I)), for a unit vector u in the plane.

        f(d) = exp(-1 / 2q) / 2 pi + cos d / sqrt(2 pi q) Phi(cos d / sqrt q) exp(-sin^2 d / 2q),    q = variance

    Args:
        offset: d, any shape, radians.
        variance: q > 0.

    Returns:
        The density per radian, of the shape of ``offset``; it integrates to 1 over a round.

    Source:
        The projected (offset) normal distribution, Mardia and Jupp, Directional Statistics (2000), section 3.5.6.
    """
    toward = np.cos(offset) / math.sqrt(variance)
    bump = toward * ndtr(toward) * np.exp(-0.5 * np.sin(offset) ** 2 / variance)
    return math.exp(-0.5 / variance) / (2 * math.pi) + bump / math.sqrt(2 * math.pi)


def _grid(points: int) -> NDArray:
    return np.arange(points) * (2 * math.pi / points)


def _transition(motion: Motion, points: int) -> Callable[[NDArray], NDArray]:
    """The prediction step: belief ``(series, points)`` at one frame -> at the next."""
    rate, jump = (motion.jump_rate, motion.jump_angle) if isinstance(motion, Circle) else (0.0, 0.0)
    moves = [(motion.turn, 1 - rate), (motion.turn + jump, rate)]
    diffusion = motion.diffusion if isinstance(motion, Circle) else 0.0
    spacing = 2 * math.pi / points
    if diffusion == 0:
        shifts = [(_whole_points(angle, points), chance) for angle, chance in moves if chance > 0]
        return lambda belief: sum((chance * np.roll(belief, shift, axis=-1) for shift, chance in shifts), np.zeros_like(belief))
    if math.sqrt(diffusion) < spacing:
        raise ValueError(
            f"points is {points}: a spacing of {spacing:.2g} rad cannot hold process noise of {math.sqrt(diffusion):.2g} rad; take more points"
        )
    difference = _grid(points)[None, :] - _grid(points)[:, None]
    kernel = sum((chance * offset_normal_density(difference - angle, diffusion) for angle, chance in moves), np.zeros_like(difference))
    kernel *= spacing
    return lambda belief: belief @ kernel


def _whole_points(angle: float, points: int) -> int:
    """The rotation as a number of grid points; without process noise it must be a whole one."""
    shift = angle * points / (2 * math.pi)
    if abs(shift - round(shift)) > 1e-6:
        raise ValueError(
            f"points is {points}: a rotation by {math.degrees(angle):.4g} degrees is {shift:.4g} grid points; take a multiple that makes it whole"
        )
    return round(shift)


def _frame_density(task: Task, position: NDArray) -> Callable[[NDArray, NDArray], NDArray]:
    """log N(frame; render(position), v I) of frames ``(series, y, x)`` at all grid points: ``(series, points)``."""
    clean = task.screen.render(position).reshape(len(position), -1)
    # A noise-free frame (v = 0, a quarter of the frames of circular-input-noise) tells the phase exactly, and no grid can
    # hold that. The variance is floored where one frame's likelihood is as narrow as the grid's spacing: with that the sum
    # still integrates it, the mean stays unbiased, and at 720 points the added variance is below 1e-4 per coordinate.
    floor = float((((np.roll(clean, -1, axis=0) - np.roll(clean, 1, axis=0)) / 2) ** 2).sum(axis=1).max())
    energy = (clean**2).sum(axis=1)
    state_var = task.noise.variance(position) if isinstance(task.noise, StateNoise) else None

    def log_density(frame: NDArray, noise_var: NDArray) -> NDArray:
        pixels = frame.reshape(len(frame), -1).astype(float)
        variance = np.maximum(floor, noise_var[:, None] if state_var is None else state_var)
        distance = (pixels**2).sum(axis=1)[:, None] - 2 * pixels @ clean.T + energy
        return -0.5 * (distance / variance + pixels.shape[1] * np.log(2 * math.pi * variance))

    return log_density


def _update(prior: NDArray, log_density: NDArray) -> tuple[NDArray, NDArray]:
    """Posterior weights and log-evidence; in logarithms, because a clean frame's likelihood spans thousands of nats."""
    with np.errstate(divide="ignore"):  # a weight that underflowed to 0 stays 0
        weight = np.log(prior) + log_density
    top = weight.max(axis=1, keepdims=True)
    posterior = np.exp(weight - top)
    total = posterior.sum(axis=1, keepdims=True)
    return posterior / total, (top + np.log(total))[:, 0]
