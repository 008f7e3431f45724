"""The tasks on videos with known causes. Figures are made by `python -m benchmarks.quality`, never here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks import quality, records, scene_methods, scene_tasks
from benchmarks.scene_tasks import Bench, Estimate, evaluate, judge, settings_of
from datasets import moving_digits
from tests.optional import needs


def test_an_affine_image_of_the_truth_gets_full_marks() -> None:
    data = Bench("bouncing-ball", settings_of("bouncing-ball", "smoke"), 0)
    assert data.test.asked.sum() == 6 * 12 and np.isnan(data.test.frames[data.test.asked]).all() and not np.isnan(data.train.frames).any()
    rng = np.random.default_rng(0)
    bent = [
        Estimate(3.0 * part.truth + rng.normal(size=part.truth.shape), np.broadcast_to(np.eye(2), (*part.truth.shape, 2)))
        for part in (data.readout, data.test)
    ]
    figures = evaluate(*bent, data)
    assert figures["affine_r2"] > 0.995 and figures["mse"] == pytest.approx(1 / 9, rel=0.3) and 0.85 < figures["coverage95"] <= 1.0
    assert figures["affine_r2"] == pytest.approx((figures["r2_x"] + figures["r2_y"]) / 2, abs=0.01)


def test_the_exact_path_goes_through_walls_that_nobody_saw() -> None:
    data = Bench("bouncing-ball", settings_of("bouncing-ball", "smoke"), 1)
    figures = judge(*scene_methods._exact_ball(data.test), data)
    assert figures["affine_r2"] > 0.99 and figures["coverage95"] > 0.7


def test_centroids_are_missing_where_frames_are() -> None:
    data = Bench("bouncing-ball", settings_of("bouncing-ball", "smoke"), 0)
    centroid = scene_methods._centroid(data.test.frames)
    assert np.isnan(centroid[data.test.asked]).all()
    assert np.abs(centroid - data.test.truth)[~data.test.asked].max() < 0.4


def test_gaps_are_as_many_and_as_long_as_asked_for() -> None:
    data = Bench("bouncing-ball", settings_of("bouncing-ball", "smoke"), 0)
    missing = np.isnan(scene_methods._with_gaps(data)).all((2, 3)).sum(1)
    assert sorted(set(missing.tolist())) == [0, 12] and (missing > 0).sum() == 12
    assert not np.isnan(data.train.frames).any()


@pytest.mark.parametrize("task", ["bouncing-ball", "gym-cartpole"])
def test_a_smoke_run_of_every_method(task: str, tmp_path: Path) -> None:
    if task.startswith("gym"):
        needs("gymnasium")
    assert quality.run_all([task], None, "smoke", 1, tmp_path) == 0
    rows = records.read(tmp_path)
    assert [row["method"] for row in rows] == list(scene_methods.default_methods(task))
    assert all({"affine_r2", "nll", "crps", "coverage95", "nees"} <= set(row["metrics"]) for row in rows)


def test_unknown_names_are_refused() -> None:
    for call, message in (
        (lambda: settings_of("bouncing-balls", "cpu"), "task is 'bouncing-balls'"),
        (lambda: settings_of("gym-pendulum", "huge"), "budget is 'huge'"),
        (lambda: scene_methods.run("bouncing-ball", "", "guess", "smoke", 0), "method is 'guess'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_training_read_out_and_test_show_digits_of_other_people() -> None:
    shares = np.array(scene_tasks.DIGIT_SHARES)
    assert (shares[1:, 0] >= shares[:-1, 1]).all() and shares[0, 0] == 0.0 and shares[-1, 1] == 1.0
    targets = load_digits().target
    for number, share in enumerate(scene_tasks.DIGIT_SHARES):
        first, end = (int(part * len(targets)) for part in share)
        labels = moving_digits.generate(40, 2, np.random.default_rng(number), share).labels
        np.testing.assert_array_equal(labels, targets[np.random.default_rng(number).integers(first, end, 40)])


@pytest.mark.slow
def test_a_pendulum_seen_by_nobody_before_is_known_with_its_rate() -> None:
    needs("gymnasium")
    figures = scene_methods.run("gym-pendulum", "", "ldm-ekf", "cpu", 0).metrics
    assert min(figures[f"r2_{name}"] for name in ("cos", "sin")) > 0.95 and figures["r2_angular_velocity"] > 0.9


@pytest.mark.slow
def test_the_angle_of_a_pole_on_a_moving_cart_is_known_with_its_rate() -> None:
    needs("gymnasium")
    figures = scene_methods.run("gym-cartpole", "", "ldm-linear", "cpu", 0).metrics
    assert min(figures[f"r2_{name}"] for name in ("position", "angle")) > 0.95
    assert min(figures[f"r2_{name}"] for name in ("velocity", "angular_velocity")) > 0.9
