"""Pendulum and CartPole of gymnasium, simulated and rendered by gymnasium itself: images, actions, and the states behind them.

Needs ``pip install ldm-filter[benchmarks]``; draws without a screen.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["NAMES", "GymScenes", "cartpole", "pendulum"]

NAMES = {"gym-pendulum": ("cos", "sin", "angular_velocity"), "gym-cartpole": ("position", "angle", "velocity", "angular_velocity")}
PENDULUM_SCREEN, PENDULUM_SIZE = 96, 24
START = 0.15  # of all four coordinates of CartPole, where gymnasium has 0.05, so that the pole is seen to move
POLE_ROWS, POLE_SHAPE = slice(150, 330), (18, 60)  # of the 400 x 600 picture: where cart and pole are


class GymScenes(NamedTuple):
    """Videos with their causes.

    Attributes:
        frames: ``(series, steps, y, x)`` float32, darkness of the picture, 0 to 1.
        states: ``(series, steps, d)`` float32, see ``NAMES``: angles in rad, rates per second, positions in gymnasium's units.
        actions: ``(series, steps, 1)`` float32: that which led *into* each step; 0 for the first.
    """

    frames: NDArray[np.float32]
    states: NDArray[np.float32]
    actions: NDArray[np.float32]


def pendulum(series: int, steps: int, rng: np.random.Generator, hold: int = 5) -> GymScenes:
    """Pendulum-v1 from gymnasium's own random starts, under torques uniform in [-2, 2] that are held for ``hold`` steps."""
    environment = _make("Pendulum-v1", screen_dim=PENDULUM_SCREEN)
    torques = rng.uniform(-2.0, 2.0, (series, -(-steps // hold))).repeat(hold, axis=1)[:, : steps - 1]
    seeds = rng.integers(0, 2**31, series)
    frames, states = [], []
    for seed, plan in zip(seeds, torques, strict=True):
        environment.reset(seed=int(seed))
        for torque in [None, *plan]:
            if torque is not None:
                environment.step(np.array([torque], dtype=np.float32))
            angle, rate = environment.state
            states.append([np.cos(angle), np.sin(angle), rate])
            frames.append(_reduced(environment.render(), (PENDULUM_SIZE, PENDULUM_SIZE)))
    environment.close()
    actions = np.concatenate([np.zeros((series, 1)), torques], axis=1)
    return _assembled(frames, states, actions, steps)


def cartpole(series: int, steps: int, rng: np.random.Generator, careless: float = 0.3) -> GymScenes:
    """CartPole-v1 under a balancing rule that pushes against ``angle + 0.5 rate + 0.1 position + 0.2 velocity``, at random in 30 % of the steps.

    Episodes that end within ``steps`` are drawn again.
    """
    environment = _make("CartPole-v1")
    frames: list[NDArray] = []
    states: list[NDArray] = []
    actions: list[list[float]] = []
    while len(actions) < series:
        found = _balance(environment, steps, rng, careless)
        if found is not None:
            frames += found[0]
            states += found[1]
            actions.append(found[2])
    environment.close()
    return _assembled(frames, states, np.array(actions), steps)


def _balance(environment: Any, steps: int, rng: np.random.Generator, careless: float) -> tuple[list[NDArray], list[NDArray], list[float]] | None:
    environment.reset(seed=int(rng.integers(0, 2**31)), options={"low": -START, "high": START})
    path, pushes = [np.array(environment.state)], [0.0]
    for _ in range(steps - 1):
        position, velocity, angle, rate = path[-1]
        right = rng.random() < 0.5 if rng.random() < careless else angle + 0.5 * rate + 0.1 * position + 0.2 * velocity > 0
        _, _, ended, _, _ = environment.step(int(right))
        if ended:
            return None
        path.append(np.array(environment.state))
        pushes.append(1.0 if right else -1.0)
    frames = []
    for state in path:  # drawn only for episodes that are kept
        environment.state = state
        frames.append(_reduced(environment.render()[POLE_ROWS], POLE_SHAPE))
    return frames, [state[[0, 2, 1, 3]] for state in path], pushes


def _make(name: str, **sizes: int) -> Any:
    """The environment itself, without a limit on the length of an episode, its window never shown."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the drawing library about its own future
        try:
            import gymnasium
        except ImportError:
            raise ImportError("gymnasium is not installed; pip install ldm-filter[benchmarks]") from None
        environment: Any = gymnasium.make(name, render_mode="rgb_array").unwrapped
        for size, pixels in sizes.items():
            setattr(environment, size, pixels)
        environment.reset(seed=0)
        environment.render()
    return environment


def _reduced(picture: NDArray, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Darkness, averaged over blocks of pixels."""
    grey = 1.0 - np.asarray(picture, dtype=np.float32).mean(-1) / 255.0
    height, width = grey.shape
    return grey.reshape(shape[0], height // shape[0], shape[1], width // shape[1]).mean((1, 3))


def _assembled(frames: list[NDArray], states: list[Any], actions: NDArray, steps: int) -> GymScenes:
    images = np.stack(frames).astype(np.float32)
    truth = np.array(states, dtype=np.float32)
    series = len(images) // steps
    return GymScenes(
        images.reshape(series, steps, *images.shape[1:]), truth.reshape(series, steps, -1), actions.astype(np.float32).reshape(series, steps, 1)
    )
