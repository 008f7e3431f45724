"""What the identifiability tasks need to know of a generator, the same for all: how to draw from it, and what is true about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.particles import particle_filter
from datasets import place_cells as rats
from datasets import wobbly
from datasets.linear_latent import NOISE_VAR, LinearLatent, linear_latent
from datasets.sources import Sources, sources

__all__ = ["Split", "System", "find_system", "split"]

Array = NDArray[np.float64]


class Split(NamedTuple):
    """Observations and the truth.

    Attributes:
        observations: ``(series, steps, ...)`` float32.
        truth: ``(series, steps, d)`` float32.
        in_range: ``(series, steps)`` bool, where the truth can be seen; None: everywhere.
    """

    observations: NDArray[np.float32]
    truth: NDArray[np.float32]
    in_range: NDArray[np.bool_] | None = None


class System(NamedTuple):
    """A generator.

    Attributes:
        draw: (series, steps, seed) -> Split.
        oracle: (observations, particles) -> the best estimate of the truth, given the generator; None where none is built.
        step: truth -> the expected truth a step later, ``(..., d)``; None where the truth alone does not tell.
        transition: A of linear dynamics of the truth, ``(d, d)``.
        directions: truth ``(N, d)`` -> how the noise-free observation moves with it, ``(N, values, d)``.
    """

    draw: Callable[[int, int, NDArray], Split]
    oracle: Callable[[NDArray, int], NDArray] | None = None
    step: Callable[[NDArray], Array] | None = None
    transition: Array | None = None
    directions: Callable[[NDArray], Array] | None = None


def split(seed: int, number: int) -> NDArray[np.int64]:
    """Entropy of a split of a run, for numpy's generators: no two share any."""
    return np.array([seed, 1000 + number])


def find_system(task: str, condition: str, seed: int) -> System:
    """The system of a task; ``seed`` draws its constants.

    Raises:
        ValueError: an unknown task or condition.
    """
    if task == "linear-latent" and condition in ("", "mild"):
        return _linear_latent(linear_latent(seed, mild=condition == "mild"))
    if task == "wobbly" and condition in ("", "ekf"):  # another model of the same system
        return _wobbly(task)
    if condition:
        raise ValueError(f"condition is {condition!r}, and {task} has no such variant")
    if task == "place-cells":
        return _place_cells(rats.place_cells(seed))
    if task in wobbly.VARIANTS:
        return _wobbly(task)
    if task.startswith("sources-") and task.removeprefix("sources-").isdigit():
        return _sources(sources(int(task.removeprefix("sources-")), seed))
    raise ValueError(f"task is {task!r}, expected linear-latent, place-cells, {', '.join(wobbly.VARIANTS)} or sources-N")


def _linear_latent(system: LinearLatent) -> System:
    transition, std = system.transition_matrix, np.sqrt(np.diagonal(system.transition_cov))

    def oracle(observations: NDArray, particles: int) -> NDArray:
        def score(y: Array, states: Array) -> Array:
            return -0.5 * np.square(y - system.network(states)).sum(-1) / NOISE_VAR

        def advance(states: Array, rng: np.random.Generator) -> Array:
            return states @ transition.T + std * rng.standard_normal(states.shape)

        size = len(transition)
        return np.stack([particle_filter(lambda n, rng: rng.standard_normal((n, size)), advance, score, y, particles) for y in observations])

    return System(
        lambda series, steps, seed: Split(*system.draw(series, steps, np.random.default_rng(seed))),
        oracle,
        lambda states: states @ transition.T,
        transition,
        system.network.jacobian,
    )


def _place_cells(cells: rats.PlaceCells) -> System:
    def draw(series: int, steps: int, seed: NDArray) -> Split:
        session = cells.draw(series, steps, np.random.default_rng(seed))
        return Split(session.counts, session.position)

    return System(draw, lambda counts, particles: _decode(cells, counts, particles))


def _decode(cells: rats.PlaceCells, counts: NDArray, particles: int, places: int = 320) -> Array:
    """Filtered position, ``(series, steps, 1)``; rates at cruising speed from a grid of positions, half a centimetre apart."""
    grid = np.linspace(0, rats.TRACK, places + 1)
    expected = np.stack([cells.rates(grid, np.full(len(grid), way)) for way in (-1, 1)]) * rats.BIN
    logarithm, total = np.log(expected), expected.sum(-1)

    def score(spikes: Array, states: Array) -> Array:
        at = (states[:, rats.DIRECTION] > 0).astype(int), np.rint(states[:, rats.POSITION] / rats.TRACK * places).astype(int)
        gain = rats.speed_gain(states)
        return (logarithm @ spikes)[at] + spikes.sum() * np.log(gain) - gain * total[at]

    return np.stack([particle_filter(rats.start, rats.advance, score, series, particles) for series in counts])[..., [rats.POSITION]]


def _wobbly(variant: str) -> System:
    def directions(position: NDArray, width: float = 1e-3) -> Array:
        moved = [
            (wobbly.VARIANTS[variant].render(position + width * unit) - wobbly.VARIANTS[variant].render(position - width * unit)) / (2 * width)
            for unit in np.eye(2)
        ]
        return np.stack([part.reshape(len(position), -1) for part in moved], axis=-1)

    return System(
        lambda series, steps, seed: Split(*wobbly.generate(variant, series, steps, np.random.default_rng(seed))),
        step=wobbly.step,
        directions=directions,
    )


def _sources(system: Sources) -> System:
    def draw(series: int, steps: int, seed: NDArray) -> Split:
        if steps != 2:
            raise ValueError(f"steps is {steps}, and sources come in pairs: 2")
        return Split(*system.draw(series, np.random.default_rng(seed)))

    return System(draw, lambda observations, particles: system.network.invert(observations), system.mean, directions=system.network.jacobian)
