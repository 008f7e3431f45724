"""Bouncing balls, moving digits, gymnasium's pendulum and cart: frames show the states that stand beside them."""

from __future__ import annotations

import numpy as np
import pytest

from datasets import bouncing_ball, gym_scenes, moving_digits


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
    pytest.importorskip("gymnasium")
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
    pytest.importorskip("gymnasium")
    found = gym_scenes.cartpole(3, 12, np.random.default_rng(0))
    assert found.frames.shape == (3, 12, 18, 60) and set(np.unique(found.actions[:, 1:])) <= {-1.0, 1.0}
    position, angle, velocity, rate = np.moveaxis(found.states.astype(float), -1, 0)
    assert position[:, 1:] == pytest.approx(position[:, :-1] + 0.02 * velocity[:, :-1], abs=1e-5)
    assert angle[:, 1:] == pytest.approx(angle[:, :-1] + 0.02 * rate[:, :-1], abs=1e-5)
    columns = found.frames[..., -4:, :].sum(-2)
    centre = (columns @ (np.arange(60) + 0.5) - columns.min() * 0) / columns.sum(-1)
    assert np.corrcoef(centre.ravel(), position.ravel())[0, 1] > 0.9
