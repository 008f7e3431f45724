"""Handwritten digits that drift and bounce through a frame, and a blackout in the middle."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

__all__ = ["BLACKOUT", "SIZE", "MovingDigits", "generate", "hide"]

SIZE, DIGIT = 24, 8
SLOWEST, FASTEST = 0.4, 1.6  # pixels per frame, of each coordinate
NOISE_VAR = 0.01
BLACKOUT = slice(20, 28)
TRAINING_SHARE = (0.0, 0.8)


class MovingDigits(NamedTuple):
    """Videos of one digit each.

    Attributes:
        frames: ``(series, steps, y, x)`` float32, strokes near 1 on 0, noise of variance 0.01.
        states: ``(series, steps, 4)`` float32: x, y of the digit's upper left corner in pixels, and velocities in pixels per frame.
        labels: ``(series,)``, 0 to 9.
    """

    frames: NDArray[np.float32]
    states: NDArray[np.float32]
    labels: NDArray[np.int64]


@cache
def _digits() -> tuple[NDArray, NDArray]:
    found = load_digits()
    return found.images / 16.0, found.target


def generate(series: int, steps: int, rng: np.random.Generator, share: tuple[float, float] = TRAINING_SHARE) -> MovingDigits:
    """Digits of a share of the collection (in its order, so that other shares are other people's), at constant velocity between elastic borders.

    The corner may be anywhere in [0, 16]^2; between pixels the digit is shifted bilinearly.
    """
    images, labels = _digits()
    first, end = (int(part * len(images)) for part in share)
    chosen = rng.integers(first, end, series)
    width = float(SIZE - DIGIT)
    start = rng.uniform(0.0, width, (series, 1, 2))
    velocity = rng.uniform(SLOWEST, FASTEST, (series, 1, 2)) * rng.choice([-1.0, 1.0], (series, 1, 2))
    phase = np.mod(start + velocity * np.arange(steps)[None, :, None], 2.0 * width)
    back = phase > width
    position = np.where(back, 2.0 * width - phase, phase)
    states = np.concatenate([position, np.where(back, -velocity, velocity)], axis=-1)
    frames = _render(images[chosen], position) + np.sqrt(NOISE_VAR) * rng.standard_normal((series, steps, SIZE, SIZE))
    return MovingDigits(frames.astype(np.float32), states.astype(np.float32), labels[chosen])


def hide(frames: NDArray, hidden: slice = BLACKOUT) -> NDArray[np.float32]:
    """A copy with the frames of the blackout missing (NaN)."""
    masked = np.array(frames, dtype=np.float32)
    masked[:, hidden] = np.nan
    return masked


def _render(images: NDArray, position: NDArray) -> NDArray:
    """Digits ``(series, 8, 8)`` at positions ``(series, steps, 2)``, as products with shifted tent functions."""
    axis, places = np.arange(SIZE), np.arange(DIGIT)
    x, y = (np.maximum(0.0, 1.0 - np.abs(axis[:, None] - places - position[..., k, None, None])) for k in (0, 1))
    return np.einsum("stya,sab,stxb->styx", y, images, x)
