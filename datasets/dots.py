"""Videos of a moving dot with known truth: the experiments of Mikulasch and Zenke (ICML 2026), written anew.

    angle_t    = the phase of a periodic motion, started at random
    position_t = motion(angle_t)                                              (2 coordinates, arbitrary units)
    p_t        = clamp((position_t + offset) * scale, 0, size - 1)            (pixels)
    frame_t[j, i] = exp(-((i - p_x)^2 + (j - p_y)^2) / 2) + N(0, v_t)         (i: column, j: row; v_t is a variance)

Every constant is an attribute of ``TASKS[name]``, so that the exact Bayes filters of ``benchmarks/oracles.py`` use the
very same numbers, dynamics and renderer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "TASKS",
    "Circle",
    "ConstantNoise",
    "Dots",
    "ExponentialNoise",
    "Figure8",
    "Screen",
    "Square",
    "StateNoise",
    "Task",
    "find_task",
    "generate",
    "split_seed",
]

TURN = 2 * math.pi / 20  # every motion takes 20 frames a round
SPLITS = ("train", "valid", "test")


class Dots(NamedTuple):
    """Dot videos and all that is true about them.

    Attributes:
        frames: ``(series, steps, y, x)`` float32, noise included.
        position: ``(series, steps, 2)`` float32, (x, y) of the dot in the motion's units.
        noise_var: ``(series, steps)`` float32, the variance of the noise of each pixel of the frame (0 is possible).
        angle: ``(series, steps)`` float32, phase of the motion in radians, from 0 to 2 pi; on circles, the polar angle.
        jumped: ``(series, steps)`` bool, True where the step *into* this frame held a jump.
    """

    frames: NDArray[np.float32]
    position: NDArray[np.float32]
    noise_var: NDArray[np.float32]
    angle: NDArray[np.float32]
    jumped: NDArray[np.bool_]


@dataclass(frozen=True)
class Figure8:
    """position = (cos a, sin a cos a); the phase a gains ``turn`` radians a frame."""

    turn: float = TURN

    def walk(self, series: int, steps: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        return _steady(self.turn, series, steps, rng)

    def position(self, angle: NDArray) -> NDArray:
        return np.stack([np.cos(angle), np.sin(angle) * np.cos(angle)], axis=-1)


@dataclass(frozen=True)
class Square:
    """Walks the sides of a square at constant speed, counter-clockwise from the corner (1, -1) at phase 0."""

    turn: float = TURN
    half_side: float = 1.0

    def walk(self, series: int, steps: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        return _steady(self.turn, series, steps, rng)

    def position(self, angle: NDArray) -> NDArray:
        # A coordinate is a trapezoid wave of its phase: one side long at +1, one going down, one at -1, one going up.
        side = np.asarray(angle) * (2 / math.pi)

        def wave(phase: NDArray) -> NDArray:
            return np.clip(np.abs((phase % 4) - 2) * 2 - 2, -1, 1)

        return self.half_side * np.stack([wave(side - 0.5), wave(side - 1.5)], axis=-1)


@dataclass(frozen=True)
class Circle:
    """position <- normalise(Rot(turn) position + sqrt(diffusion) N(0, I)), and sometimes a jump along the circle.

    Attributes:
        turn: rotation per frame in radians.
        diffusion: q, the variance of the two-dimensional process noise before normalisation.
        jump_rate: probability per step of a further rotation by ``jump_angle`` radians.
    """

    turn: float = TURN
    diffusion: float = 0.0
    jump_rate: float = 0.0
    jump_angle: float = math.radians(135)

    def walk(self, series: int, steps: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        angle = np.empty((series, steps))
        angle[:, 0] = rng.uniform(0, 2 * math.pi, series)
        jumped = rng.random((series, steps)) < self.jump_rate
        jumped[:, 0] = False
        noise = math.sqrt(self.diffusion) * rng.standard_normal((series, steps, 2))
        for step in range(1, steps):
            moved = self.position(angle[:, step - 1] + self.turn + jumped[:, step] * self.jump_angle) + noise[:, step]
            angle[:, step] = np.arctan2(moved[:, 1], moved[:, 0])  # the angle of a vector is that of the normalised one
        return angle, jumped

    def position(self, angle: NDArray) -> NDArray:
        return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


@dataclass(frozen=True)
class ConstantNoise:
    """v_t = level."""

    level: float

    def variance(self, position: NDArray, rng: np.random.Generator) -> NDArray:
        return np.full(position.shape[:-1], self.level)


@dataclass(frozen=True)
class ExponentialNoise:
    """v_t = max(0, e_t - shift) with e_t exponential of the given mean: 1 - exp(-shift / mean) of the frames are clean."""

    mean: float
    shift: float

    def variance(self, position: NDArray, rng: np.random.Generator) -> NDArray:
        return np.maximum(0, rng.exponential(self.mean, position.shape[:-1]) - self.shift)


@dataclass(frozen=True)
class StateNoise:
    """v_t = level (x_t + 1) / 2: noisy on the right of the circle, clean on its left."""

    level: float

    def variance(self, position: NDArray, rng: np.random.Generator | None = None) -> NDArray:
        return np.maximum(0, self.level * (position[..., 0] + 1) / 2)


@dataclass(frozen=True)
class Screen:
    """A square image; p = clamp((position + offset) * scale, 0, size - 1) is the dot's place in pixels, unclamped without ``clamp``."""

    size: int = 10
    offset: float = 3.0
    scale: float = 10 / 6
    clamp: bool = True

    def pixel(self, position: NDArray) -> NDArray:
        pixel = (np.asarray(position) + self.offset) * self.scale
        return np.clip(pixel, 0, self.size - 1) if self.clamp else pixel

    def render(self, position: NDArray) -> NDArray:
        """Noise-free frames ``(..., size, size)`` of positions ``(..., 2)``; row = y, column = x, peak 1."""
        column, row = np.moveaxis(np.exp(-0.5 * (np.arange(self.size) - self.pixel(position)[..., None]) ** 2), -2, 0)
        return row[..., :, None] * column[..., None, :]


