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
# CartPole: bounds of (position, velocity, angle, rate) at the start, and of angle and position on the way
START, WIDEST, FARTHEST = np.array([0.05, 0.2, 0.1, 0.5]), np.deg2rad(24.0), 0.5
LEAN, LEAN_HELD, CARELESS, REPEAT = 0.15, 6, 0.2, 2
POLE_ROWS, POLE_SHAPE = slice(150, 330), (9, 30)  # of the 400 x 600 picture: where cart and pole are


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


def cartpole(series: int, steps: int, rng: np.random.Generator) -> GymScenes:
    """CartPole-v1, each action held for two of gymnasium's steps, under a rule that makes the pole sway.

    The rule pushes against ``(angle - lean) + 0.25 rate + 0.2 position + 0.25 velocity``, at random in 20 % of the steps; the lean it wants is
    drawn anew in [-0.15, 0.15] rad every six. An episode ends where the pole leans by more than 24 degrees (gymnasium: 12) or the cart is further
    than 0.5 from the middle (2.4), and one that ends within ``steps`` is drawn again.
    """
    environment = _make("CartPole-v1", theta_threshold_radians=WIDEST, x_threshold=FARTHEST)
    frames: list[NDArray] = []
    states: list[NDArray] = []
    actions: list[list[float]] = []
    while len(actions) < series:
        found = _sway(environment, steps, rng)
        if found is not None:
            frames += [_drawn(environment, state) for state in found[0]]  # only of episodes that are kept
            states += [state[[0, 2, 1, 3]] for state in found[0]]
            actions.append(found[1])
    environment.close()
    return _assembled(frames, states, np.array(actions), steps)


def _sway(environment: Any, steps: int, rng: np.random.Generator) -> tuple[list[NDArray], list[float]] | None:
    """States and pushes of an episode, None where it ends too soon."""
    environment.reset(seed=int(rng.integers(0, 2**31)))
    environment.state = rng.uniform(-1.0, 1.0, 4) * START
    path, pushes, lean = [np.array(environment.state)], [0.0], 0.0
    for step in range(steps - 1):
        if step % LEAN_HELD == 0:
            lean = rng.uniform(-LEAN, LEAN)
        position, velocity, angle, rate = path[-1]
        right = rng.random() < 0.5 if rng.random() < CARELESS else angle - lean + 0.25 * rate + 0.2 * position + 0.25 * velocity > 0
        for _ in range(REPEAT):
            _, _, ended, _, _ = environment.step(int(right))
            if ended:
                return None
        path.append(np.array(environment.state))
        pushes.append(1.0 if right else -1.0)
    return path, pushes


def _drawn(environment: Any, state: NDArray) -> NDArray[np.float32]:
    environment.state = state
    return _reduced(environment.render()[POLE_ROWS], POLE_SHAPE)


def _make(name: str, **settings: float) -> Any:
    """The environment itself, without a limit on the length of an episode, its window never shown."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the drawing library about its own future
        try:
            import gymnasium
        except ImportError:
            raise ImportError("gymnasium is not installed; pip install ldm-filter[benchmarks]") from None
        environment: Any = gymnasium.make(name, render_mode="rgb_array").unwrapped
        for setting, value in settings.items():
            setattr(environment, setting, value)
        environment.reset(seed=0)
        environment.render()
    return environment


def _reduced(picture: NDArray, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Darkness, averaged over blocks of pixels and the three colours."""
    height, width = (size // parts for size, parts in zip(picture.shape, shape, strict=False))
    total = np.asarray(picture).reshape(shape[0], height, shape[1], 3 * width).sum((1, 3), dtype=np.uint32)
    return (1.0 - total / (255.0 * 3 * height * width)).astype(np.float32)


def _assembled(frames: list[NDArray], states: list[Any], actions: NDArray, steps: int) -> GymScenes:
    images = np.stack(frames).astype(np.float32)
    truth = np.array(states, dtype=np.float32)
    series = len(images) // steps
    return GymScenes(
        images.reshape(series, steps, *images.shape[1:]), truth.reshape(series, steps, -1), actions.astype(np.float32).reshape(series, steps, 1)
    )
