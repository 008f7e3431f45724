"""The pendulum tasks: what is judged, the oracle, the networks beside the filter, and a run of each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.pendulum_methods import default_methods, run
from benchmarks.pendulum_networks import Rival
from benchmarks.pendulum_oracle import fitting_images, particle_moments
from benchmarks.pendulum_tasks import SETTINGS, judge, settings_of, unfolded
from datasets.pendulum import TASKS, Simulator, generate, render


def test_an_image_fits_the_frames_that_it_made_and_no_other_where_it_is_seen() -> None:
    drawn = generate(replace(TASKS["pendulum"], simulator=Simulator(substep=2.5e-3)), 20, seed=1)
    frames, images = drawn.frames.reshape(-1, 576), np.unique(render(drawn.angle).reshape(-1, 576), axis=0)
    visible = drawn.visible.reshape(-1)
    fits = fitting_images(images, frames, visible)
    true = (images == render(drawn.angle).reshape(-1, 1, 576)).all(-1)
    assert true.any(1).all() and fits[true].all()
    assert np.array_equal(fits[visible == 1], true[visible == 1])
    assert fits[visible == 0].all()


def test_the_oracle_knows_where_the_pendulum_is() -> None:
    drawn = generate("pendulum", 6, seed=2)
    figures = judge(*particle_moments("pendulum", drawn, particles=100), drawn.target)
    assert figures["r2"] > 0.99 and figures["nll"] < -6
    assert figures["nll_full"] < figures["nll"]  # errors lie along the circle


def test_the_oracle_waits_for_frames_that_were_left_out() -> None:
    drawn = generate("pendulum-irregular", 4, seed=2)
    mean, cov = particle_moments("pendulum-irregular", drawn, particles=100)
    assert judge(mean, cov, drawn.target)["r2"] > 0.99
    packed = drawn._replace(stamps=np.broadcast_to(np.arange(50), drawn.stamps.shape))
    assert judge(*particle_moments("pendulum-irregular", packed, particles=100), drawn.target)["mse"] > 2 * judge(mean, cov, drawn.target)["mse"]


def test_variances_and_the_whole_covariance_are_judged_apart() -> None:
    rng = np.random.default_rng(0)
    cov = np.array([[1.0, 0.8], [0.8, 1.0]])
    error = rng.multivariate_normal(np.zeros(2), cov, (40, 50))
    figures = judge(np.zeros_like(error), np.broadcast_to(cov, (40, 50, 2, 2)), error)
    assert figures["nll"] == pytest.approx(0.5 * (error**2).sum(-1).mean() + np.log(2 * np.pi))
    assert figures["nll_full"] < figures["nll"] - 0.3


def test_left_out_frames_are_nan_on_the_grid() -> None:
    drawn = generate("pendulum-irregular", 3, seed=0)
    images, targets = unfolded(drawn, 100)
    series = np.arange(3)[:, None]
    assert images.shape == (3, 100, 24, 24) and np.isnan(images).any((2, 3)).sum() == 150 == np.isnan(targets).any(-1).sum()
    np.testing.assert_allclose(images[series, drawn.stamps], drawn.frames / np.float32(255))
    assert np.array_equal(targets[series, drawn.stamps], drawn.target)


def test_the_gru_filters() -> None:
    torch.manual_seed(0)
    model, frames = Rival(recurrent=True), torch.randint(0, 255, (2, 6, 24, 24), dtype=torch.uint8)
    stamps = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 2, 3, 5, 6, 9]])
    before = model(frames, stamps)[0]
    frames[:, 4:] = 0
    torch.testing.assert_close(model(frames, stamps)[0][:, :4], before[:, :4])
    assert not torch.allclose(model(frames, stamps)[0][:, 4:], before[:, 4:])
    assert not torch.allclose(model(frames, 2 * stamps)[0][:, 1:], model(frames, stamps)[0][:, 1:])


@pytest.mark.parametrize("task", SETTINGS)
def test_a_smoke_run(task: str) -> None:
    for method in [name for name in default_methods(task) if name not in ("pca-affine", "encoder")]:
        outcome = run(task, "", method, "smoke", 0)
        assert {"mse", "r2", "nll", "nll_full", "coverage95", "fit_seconds"} <= set(outcome.metrics)
        assert all(np.isfinite(value) for value in outcome.metrics.values())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="task is 'swing'"):
        settings_of("swing", "cpu")
    with pytest.raises(ValueError, match="budget is 'night'"):
        settings_of("pendulum", "night")
    with pytest.raises(ValueError, match="method is 'magic'"):
        run("pendulum", "", "magic", "smoke", 0)