@dataclass(frozen=True)
class Task:
    """One experiment: how the dot moves, how noisy its frames are, and how it is drawn."""

    motion: Figure8 | Square | Circle
    noise: ConstantNoise | ExponentialNoise | StateNoise
    screen: Screen = Screen()


TASKS: dict[str, Task] = {
    "figure8": Task(Figure8(), ConstantNoise(0.01)),
    "square": Task(Square(), ConstantNoise(0.1)),
    "circular-input-noise": Task(Circle(diffusion=0.05), ExponentialNoise(mean=0.3, shift=0.09)),
    "circular-constant-noise": Task(Circle(diffusion=0.002), ConstantNoise(0.05)),
    "jump": Task(Circle(jump_rate=0.01), ConstantNoise(0.15)),
    "state-noise": Task(Circle(diffusion=0.005), StateNoise(0.1)),
    "figure8-small": Task(Figure8(), ConstantNoise(0.04), Screen(size=24, offset=1.5, scale=23 / 3)),
}


def find_task(task: str | Task) -> Task:
    """The task of that name; a ``Task`` is passed through, so that variants need no name."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(TASKS)}, or a Task")
    return TASKS[task]


def split_seed(split: Literal["train", "valid", "test"], seed: int = 0) -> int:
    """A seed of its own for every split of every run: 3 seed + (0, 1 or 2), so that no two ever share a sequence.

    >>> split_seed("test", 0), split_seed("train", 1)
    (2, 3)
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    return 3 * seed + SPLITS.index(split)


def generate(task: str | Task, series: int, steps: int = 100, seed: int | np.random.Generator = 0) -> Dots:
    """Draw fresh videos of a task, each started at a random phase.

    Args:
        task: a key of ``TASKS``, or a ``Task`` of your own.
        series: number of videos.
        steps: frames in each, 20 to a round.
        seed: integer (see ``split_seed``) or a generator, which is advanced.

    Returns:
        ``Dots``, float32; the same seed gives the same numbers.

    Raises:
        ValueError: an unknown task, or fewer than one video or frame.

    Source:
        Mikulasch and Zenke, arXiv 2605.03517, experiments; ``figure8-small`` and the random phases are this project's.

    >>> generate("jump", series=2, steps=5).frames.shape
    (2, 5, 10, 10)
    """
    if series < 1 or steps < 1:
        raise ValueError(f"series and steps are {series} and {steps}; expected at least one of each")
    chosen = find_task(task)
    rng = np.random.default_rng(seed)
    angle, jumped = chosen.motion.walk(series, steps, rng)
    position = chosen.motion.position(angle)
    noise_var = chosen.noise.variance(position, rng)
    frames = chosen.screen.render(position).astype(np.float32)
    frames += np.sqrt(noise_var, dtype=np.float32, casting="same_kind")[..., None, None] * rng.standard_normal(frames.shape, dtype=np.float32)
    single = np.float32
    return Dots(frames, position.astype(single), noise_var.astype(single), (angle % (2 * math.pi)).astype(single), jumped)


def _steady(turn: float, series: int, steps: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Phases that start anywhere and gain ``turn`` a frame, and no jumps."""
    angle = rng.uniform(0, 2 * math.pi, (series, 1)) + turn * np.arange(steps)
    return angle, np.zeros((series, steps), dtype=bool)
