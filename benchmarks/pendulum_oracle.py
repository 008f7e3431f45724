"""A particle filter that knows everything about the pendulum images but where the pendulum is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from datasets.pendulum import Pendulum, draw, end_point, find_task

__all__ = ["fitting_images", "particle_moments"]

SUBSTEPS = 100  # of a frame: the motion is then exact to 3e-4 rad
SERIES = 50  # filtered at a time
GRID = 2**18  # angles: some images belong to a thousandth of a degree only
Array = NDArray[np.float64]


def particle_moments(task: str, data: Pendulum, particles: int, seed: int = 0) -> tuple[Array, Array]:
    """Mean ``(series, steps, 2)`` and covariance of (sin, cos) given the frames so far, by a bootstrap filter with systematic resampling.

    It knows the equations, the process noise, the renderer, and of each frame the share w; not the start. Given w the noise is uniform, so
    that an image either can have made a frame or cannot, and all that can are equally likely: particles whose image cannot are dropped. Where
    none is left, the angles of a series are drawn anew among the images that can, with the velocities as they are. Where a frame was left
    out, the particles move on.

    Args:
        task: of ``datasets.pendulum``. data: frames. particles: per series. seed: of the draws.
    """
    chosen, rng = find_task(task), np.random.default_rng(seed)
    simulator = chosen.simulator
    grid = np.linspace(0, 2 * math.pi, GRID, endpoint=False)
    ends, image_of = np.unique(end_point(grid), axis=0, return_inverse=True)
    image_of = image_of.reshape(-1)
    images = np.stack([draw(*end) for end in ends.tolist()]).reshape(len(ends), -1)
    means, covs = np.empty(data.target.shape), np.empty((*data.target.shape, 2))
    for start in range(0, len(data.frames), SERIES):
        rows = slice(start, start + SERIES)
        count = len(data.frames[rows])
        angle = rng.uniform(0, 2 * math.pi, (count, particles))
        velocity = np.zeros((count, particles))
        for step in range(chosen.steps):
            if step:
                theta, velocity = simulator.advance(angle + math.pi, velocity, SUBSTEPS)
                angle, velocity = (theta - math.pi) % (2 * math.pi), velocity + simulator.process_std * rng.standard_normal(velocity.shape)
            seen, place = np.nonzero(data.stamps[rows] == step)  # the series of which there is a frame, and where it is among its frames
            if len(seen) == 0:
                continue
            fits = fitting_images(images, data.frames[rows][seen, place].reshape(len(seen), -1), data.visible[rows][seen, place])
            angle[seen], velocity[seen] = _resampled(angle[seen], velocity[seen], fits, image_of, grid, rng)
            target = np.stack([np.sin(angle[seen]), np.cos(angle[seen])], axis=-1)
            means[start + seen, place] = target.mean(1)
            error = target - target.mean(1, keepdims=True)
            covs[start + seen, place] = np.einsum("bpi,bpj->bij", error, error) / particles + 1e-6 * np.eye(2)
    return means, covs


def fitting_images(images: NDArray[np.uint8], frames: NDArray[np.uint8], visible: Array) -> NDArray[np.bool_]:
    """Which images ``(k, pixels)`` can have made each frame ``(B, pixels)`` seen by a share w ``(B,)``: bool ``(B, k)``.

    w image <= frame + 1,    frame <= w image + (1 - w) 255
    """
    fits = np.empty((len(frames), len(images)), dtype=bool)
    for row, (frame, share) in enumerate(zip(frames.astype(np.float32), visible.astype(np.float32), strict=True)):
        if share <= 0:
            fits[row] = True
            continue
        # What is left for the noise must lie between 0 and (1 - w) 255, but for the cut to whole numbers and rounding.
        rest = frame - share * images.astype(np.float32)
        fits[row] = (rest > -1.01).all(1) & (rest < (1 - share) * 255 + 0.01).all(1)
    return fits


def _resampled(
    angle: Array, velocity: Array, fits: NDArray[np.bool_], image_of: NDArray, grid: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    count, particles = angle.shape
    place = (angle / (2 * math.pi) * len(grid)).astype(int) % len(grid)
    alive = np.take_along_axis(fits, image_of[place], axis=1)
    for row in np.nonzero(~alive.any(1))[0]:
        possible = grid[fits[row][image_of]]
        angle[row] = rng.choice(possible, particles) + rng.uniform(0, grid[1], particles)
        alive[row] = True
    weight = alive / alive.sum(1, keepdims=True)
    points = (rng.random((count, 1)) + np.arange(particles)) / particles
    chosen = np.stack([np.searchsorted(total, point).clip(max=particles - 1) for total, point in zip(weight.cumsum(1), points, strict=True)])
    return np.take_along_axis(angle, chosen, axis=1), np.take_along_axis(velocity, chosen, axis=1)
