"""The generators do what their card says: motion, noise, jumps, rendering, seeds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from datasets.dots import TASKS, Circle, ConstantNoise, Screen, Task, generate, split_seed

SERIES, STEPS = 160, 50


@pytest.fixture(scope="module")
def drawn():
    return {name: generate(name, SERIES, STEPS, seed=3) for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_shapes_and_types(drawn, name):
    dots, size = drawn[name], TASKS[name].screen.size
    assert dots.frames.shape == (SERIES, STEPS, size, size)
    assert dots.position.shape == (SERIES, STEPS, 2)
    assert dots.noise_var.shape == dots.angle.shape == dots.jumped.shape == (SERIES, STEPS)
    assert {array.dtype for array in dots[:4]} == {np.dtype(np.float32)}
    assert dots.jumped.dtype == bool
    assert all(np.isfinite(array).all() for array in dots)


@pytest.mark.parametrize("name", TASKS)
def test_seed_decides_everything(name):
    first, again, other = (generate(name, 3, 20, seed=seed) for seed in (7, 7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.frames, other.frames)
    assert not np.allclose(first.position, other.position)


def test_a_generator_is_advanced():
    rng = np.random.default_rng(0)
    first, second = (generate("jump", 2, 5, seed=rng) for _ in range(2))
    assert not np.allclose(first.frames, second.frames)


def test_splits_never_share_a_seed():
    seeds = [split_seed(split, seed) for split in ("train", "valid", "test") for seed in range(50)]
    assert len(set(seeds)) == len(seeds)
    with pytest.raises(ValueError, match="'dev'"):
        split_seed("dev")


@pytest.mark.parametrize("name", TASKS)
def test_phases_start_anywhere(drawn, name):
    start = drawn[name].angle[:, 0]
    counts, _ = np.histogram(start, bins=8, range=(0, 2 * math.pi))
    assert ((counts - SERIES / 8) ** 2 / (SERIES / 8)).sum() < 24.3  # chi-square with 7 degrees of freedom, p = 0.001


@pytest.mark.parametrize("name", TASKS)
def test_noise_in_the_frames_has_the_stated_variance(drawn, name):
    dots, screen = drawn[name], TASKS[name].screen
    residual = dots.frames - screen.render(dots.position.astype(float))
    squares, pixels = (residual**2).sum(axis=(2, 3)), screen.size**2
    clean = dots.noise_var < 1e-9
    assert np.abs(residual[clean]).max(initial=0) < 2e-4
    ratio = squares[~clean] / dots.noise_var[~clean]  # chi-square with as many degrees of freedom as pixels
    assert ratio.mean() == pytest.approx(pixels, rel=0.01)
    assert ratio.var() == pytest.approx(2 * pixels, rel=0.1)


def test_noise_levels(drawn):
    for name, level in {"figure8": 0.01, "square": 0.1, "circular-constant-noise": 0.05, "jump": 0.15, "figure8-small": 0.04}.items():
        np.testing.assert_allclose(drawn[name].noise_var, level, rtol=1e-6)
    varying = drawn["circular-input-noise"].noise_var
    assert (varying == 0).mean() == pytest.approx(1 - math.exp(-0.3), abs=0.02)
    assert varying.mean() == pytest.approx(0.3 * math.exp(-0.3), rel=0.05)  # E max(0, e - s) = m exp(-s / m)
    state = drawn["state-noise"]
    np.testing.assert_allclose(state.noise_var, 0.05 * (state.position[..., 0] + 1), atol=1e-6)


@pytest.mark.parametrize("name", ["circular-input-noise", "circular-constant-noise", "jump", "state-noise"])
def test_circle_keeps_its_radius_and_its_angle(drawn, name):
    dots = drawn[name]
    np.testing.assert_allclose(np.linalg.norm(dots.position, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(dots.position, np.stack([np.cos(dots.angle), np.sin(dots.angle)], -1), atol=1e-6)


@pytest.mark.parametrize(("name", "diffusion"), [("circular-constant-noise", 0.002), ("state-noise", 0.005), ("circular-input-noise", 0.05)])
def test_circle_turns_and_diffuses(drawn, name, diffusion):
    step = np.diff(drawn[name].angle.astype(float), axis=1) - math.pi / 10
    mean = np.exp(1j * step).mean()
    assert np.angle(mean) == pytest.approx(0, abs=0.01)  # 20 frames a round
    # Independent of the generator's code: push the unit vector by noise and normalise.
    vectors = 1 + math.sqrt(diffusion) * (np.random.default_rng(1).standard_normal((200_000, 2)) @ np.array([1, 1j]))
    assert np.abs(mean) == pytest.approx((vectors / np.abs(vectors)).real.mean(), abs=0.0015)


def test_jumps_are_rare_and_135_degrees(drawn):
    dots = generate("jump", 2000, 30, seed=1)
    assert dots.jumped[:, 1:].mean() == pytest.approx(0.01, abs=0.002)
    assert not dots.jumped[:, 0].any()
    step = np.diff(dots.angle.astype(float), axis=1) % (2 * math.pi)
    np.testing.assert_allclose(step[dots.jumped[:, 1:]], math.pi / 10 + 0.75 * math.pi, atol=1e-5)
    np.testing.assert_allclose(step[~dots.jumped[:, 1:]], math.pi / 10, atol=1e-5)
    assert not any(drawn[name].jumped.any() for name in TASKS if name != "jump")


@pytest.mark.parametrize("name", ["figure8", "figure8-small", "square"])
def test_clocked_motions_repeat_after_20_frames(drawn, name):
    position = drawn[name].position
    np.testing.assert_allclose(position[:, 20:], position[:, :-20], atol=1e-5)
    assert np.abs(position[:, 10:] - position[:, :-10]).max() > 0.5


def test_figure8_and_square_are_their_curves(drawn):
    x, y = np.moveaxis(drawn["figure8"].position.astype(float), -1, 0)
    np.testing.assert_allclose(y**2, x**2 * (1 - x**2), atol=1e-5)
    square = drawn["square"].position
    np.testing.assert_allclose(np.abs(square).max(axis=-1), 1, atol=1e-6)
    same_side = np.minimum(*np.moveaxis(np.abs(np.diff(square, axis=1)), -1, 0)) < 1e-6
    length = np.abs(np.diff(square, axis=1)).sum(axis=-1)
    np.testing.assert_allclose(length[same_side], 0.4, atol=1e-5)  # four sides of 2 in 20 frames


def test_pixel_formula_and_orientation():
    position = np.array([0.9, -0.4])
    frame = Screen().render(position)
    p = (position + 3) * 10 / 6
    expected = [[math.exp(-((i - p[0]) ** 2 + (j - p[1]) ** 2) / 2) for i in range(10)] for j in range(10)]
    np.testing.assert_allclose(frame, expected, rtol=1e-12)
    row, column = np.unravel_index(frame.argmax(), frame.shape)
    assert (column, row) == tuple(np.rint(p).astype(int))


def test_screen_clamps():
    np.testing.assert_array_equal(Screen().pixel(np.array([-9.0, 9.0])), [0, 9])
    np.testing.assert_allclose(Screen(24, 1.5, 23 / 3).pixel(np.array([0.0, -1.5])), [11.5, 0])


def test_own_tasks_are_taken():
    quiet = Task(Circle(diffusion=0.3), ConstantNoise(0.0))
    dots = generate(quiet, 2, 4)
    np.testing.assert_allclose(dots.frames, Screen().render(dots.position), atol=1e-6)
    assert generate(replace(quiet, screen=Screen(12)), 2, 4).frames.shape == (2, 4, 12, 12)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="task is 'circle'; expected one of figure8"):
        generate("circle", 1)
    with pytest.raises(ValueError, match="series and steps are 0 and 100"):
        generate("jump", 0)
