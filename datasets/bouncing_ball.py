"""A ball in a box, seen as small images: straight motion and elastic walls, after the protocol of the Kalman variational autoencoder."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FASTEST", "HIDDEN", "HIGH", "LOW", "SIZE", "STEP", "BouncingBall", "generate", "hide", "reflect", "render"]

Array = NDArray[np.float64]

SIZE, RADIUS = 32, 3.0
LOW, HIGH = 5.0, 27.0  # of the centre: walls 2 pixels from the border, and a radius
STEP = 0.2
SLOWEST, FASTEST = 10.0, 15.0
HIDDEN = slice(4, 16)


class BouncingBall(NamedTuple):
    """Videos and what moves in them.

    Attributes:
        frames: ``(series, steps, y, x)`` float32, 0 or 1.
        states: ``(series, steps, 4)`` float32: x, y in pixels and their velocities in pixels per time unit.
    """

    frames: NDArray[np.float32]
    states: NDArray[np.float32]


def generate(series: int, steps: int, rng: np.random.Generator) -> BouncingBall:
    """Start at (16, 16) + 10 N(0, I), clipped to [6, 26]; speed uniform in 10 to 15, any direction; 0.2 time units a frame."""
    start = np.clip(16.0 + 10.0 * rng.standard_normal((series, 2)), 6.0, 26.0)
    speed, angle = rng.uniform(SLOWEST, FASTEST, series), rng.uniform(0.0, 2.0 * np.pi, series)
    velocity = speed[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    position, moving = reflect(start[:, None], velocity[:, None], STEP * np.arange(steps)[None, :, None])
    states = np.concatenate([position, moving], axis=-1).astype(np.float32)
    return BouncingBall(render(states[..., :2]), states)


def reflect(position: NDArray, velocity: NDArray, elapsed: NDArray) -> tuple[Array, Array]:
    """Position and velocity after a time, per coordinate: between the walls the path is a straight line folded back, to be exact."""
    width = HIGH - LOW
    phase = np.mod(position - LOW + velocity * elapsed, 2.0 * width)
    back = phase > width
    return LOW + np.where(back, 2.0 * width - phase, phase), np.where(back, -velocity, velocity)


def render(position: NDArray) -> NDArray[np.float32]:
    """A white disc on black, without anti-aliasing: pixel (i, j), at ``[..., j, i]``, is 1 where its centre is within 3 of the position."""
    axis = np.arange(SIZE) + 0.5
    x, y = (np.square(np.asarray(position, dtype=float)[..., k, None] - axis) for k in (0, 1))
    return (y[..., :, None] + x[..., None, :] <= RADIUS**2).astype(np.float32)


def hide(frames: NDArray, hidden: slice = HIDDEN) -> NDArray[np.float32]:
    """A copy with frames 4 to 15 missing (NaN)."""
    masked = np.array(frames, dtype=np.float32)
    masked[:, hidden] = np.nan
    return masked
