"""Swirled videos of a dot in a nonlinear flow: latents that no linear filter and no linear encoder finds.

    dx/dt = a k cos(th) cos(k (th - th0)) - r sin(th),    dy/dt = a k sin(th) cos(k (th - th0)) + r cos(th)
    position_{t+1} = RK4(position_t, 0.3) + N(0, 0.1 I),  position_0 uniform on the unit circle
    frame_t = swirl(dot at (position_t + offset) * scale)

with (r, th) the polar coordinates of (x, y), a = 0.5, k = 4, th0 = -3 pi / 8. The flow turns once in 2 pi units of time and the radius
wobbles four times a turn, driven by noise into a random walk. Frames hold no noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from datasets.dots import Screen

__all__ = ["NOISE_VAR", "VARIANTS", "SwirledScreen", "Wobbly", "flow", "generate", "step", "swirl_matrix"]

AMPLITUDE, WAVES, PHASE = 0.5, 4, -3 * math.pi / 8
STEP, NOISE_VAR = 0.3, 0.1
STRENGTH, RADIUS = 10.0, 200.0


class Wobbly(NamedTuple):
    """Videos and what is true about them.

    Attributes:
        frames: ``(series, steps, y, x)`` float32, noise-free; 24 x 24 pixels, the paper's 10 x 10.
        position: ``(series, steps, 2)`` float32.
        in_range: ``(series, steps)`` bool, False where the renderer moved the dot to the frame's edge: the position cannot be seen there.
    """

    frames: NDArray[np.float32]
    position: NDArray[np.float32]
    in_range: NDArray[np.bool_]


@dataclass(frozen=True)
class SwirledScreen:
    """A screen whose image is twisted about its centre: a fixed linear map of the pixels.

    Attributes:
        screen: draws the dot.
        strength, radius: of `swirl_matrix`.
    """

    screen: Screen
    strength: float = STRENGTH
    radius: float = RADIUS

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """``(size^2, size^2)``, swirled pixels = matrix @ pixels."""
        return swirl_matrix(self.screen.size, self.strength, self.radius)

    def render(self, position: NDArray) -> NDArray[np.float64]:
        """Frames ``(..., size, size)`` of positions ``(..., 2)``."""
        frames = self.screen.render(position)
        return (frames.reshape(*frames.shape[:-2], -1) @ self.matrix.T).reshape(frames.shape)

    def in_range(self, position: NDArray) -> NDArray[np.bool_]:
        """Where the dot is drawn at its own place, ``(...)``."""
        pixel = (np.asarray(position) + self.screen.offset) * self.screen.scale
        inside = (pixel >= 0) & (pixel <= self.screen.size - 1) | (not self.screen.clamp)
        return np.asarray(inside.all(-1))


VARIANTS: dict[str, SwirledScreen] = {
    # Holds positions from -12 to 12 and clamps none; about one frame in 10,000 (of sequences of 100) lies outside, and its dot is still seen in part.
    "wobbly": SwirledScreen(Screen(size=24, offset=12.0, scale=23 / 24, clamp=False)),
    # The paper's: positions from -3 to 2.4, clamped at the edge.
    "wobbly-paper": SwirledScreen(Screen()),
}


def flow(position: NDArray) -> NDArray[np.float64]:
    """d position / dt, ``(..., 2)``, in units of the position per unit of time."""
    x, y = np.moveaxis(np.asarray(position, dtype=float), -1, 0)
    angle = np.arctan2(y, x)
    push = AMPLITUDE * WAVES * np.cos(WAVES * (angle - PHASE))
    return np.stack([push * np.cos(angle) - y, push * np.sin(angle) + x], axis=-1)


def step(position: NDArray, duration: float = STEP) -> NDArray[np.float64]:
    """E[position_{t+1} | position_t]: one Runge-Kutta step of fourth order, ``(..., 2)``."""
    start = np.asarray(position, dtype=float)
    k1 = flow(start)
    k2 = flow(start + duration / 2 * k1)
    k3 = flow(start + duration / 2 * k2)
    k4 = flow(start + duration * k3)
    return start + duration / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def swirl_matrix(size: int, strength: float = STRENGTH, radius: float = RADIUS) -> NDArray[np.float64]:
    """Twist of a square image as a matrix on its pixels, ``(size^2, size^2)``: bilinear, mirrored at the edges.

        swirled(c + rho (cos u, sin u)) = image(c + rho (cos(u + s), sin(u + s))),    s = strength exp(-5 rho / (radius ln 2)),  c = size / 2

    Args:
        size: pixels of a side.
        strength: angle at the centre in radians. radius: pixels over which the twist decays to about a thousandth.

    Source:
        The transform known as swirl in scikit-image, written from its formula.
    """
    row, column = np.mgrid[:size, :size] - size / 2
    distance = np.hypot(row, column)
    angle = np.arctan2(row, column) + strength * np.exp(-5 * distance / (radius * math.log(2)))
    places = size / 2 + distance * np.stack([np.sin(angle), np.cos(angle)])
    units = np.eye(size * size).reshape(-1, size, size)
    return np.stack([map_coordinates(unit, places, order=1, mode="mirror").ravel() for unit in units], axis=1)


def generate(variant: str | SwirledScreen, series: int, steps: int = 100, seed: int | np.random.Generator = 0) -> Wobbly:
    """Draw fresh videos.

    Args:
        variant: a key of ``VARIANTS``, or a screen of your own.
        series: number of videos. steps: frames in each.
        seed: integer (see ``datasets.dots.split_seed``) or a generator, which is advanced.

    Raises:
        ValueError: an unknown variant, or fewer than one video or frame.

    Source:
        Mikulasch and Zenke, arXiv 2605.03517, eq. 16; the variant that never clamps is this project's.

    >>> generate("wobbly", series=2, steps=5).frames.shape
    (2, 5, 24, 24)
    """
    if isinstance(variant, str):
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; expected one of {', '.join(VARIANTS)}, or a SwirledScreen")
        variant = VARIANTS[variant]
    if series < 1 or steps < 1:
        raise ValueError(f"series and steps are {series} and {steps}; expected at least one of each")
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * math.pi, series)
    position = np.empty((series, steps, 2))
    position[:, 0] = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    for place in range(1, steps):
        position[:, place] = step(position[:, place - 1]) + math.sqrt(NOISE_VAR) * rng.standard_normal((series, 2))
    frames = variant.render(position).astype(np.float32)
    return Wobbly(frames, position.astype(np.float32), variant.in_range(position))
