"""Bouncing balls, moving digits, gymnasium's pendulum and cart: frames show the states that stand beside them."""

from __future__ import annotations

import numpy as np
import pytest

from datasets import bouncing_ball, gym_scenes, moving_digits
from tests.optional import needs


def test_balls_stay_in_the_box_and_keep_their_speed() -> None:
    found = bouncing_ball.generate(300, 60, np.random.default_rng(0))
    position, velocity = found.states[..., :2], found.states[..., 2:]
    assert position.min() >= bouncing_ball.LOW and position.max() <= bouncing_ball.HIGH
    speed = np.linalg.norm(velocity, axis=-1)
    assert speed == pytest.approx(np.repeat(speed[:, :1], 60, axis=1), rel=1e-5) and speed.min() >= 10.0 and speed.max() <= 15.0
    assert (np.abs(np.diff(position, axis=1)) <= bouncing_ball.STEP * np.abs(velocity[:, 1:]) + 1e-4).all()


def test_reflection_is_that_of_a_simulation_in_small_steps() -> None:
    place, way = np.array([6.0]), np.array([-12.0])
    x, v = place.copy(), way.copy()
    for _ in range(40_000):
        x = x + 1e-4 * v
        v = np.where((x < bouncing_ball.LOW) & (v < 0) | (x > bouncing_ball.HIGH) & (v > 0), -v, v)
    exact = bouncing_ball.reflect(place, way, np.array([4.0]))
    assert exact[0] == pytest.approx(x, abs=1e-2) and exact[1] == pytest.approx(v)


def test_the_disc_is_where_the_ball_is() -> None:
    found = bouncing_ball.generate(20, 20, np.random.default_rng(1))
    axis = np.arange(bouncing_ball.SIZE) + 0.5
    total = found.frames.sum((2, 3))
    centre = np.stack([found.frames.sum(2) @ axis, found.frames.sum(3) @ axis], axis=-1) / total[..., None]
    assert np.abs(centre - found.states[..., :2]).max() < 0.4
    assert total.mean() == pytest.approx(np.pi * 9, rel=0.02)
    hidden = bouncing_ball.hide(found.frames)
    assert np.isnan(hidden[:, 4:16]).all() and not np.isnan(hidden[:, :4]).any() and not np.isnan(found.frames).any()


def test_digits_move_at_their_velocity_and_splits_share_none() -> None:
    found = moving_digits.generate(30, 40, np.random.default_rng(2))
    position, velocity = found.states[..., :2], found.states[..., 2:]
    step = np.diff(position, axis=1)
    inside = np.sign(velocity[:, 1:]) == np.sign(velocity[:, :-1])
    assert step[inside] == pytest.approx(velocity[:, 1:][inside], abs=1e-4)
    assert position.min() >= 0.0 and position.max() <= moving_digits.SIZE - moving_digits.DIGIT
    still = found.frames - moving_digits._render(moving_digits._digits()[0][:1].repeat(30, 0) * 0, position)
    assert still[:, :, 0, 0].var() < 0.5 and found.frames.shape == (30, 40, 24, 24)
    images = moving_digits._digits()[0]
    first = moving_digits._render(images[[7]], np.array([[[3.0, 5.0]]]))[0, 0]
    np.testing.assert_allclose(first[5:13, 3:11], images[7])
    assert first.sum() == pytest.approx(images[7].sum())


def test_the_pendulum_is_gymnasiums_own() -> None:
    needs("gymnasium")
    found = gym_scenes.pendulum(3, 8, np.random.default_rng(0))
    assert found.frames.shape == (3, 8, 24, 24) and found.states.shape == (3, 8, 3) and found.actions.shape == (3, 8, 1)
    cos, sin, rate = np.moveaxis(found.states.astype(float), -1, 0)
    expected = np.clip(rate[:, :-1] + (15.0 * sin[:, :-1] + 3.0 * found.actions[:, 1:, 0]) * 0.05, -8.0, 8.0)
    assert rate[:, 1:] == pytest.approx(expected, abs=1e-4)
    rod = found.frames[0, 0]  # drawn from the middle towards (sin, -cos) on the screen
    y, x = np.mgrid[:24, :24] - 11.5
    place = np.array([(rod * x).sum(), (rod * y).sum()])
    assert place @ [-sin[0, 0], -cos[0, 0]] > 0.8 * np.linalg.norm(place) and (found.actions[:, 0] == 0).all()


def test_carts_stay_up_and_are_drawn_where_they_are() -> None:
    needs("gymnasium")
    found = gym_scenes.cartpole(3, 12, np.random.default_rng(0))
    assert found.frames.shape == (3, 12, 9, 30) and set(np.unique(found.actions[:, 1:])) <= {-1.0, 1.0}
    position, angle = np.moveaxis(found.states[..., :2].astype(float), -1, 0)
    assert np.abs(angle).max() <= gym_scenes.WIDEST and np.abs(position).max() <= gym_scenes.FARTHEST
    state = found.states[:, :-1].astype(float)
    for _ in range(2):
        state = _pushed(state, 10.0 * found.actions[:, 1:, 0].astype(float))
    assert found.states[:, 1:] == pytest.approx(state, abs=1e-5)
    columns = found.frames[..., -2:, :].sum(-2)
    centre = (columns @ (np.arange(30) + 0.5)) / columns.sum(-1)
    assert np.corrcoef(centre.ravel(), position.ravel())[0, 1] > 0.9


def _pushed(state: np.ndarray, force: np.ndarray) -> np.ndarray:
    """0.02 s of a cart of 1 kg under a pole of 0.1 kg and 1 m, by explicit Euler (Barto, Sutton & Anderson 1983, without friction)."""
    position, angle, velocity, rate = np.moveaxis(state, -1, 0)
    common = (force + 0.05 * rate**2 * np.sin(angle)) / 1.1
    turned = (9.8 * np.sin(angle) - np.cos(angle) * common) / (0.5 * (4.0 / 3.0 - 0.1 * np.cos(angle) ** 2 / 1.1))
    moved = common - 0.05 * turned * np.cos(angle) / 1.1
    return np.stack([position + 0.02 * velocity, angle + 0.02 * rate, velocity + 0.02 * moved, rate + 0.02 * turned], axis=-1)
