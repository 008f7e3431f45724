"""Images of a swinging pendulum behind noise that comes and goes: the state-estimation task of the recurrent Kalman network, and its irregular kin.

    omega <- omega + h (c sin(theta) - b omega),   theta <- theta + h omega       h = 1e-4 s, c = 3 g / l, b = 0.1 / s; theta = 0 is upright
    omega <- omega + N(0, 0.1^2)                                                  once per frame
    image  = a line from the centre to 55 (sin angle, cos angle), drawn on 128x128 pixels, reduced to 24x24; angle = theta - pi, 0 hanging
    frame  = w image + (1 - w) U(0, 255)                                          w: how much of the pendulum is seen, wandering from 0 to 1

``TASKS`` holds the two variants; every constant is an attribute of ``Simulator``, ``Distractor`` or ``Task``, so that an oracle uses the same ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["TASKS", "Distractor", "Pendulum", "Simulator", "Task", "draw", "end_point", "find_task", "generate", "render"]

CANVAS, SIZE, REACH, WIDTH = 128, 24, 55.0, 8
CHUNK = 250  # series whose noise is drawn at a time


class Pendulum(NamedTuple):
    """Videos of pendulums and all that is true about them.

    Attributes:
        frames: ``(series, steps, 24, 24)`` uint8, noise included.
        target: ``(series, steps, 2)`` float32, (sin angle, cos angle); the pendulum hangs at angle 0.
        angle: ``(series, steps)`` float64 in radians, 0 to 2 pi. velocity: ``(series, steps)`` float64 in rad/s.
        visible: ``(series, steps)`` float64, the share w of the image in the frame, 1 without noise, 0 where nothing is seen of it.
        stamps: ``(series, steps)`` int64, the number of each frame, increasing; 0, 1, 2, ... unless frames were left out.
    """

    frames: NDArray[np.uint8]
    target: NDArray[np.float32]
    angle: NDArray[np.float64]
    velocity: NDArray[np.float64]
    visible: NDArray[np.float64]
    stamps: NDArray[np.int64]


@dataclass(frozen=True)
class Simulator:
    """A rod with friction, no torque. Times in s, ``friction`` in 1/s; ``process_std`` is that of the velocity, once per frame."""

    dt: float = 0.05
    substep: float = 1e-4
    gravity: float = 9.81
    length: float = 1.0
    friction: float = 0.1
    process_std: float = 0.1

    def advance(self, theta: NDArray, omega: NDArray, substeps: int | None = None) -> tuple[NDArray, NDArray]:
        """One frame without noise, semi-implicit Euler; ``theta`` from upright. ``substeps``: default ``dt / substep``."""
        count = round(self.dt / self.substep) if substeps is None else substeps
        h, pull = self.dt / count, 3.0 * self.gravity / self.length
        for _ in range(count):
            omega = omega + h * (pull * np.sin(theta) - self.friction * omega)
            theta = theta + h * omega
        return theta, omega

    def walk(self, series: int, steps: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Angles (0 hanging, 0 to 2 pi) and velocities ``(series, steps)``; starts are uniform and at rest."""
        theta, omega = np.empty((series, steps)), np.zeros((series, steps))
        theta[:, 0] = rng.uniform(0, 2 * math.pi, series)
        for step in range(1, steps):
            theta[:, step], omega[:, step] = self.advance(theta[:, step - 1], omega[:, step - 1])
            omega[:, step] += self.process_std * rng.standard_normal(series)
        return (theta - math.pi) % (2 * math.pi), omega


