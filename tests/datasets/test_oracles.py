"""The oracles are exact: against Monte Carlo over the generator itself, closed forms, and what Bayes filters must satisfy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad

from benchmarks.oracles import bayes_filter, offset_normal_density
from datasets.dots import TASKS, Circle, ConstantNoise, StateNoise, Task, generate, split_seed

CIRCLES = ["circular-input-noise", "circular-constant-noise", "jump", "state-noise"]


@pytest.fixture(scope="module")
def filtered():
    videos = {name: generate(name, 40, 50, seed=split_seed("test")) for name in CIRCLES}
    return {name: (dots, bayes_filter(name, dots)) for name, dots in videos.items()}


def mean_square(error):
    return float((error**2).mean())


@pytest.mark.parametrize("variance", [0.002, 0.05, 1.0])
def test_offset_normal_density(variance):
    total, _ = quad(offset_normal_density, -math.pi, math.pi, args=(variance,), points=[0])
    assert total == pytest.approx(1, abs=1e-7)
    cosine, _ = quad(lambda d: math.cos(d) * offset_normal_density(d, variance), -math.pi, math.pi, points=[0])
    pushed = 1 + math.sqrt(variance) * (np.random.default_rng(0).standard_normal((400_000, 2)) @ np.array([1, 1j]))
    assert cosine == pytest.approx((pushed / np.abs(pushed)).real.mean(), abs=0.003)


@pytest.mark.parametrize(
    "task",
    [
        Task(Circle(diffusion=0.05), ConstantNoise(0.4)),
        Task(Circle(diffusion=0.3, jump_rate=0.4), ConstantNoise(0.4)),
        Task(Circle(jump_rate=0.3), ConstantNoise(0.4)),
        Task(Circle(diffusion=0.05), StateNoise(1.5)),
        replace(TASKS["figure8"], noise=ConstantNoise(0.4)),
    ],
    ids=["diffusing", "diffusing and jumping", "jumping", "noise from the state", "figure8"],
)
def test_against_monte_carlo_over_the_generator(task):
    """Draw paths with the generator, weigh each by its density of the frames: no grid, no transition density."""
    steps, rng = 3, np.random.default_rng(5)
    dots = generate(task, 2, steps, seed=rng)
    exact = bayes_filter(task, dots)
    angle, _ = task.motion.walk(40_000, steps, rng)
    paths = task.motion.position(angle)
    clean = task.screen.render(paths).reshape(len(paths), steps, -1)
    variance = task.noise.variance(paths, rng)
    for series in range(2):
        pixels = dots.frames[series].reshape(steps, -1)
        log_weight = -0.5 * (((pixels - clean) ** 2).sum(-1) / variance + pixels.shape[1] * np.log(2 * math.pi * variance)).sum(axis=1)
        top = log_weight.max()
        weight = np.exp(log_weight - top)
        assert exact.log_likelihood[series].sum() == pytest.approx(top + math.log(weight.mean()), abs=0.1)
        weight /= weight.sum()
        mean = weight @ paths[:, -1]
        cov = np.einsum("p,pi,pj->ij", weight, paths[:, -1] - mean, paths[:, -1] - mean)
        np.testing.assert_allclose(exact.mean[series, -1], mean, atol=0.02)
        np.testing.assert_allclose(exact.cov[series, -1], cov, atol=0.01)


def test_near_linear_limit_is_the_kalman_filter_of_the_angle():
    """Small noises: the angle's variance obeys the scalar Riccati recursion 1 / P = 1 / (P + q) + I / v."""
    diffusion, level = 1e-4, 1e-3
    task = Task(Circle(diffusion=diffusion), ConstantNoise(level))
    dots = generate(task, 60, 15, seed=0)
    result = bayes_filter(task, dots, points=1440)
    turn = 1e-4
    frames = task.screen.render(task.motion.position(np.array([0.3 - turn, 0.3 + turn])))
    information = (((frames[1] - frames[0]) / (2 * turn)) ** 2).sum() / level
    variance = np.empty(15)
    variance[0] = 1 / information
    for step in range(1, 15):
        variance[step] = 1 / (information + 1 / (variance[step - 1] + diffusion))
    np.testing.assert_allclose(np.trace(result.cov, axis1=2, axis2=3).mean(axis=0), variance, rtol=0.02)
    predicted = np.trace(result.predicted_cov, axis1=2, axis2=3).mean(axis=0)
    np.testing.assert_allclose(predicted[1:], variance[:-1] + diffusion, rtol=0.02)


