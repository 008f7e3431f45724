"""The Lorenz attractor in images with salt-and-pepper noise: a spot whose place shows two coordinates of the state and whose size the third.

pixel (i, j) = exp(-((i - p)^2 + (j - q)^2) / (2 s^2)),    p = 13.5 + 0.45 x_1,   q = 13.5 + 0.4 x_2,   s = 1 + 0.06 x_3
seen         = clip(pixel + N(0, 0.1^2), 0, 1) with probability 1 - k, else 0 or 1, as likely each                    stored as 0 to 255
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.lorenz import noisy_process

__all__ = ["CAMERA_STD", "PROCESS_VAR", "SIZE", "LorenzImages", "corrupt", "generate", "render"]

SIZE = 28
PROCESS_VAR = 0.01  # q^2 of the state
CAMERA_STD = 0.1  # of a pixel; with salt and pepper alone every clean pixel would say the state exactly
PLACE, WIDTH, GROWTH = (0.45, 0.4), 1.0, 0.06


class LorenzImages(NamedTuple):
    """Videos and the states that they show.

    Attributes:
        frames: ``(series, steps, 28, 28)`` uint8, row ``j`` (second coordinate), column ``i`` (first).
        states: ``(series, steps, 3)`` float32.
    """

    frames: NDArray[np.uint8]
    states: NDArray[np.float32]


def generate(series: int, steps: int, share: float, rng: np.random.Generator) -> LorenzImages:
    """Series from places on the attractor, `datasets.lorenz.noisy_process` with q^2 = 0.01.

    Args:
        series, steps: sizes. share: k, of the pixels that are salt or pepper. rng: of everything random.

    Raises:
        ValueError: a share outside [0, 1).
    """
    states = noisy_process(series, steps, 0.0, PROCESS_VAR, rng).states
    frames = np.empty((series, steps, SIZE, SIZE), dtype=np.uint8)
    for row in range(series):  # one by one: images in float64 are eight times as large
        frames[row] = corrupt(render(states[row]), share, rng)
    return LorenzImages(frames, states)


def render(states: NDArray) -> NDArray[np.float64]:
    """Images ``(..., 28, 28)`` from 0 to 1, without noise, of states ``(..., 3)``; a third coordinate below 0 is drawn as 0."""
    x = np.asarray(states, dtype=float)
    middle, pixels = (SIZE - 1) / 2, np.arange(SIZE)
    width = WIDTH + GROWTH * np.maximum(x[..., 2], 0.0)
    across, down = (np.exp(-0.5 * ((pixels - middle - rate * x[..., place, None]) / width[..., None]) ** 2) for place, rate in enumerate(PLACE))
    return np.asarray(down[..., :, None] * across[..., None, :])


def corrupt(images: NDArray, share: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Camera noise on every pixel, and salt or pepper in place of a ``share`` of them.

    Raises:
        ValueError: a share outside [0, 1).
    """
    if not 0.0 <= share < 1.0:
        raise ValueError(f"share is {share}, expected a share of pixels in [0, 1)")
    seen = np.clip(images + CAMERA_STD * rng.standard_normal(images.shape), 0.0, 1.0)
    struck = rng.random(images.shape) < share
    return np.where(struck, 255 * rng.integers(0, 2, images.shape), np.rint(255 * seen)).astype(np.uint8)