@dataclass(frozen=True)
class Distractor:
    """Noise that comes and goes; the first ``clean`` frames have none.

    f_0 ~ U(0, 1),  f_{t+1} = clip(f_t + U(-rate, rate), 0, 1),   w_t = clip((f_t - t_1) / (t_2 - t_1), 0, 1),  t_1 ~ U(low), t_2 ~ U(high)
    """

    rate: float = 0.2
    low: tuple[float, float] = (0.0, 0.25)
    high: tuple[float, float] = (0.75, 1.0)
    clean: int = 5

    def visible(self, series: int, steps: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """w ``(series, steps)``; the bounds t_1 and t_2 are those of a whole series."""
        factor = np.empty((series, steps))
        factor[:, 0] = rng.uniform(0, 1, series)
        moves = rng.uniform(-self.rate, self.rate, (series, steps))
        for step in range(1, steps):
            factor[:, step] = np.clip(factor[:, step - 1] + moves[:, step], 0, 1)
        least, most = rng.uniform(*self.low, (series, 1)), rng.uniform(*self.high, (series, 1))
        seen = np.clip((factor - least) / (most - least), 0, 1)
        seen[:, : self.clean] = 1.0
        return seen


@dataclass(frozen=True)
class Task:
    """A variant: ``steps`` frames are simulated, of which ``kept`` at random remain (None: all)."""

    simulator: Simulator = Simulator()
    distractor: Distractor | None = Distractor()
    steps: int = 75
    kept: int | None = None


TASKS: dict[str, Task] = {
    "pendulum": Task(),
    "pendulum-irregular": Task(Simulator(dt=0.01), steps=100, kept=50),
}


def find_task(task: str | Task) -> Task:
    """The task of that name; a ``Task`` is passed through, so that variants need no name.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(TASKS)}, or a Task")
    return TASKS[task]


def generate(task: str | Task, series: int, seed: int | np.random.Generator = 0) -> Pendulum:
    """Draw fresh videos of a task.

    Args:
        task: ``"pendulum"`` (75 frames, 0.05 s apart), ``"pendulum-irregular"`` (50 of 100 frames, 0.01 s apart), or a ``Task`` of your own.
        series: number of videos.
        seed: integer (see ``datasets.dots.split_seed``) or a generator, which is advanced.

    Returns:
        ``Pendulum``; the same seed gives the same numbers.

    Raises:
        ValueError: an unknown task, or fewer than one video.

    Source:
        Becker et al., *Recurrent Kalman Networks*, ICML 2019, and Schirmer et al., *Modeling Irregular Time Series with Continuous Recurrent
        Units*, ICML 2022: protocols written anew from their descriptions.

    >>> generate("pendulum-irregular", series=2).frames.shape
    (2, 50, 24, 24)
    """
    if series < 1:
        raise ValueError(f"series is {series}; expected at least one")
    chosen, rng = find_task(task), np.random.default_rng(seed)
    angle, velocity = chosen.simulator.walk(series, chosen.steps, rng)
    seen = np.ones(angle.shape) if chosen.distractor is None else chosen.distractor.visible(series, chosen.steps, rng)
    index = np.broadcast_to(np.arange(chosen.steps), angle.shape).copy()
    if chosen.kept is not None:
        index = np.sort(rng.permuted(index, axis=1)[:, : chosen.kept], axis=1)
        angle, velocity, seen = (np.take_along_axis(part, index, axis=1) for part in (angle, velocity, seen))
    frames = render(angle)
    for start in range(0, series, CHUNK):
        _add_noise(frames[start : start + CHUNK], seen[start : start + CHUNK], rng)
    target = np.stack([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)
    return Pendulum(frames, target, angle, velocity, seen, index)


def _add_noise(frames: NDArray[np.uint8], visible: NDArray[np.float64], rng: np.random.Generator) -> None:
    """In place: w image + (1 - w) U(0, 255), cut to whole numbers."""
    noisy = np.nonzero(visible < 1)
    share = visible[noisy].astype(np.float32)[:, None, None]
    noise = rng.random((len(share), SIZE, SIZE), dtype=np.float32)
    frames[noisy] = (share * frames[noisy] + (1 - share) * (255 * noise)).astype(np.uint8)


def end_point(angle: NDArray) -> NDArray[np.int64]:
    """Where on the canvas the line ends, ``(..., 2)`` as (x, y): whole pixels, cut off as the drawing library does."""
    angle = np.asarray(angle)
    return np.trunc(CANVAS / 2 + REACH * np.stack([np.sin(angle), np.cos(angle)], axis=-1)).astype(np.int64)


def draw(x: float, y: float) -> NDArray[np.uint8]:
    """The image ``(24, 24)`` of a line from the centre of the canvas to (x, y)."""
    canvas = Image.new("F", (CANVAS, CANVAS), 0.0)
    ImageDraw.Draw(canvas).line([(CANVAS / 2, CANVAS / 2), (x, y)], fill=1.0, width=WIDTH)
    small = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    return (np.clip(small, 0, 1) * 255).astype(np.uint8)


def render(angle: NDArray) -> NDArray[np.uint8]:
    """Images ``(..., 24, 24)`` of pendulums at angles ``(...)`` in radians, 0 hanging.

    Lines end at whole pixels, so that few images differ (about 400 in all): each is drawn once.
    """
    ends = end_point(angle)
    known, inverse = np.unique(ends.reshape(-1, 2), axis=0, return_inverse=True)
    images = np.stack([draw(*end) for end in known.tolist()])
    return images[inverse.reshape(ends.shape[:-1])]
