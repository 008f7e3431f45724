"""The pendulum images do what their card says: motion, rendering, noise, left-out frames, seeds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from datasets.pendulum import CANVAS, REACH, TASKS, Distractor, Simulator, Task, draw, end_point, generate, render

SERIES = 300
QUICK = Simulator(substep=2.5e-3)


@pytest.fixture(scope="module")
def drawn():
    return generate(replace(TASKS["pendulum"], simulator=QUICK), SERIES, seed=3)


def test_shapes_and_types(drawn):
    assert drawn.frames.shape == (SERIES, 75, 24, 24) and drawn.frames.dtype == np.uint8
    assert drawn.target.shape == (SERIES, 75, 2) and drawn.target.dtype == np.float32
    np.testing.assert_allclose(drawn.target, np.stack([np.sin(drawn.angle), np.cos(drawn.angle)], -1), atol=1e-6)
    assert np.array_equal(drawn.stamps, np.broadcast_to(np.arange(75), (SERIES, 75)))


def test_seed_decides_everything():
    task = replace(TASKS["pendulum-irregular"], simulator=replace(QUICK, dt=0.01))
    first, again, other = (generate(task, 3, seed=seed) for seed in (7, 7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.frames, other.frames)
    rng = np.random.default_rng(7)
    assert np.array_equal(generate(task, 3, rng).frames, first.frames) and not np.array_equal(generate(task, 3, rng).frames, first.frames)


def test_motion_solves_the_equation():
    start = np.array([0.3, 1.7, -2.5]), np.array([0.0, -3.0, 1.5])
    theta, omega = Simulator().advance(*start)
    for i in range(3):
        exact = solve_ivp(lambda _, y: [y[1], 29.43 * np.sin(y[0]) - 0.1 * y[1]], (0, 0.05), [start[0][i], start[1][i]], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose([theta[i], omega[i]], exact.y[:, -1], atol=3e-4)


def test_process_noise_enters_once_per_frame(drawn):
    theta, omega = QUICK.advance(drawn.angle[:, :-1] + math.pi, drawn.velocity[:, :-1])
    jump = drawn.velocity[:, 1:] - omega
    assert abs(jump.std() / 0.1 - 1) < 0.02 and abs(jump.mean()) < 0.003
    turned = drawn.angle[:, 1:] + math.pi - theta
    np.testing.assert_allclose(np.sin(turned), 0, atol=1e-9)  # a whole number of turns: the angle itself has no noise
    assert np.all(drawn.velocity[:, 0] == 0)
    counts, _ = np.histogram(drawn.angle[:, 0], bins=8, range=(0, 2 * math.pi))
    assert ((counts - SERIES / 8) ** 2 / (SERIES / 8)).sum() < 24.3  # chi-square with 7 degrees of freedom, p = 0.001


def test_the_pendulum_hangs_at_angle_zero():
    image = render(np.array(0.0)).astype(float)
    rows, columns = np.mgrid[:24, :24]
    assert (image * rows).sum() / image.sum() > 16 and abs((image * columns).sum() / image.sum() - 11.5) < 0.6
    right = render(np.array(math.pi / 2)).astype(float)
    assert (right * columns).sum() / right.sum() > 16


def test_drawing_once_is_drawing_each():
    angle = np.random.default_rng(0).uniform(0, 2 * math.pi, 50)
    ends = CANVAS / 2 + REACH * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    assert all(np.array_equal(draw(*end), image) for end, image in zip(ends.tolist(), render(angle), strict=True))
    assert np.array_equal(end_point(angle), ends.astype(int))


def test_noise_has_the_published_statistics():
    seen = Distractor().visible(5000, 75, np.random.default_rng(1))
    assert np.all(seen[:, :5] == 1)
    later = seen[:, 5:]
    assert abs((later == 1).mean() - 0.168) < 0.01 and abs((later == 0).mean() - 0.167) < 0.01 and abs(later.mean() - 0.5) < 0.01


def test_frames_mix_image_and_noise(drawn):
    clean = render(drawn.angle).astype(float)
    share = drawn.visible[..., None, None]
    low, high = np.floor(share * clean - 0.01), share * clean + (1 - share) * 255 + 0.01
    assert np.all((drawn.frames >= low) & (drawn.frames <= high))
    noise = drawn.frames[drawn.visible == 0].astype(float)
    assert abs(noise.mean() - 127) < 0.5 and abs(noise.std() - 256 / math.sqrt(12)) < 0.5


def test_left_out_frames():
    task = Task(Simulator(dt=0.01, substep=2.5e-3), None, steps=100, kept=50)
    some = generate(task, 20, seed=5)
    assert some.frames.shape[:2] == some.stamps.shape == (20, 50)
    assert np.all(np.diff(some.stamps, axis=1) > 0) and some.stamps.min() >= 0 and some.stamps.max() <= 99
    assert len(np.unique(some.stamps, axis=0)) == 20
    every = generate(replace(task, kept=None), 20, seed=5)
    np.testing.assert_array_equal(some.angle, np.take_along_axis(every.angle, some.stamps, axis=1))
    assert np.array_equal(some.frames, render(some.angle)) and np.all(some.visible == 1)


def test_refusals():
    with pytest.raises(ValueError, match="'swing'"):
        generate("swing", 2)
    with pytest.raises(ValueError, match="series is 0"):
        generate("pendulum", 0)