@pytest.mark.parametrize("name", CIRCLES)
def test_stated_covariance_is_the_true_error(filtered, name):
    dots, result = filtered[name]
    error = result.mean - dots.position
    stated = np.trace(result.cov, axis1=2, axis2=3)
    per_series = ((error**2).sum(-1) - stated).mean(axis=1)
    assert abs(per_series.mean()) < 4 * per_series.std() / math.sqrt(len(per_series))
    assert np.linalg.eigvalsh(result.cov).min() > -1e-12


@pytest.mark.parametrize("name", CIRCLES)
def test_knowing_the_truth_pays(filtered, name):
    """Less error than an affine read-out of each frame, and than the oracle of a slightly wrong generator."""
    dots, result = filtered[name]
    train = generate(name, 60, 50, seed=split_seed("train"))

    def pca(videos, basis, centre):
        scores = (videos.frames.reshape(-1, 100) - centre) @ basis
        return np.column_stack([scores, np.ones(len(scores))])

    centre = train.frames.reshape(-1, 100).mean(axis=0)
    basis = np.linalg.svd(train.frames.reshape(-1, 100) - centre, full_matrices=False)[2][:8].T
    weights = np.linalg.lstsq(pca(train, basis, centre), train.position.reshape(-1, 2), rcond=None)[0]
    readout = (pca(dots, basis, centre) @ weights).reshape(dots.position.shape)
    best = mean_square(result.mean - dots.position)
    assert best < 0.3 * mean_square(readout - dots.position)
    wrong = replace(TASKS[name], motion=replace(TASKS[name].motion, diffusion=2 * TASKS[name].motion.diffusion + 0.01))
    misled = bayes_filter(wrong, dots)
    assert best < mean_square(misled.mean - dots.position)
    assert result.log_likelihood.mean() > misled.log_likelihood.mean()


@pytest.mark.parametrize("name", CIRCLES)
def test_a_finer_grid_changes_nothing(filtered, name):
    dots, coarse = filtered[name]
    few = type(dots)(*(array[:6, :30] for array in dots))
    fine = bayes_filter(name, few, points=1440)
    np.testing.assert_allclose(fine.mean, coarse.mean[:6, :30], atol=0.012)
    assert mean_square(fine.mean - coarse.mean[:6, :30]) < 4e-6


def test_filtering_is_causal(filtered):
    dots, result = filtered["circular-input-noise"]
    begun = bayes_filter("circular-input-noise", type(dots)(*(array[:4, :10] for array in dots)))
    np.testing.assert_allclose(begun.mean, result.mean[:4, :10], atol=1e-9)
    np.testing.assert_allclose(begun.log_likelihood, result.log_likelihood[:4, :10], atol=1e-7)


def test_clean_frames_tell_the_position(filtered):
    dots, result = filtered["circular-input-noise"]
    clean = dots.noise_var == 0
    assert clean.any()
    assert np.isfinite(result.log_likelihood).all()
    assert np.abs(result.mean - dots.position)[clean].max() < 1e-3  # far below the grid's spacing of 0.009


@pytest.mark.parametrize(("name", "limit"), [("figure8", 2e-4), ("square", 3e-3), ("figure8-small", 1e-4)])
def test_clocked_motions(name, limit):
    dots = generate(name, 8, 60, seed=split_seed("test"))
    assert mean_square(bayes_filter(name, dots).mean - dots.position) < limit


def test_bad_arguments_are_named():
    dots = generate("jump", 1, 2)
    with pytest.raises(ValueError, match="task is 'circle'"):
        bayes_filter("circle", dots)
    with pytest.raises(ValueError, match=r"shape \(1, 2, 10, 10\)"):
        bayes_filter("figure8-small", dots)
    with pytest.raises(ValueError, match=r"points is 100: a rotation by 153 degrees is 42\.5 grid points"):
        bayes_filter("jump", dots, points=100)
    with pytest.raises(ValueError, match="cannot hold process noise"):
        bayes_filter("circular-constant-noise", dots, points=100)
