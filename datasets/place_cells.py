"""Spikes of hippocampal place cells while a rat runs on a linear track: a simulator, standing in for recordings such as hc-11.

    y_{i,t} ~ Poisson(lambda_i(t) 25 ms)
    lambda_i = (b_i + r_i g_i(d) exp(-(s - c_i(d))^2 / (2 w_i^2))) m(v),       m(v) = 0.3 + 0.7 v / 0.4 m/s

s is the position on the track, d = -1 or 1 the direction of the run, v the speed. The rat runs to the end of the track, rests there, and
runs back; its logarithmic speed is an Ornstein-Uhlenbeck process.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BIN", "CELLS", "TRACK", "PlaceCells", "Session", "place_cells"]

Array = NDArray[np.float64]

CELLS, BIN, TRACK = 120, 0.025, 1.6  # number, seconds, metres
CRUISE, SPEED_SPREAD, SPEED_MEMORY = 0.4, 0.3, 1.0  # m/s, standard deviation of log speed, its time constant in s
REST = 1.0  # mean time at an end of the track, s
STILL_GAIN = 0.3  # of all rates at rest, relative to cruising
# columns of a rat's state
POSITION, DIRECTION, LOG_SPEED, RESTING = range(4)


class Session(NamedTuple):
    """Spike counts and what is true about the rat, float32.

    Attributes:
        counts: ``(series, steps, 120)``, spikes in each bin of 25 ms.
        position: ``(series, steps, 1)`` in m, 0 to 1.6.
        direction: ``(series, steps)``, 1 towards higher positions, else -1; at rest that of the run that ended.
        speed: ``(series, steps)`` in m/s, 0 at rest.
    """

    counts: NDArray[np.float32]
    position: NDArray[np.float32]
    direction: NDArray[np.float32]
    speed: NDArray[np.float32]


class PlaceCells(NamedTuple):
    """120 cells. Index 0 of the last axis of ``centre`` and ``gain``: runs towards 0; 1: towards the track's far end.

    Attributes:
        baseline, peak: b, r in Hz at cruising speed, ``(120,)``.
        width: w in m, ``(120,)``.
        centre: c in m, ``(120, 2)``.
        gain: g, ``(120, 2)``, 1 in the preferred direction.
    """

    baseline: Array
    peak: Array
    width: Array
    centre: Array
    gain: Array

    def rates(self, position: NDArray, direction: NDArray) -> Array:
        """Rates at cruising speed in Hz, ``(..., 120)``, of positions and directions ``(...)``."""
        way = (np.asarray(direction) > 0).astype(int)
        distance = (np.asarray(position, dtype=float)[..., None] - np.moveaxis(self.centre[:, way], 0, -1)) / self.width
        return self.baseline + self.peak * np.moveaxis(self.gain[:, way], 0, -1) * np.exp(-0.5 * distance**2)

    def draw(self, series: int, steps: int = 400, seed: int | np.random.Generator = 0) -> Session:
        """Fresh sessions, each from a random place within a run; the same seed gives the same numbers, a generator is advanced.

        Raises:
            ValueError: fewer than one series or step.
        """
        if series < 1 or steps < 1:
            raise ValueError(f"series and steps are {series} and {steps}; expected at least one of each")
        rng = np.random.default_rng(seed)
        states = [start(series, rng)]
        for _ in range(steps - 1):
            states.append(advance(states[-1], rng))
        path = np.stack(states, axis=1)
        expected = self.rates(path[..., POSITION], path[..., DIRECTION]) * speed_gain(path)[..., None] * BIN
        single = np.float32
        return Session(
            rng.poisson(expected).astype(single),
            path[..., [POSITION]].astype(single),
            path[..., DIRECTION].astype(single),
            speed(path).astype(single),
        )


def place_cells(seed: int = 0) -> PlaceCells:
    """Draw the cells.

    Fields cover the track and 0.1 m beyond its ends, 0.06 to 0.16 m wide; peaks are log-normal about 15 Hz. In the other direction
    a cell has 0 to 60 % of its peak, at a place shifted by 0.1 m (standard deviation).

    >>> place_cells().draw(series=2, steps=10).counts.shape
    (2, 10, 120)
    """
    rng = np.random.default_rng([seed, CELLS])
    centre = rng.uniform(-0.1, TRACK + 0.1, (CELLS, 1)) + np.stack([np.zeros(CELLS), 0.1 * rng.standard_normal(CELLS)], axis=-1)
    gain = np.stack([np.ones(CELLS), rng.uniform(0, 0.6, CELLS)], axis=-1)
    swapped = rng.random(CELLS) < 0.5
    centre[swapped], gain[swapped] = centre[swapped, ::-1], gain[swapped, ::-1]
    peak = 15.0 * np.exp(0.5 * rng.standard_normal(CELLS))
    return PlaceCells(rng.uniform(0.1, 0.5, CELLS), peak, rng.uniform(0.06, 0.16, CELLS), centre, gain)


def start(count: int, rng: np.random.Generator) -> Array:
    """Rats somewhere within a run, ``(count, 4)``: position, direction, log of speed / cruising speed, 1 at rest and else 0."""
    direction = rng.choice([-1.0, 1.0], count)
    return np.stack([rng.uniform(0, TRACK, count), direction, SPEED_SPREAD * rng.standard_normal(count), np.zeros(count)], axis=-1)


def advance(states: Array, rng: np.random.Generator) -> Array:
    """States ``(..., 4)`` one bin of 25 ms later: run on, arrive and rest, or turn and leave; a copy."""
    moved = states.copy()
    decay = math.exp(-BIN / SPEED_MEMORY)
    noise = SPEED_SPREAD * math.sqrt(1 - decay**2) * rng.standard_normal(states.shape[:-1])
    moved[..., LOG_SPEED] = decay * states[..., LOG_SPEED] + noise
    resting = states[..., RESTING] > 0
    leaves = resting & (rng.random(states.shape[:-1]) < 1 - math.exp(-BIN / REST))
    moved[..., DIRECTION] = np.where(leaves, -1, 1) * states[..., DIRECTION]
    moved[..., RESTING] = resting & ~leaves
    moved[..., POSITION] += moved[..., DIRECTION] * speed(moved) * BIN
    arrives = (moved[..., POSITION] <= 0) & (moved[..., DIRECTION] < 0) | (moved[..., POSITION] >= TRACK) & (moved[..., DIRECTION] > 0)
    moved[..., RESTING] = np.where(arrives, 1.0, moved[..., RESTING])
    moved[..., POSITION] = moved[..., POSITION].clip(0, TRACK)
    return moved


def speed(states: Array) -> Array:
    """In m/s, ``(...)``; the mean while running is about the cruising speed."""
    return np.where(states[..., RESTING] > 0, 0.0, CRUISE * np.exp(states[..., LOG_SPEED]))


def speed_gain(states: Array) -> Array:
    """m(v), ``(...)``: how much all cells fire, relative to cruising."""
    return STILL_GAIN + (1 - STILL_GAIN) * speed(states) / CRUISE
