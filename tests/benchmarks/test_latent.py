"""The identifiability tasks: systems, judge, methods. Figures are made by `python -m benchmarks.quality`, never here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import families, latent_encoder, latent_methods, latent_tasks, quality, records
from benchmarks.latent_judge import Encoding, evaluate, truth_figures
from benchmarks.latent_systems import find_system, split
from benchmarks.latent_tasks import Bench, settings_of
from ldm_filter import metrics

EVERY = [(task, condition) for task in latent_tasks.SETTINGS for condition in latent_tasks.CONDITIONS.get(task, ("",))]


# --- systems


@pytest.mark.parametrize(("task", "condition"), EVERY)
def test_every_system_draws_what_it_says_and_steps_as_its_data_do(task: str, condition: str) -> None:
    steps = settings_of(task, "smoke", condition).steps
    system = find_system(task, condition, seed=0)
    drawn = system.draw(300, steps, split(0, 2))
    assert drawn.observations.shape[:2] == drawn.truth.shape[:2] == (300, steps)
    if system.step is not None:
        residual = drawn.truth[:, 1:] - system.step(drawn.truth[:, :-1])
        assert np.abs(residual.mean((0, 1))).max() < 0.05 and metrics.r2(system.step(drawn.truth[:, :-1]), drawn.truth[:, 1:]) > 0.85
    if system.transition is not None:
        assert system.step is not None and system.step(drawn.truth) == pytest.approx(drawn.truth @ system.transition.T)


@pytest.mark.parametrize(("task", "condition"), [pair for pair in EVERY if find_system(*pair, 0).directions is not None])
def test_directions_are_how_observations_move(task: str, condition: str) -> None:
    """Neighbouring truths: the change of the observation is that which the directions say, up to the noise."""
    system = find_system(task, condition, seed=0)
    drawn = system.draw(200, settings_of(task, "smoke").steps, split(0, 2))
    truth, seen = drawn.truth.reshape(len(drawn.truth), -1, drawn.truth.shape[-1])[:, 0], drawn.observations[:, 0].reshape(200, -1)
    assert system.directions is not None
    directions = system.directions(truth)
    assert directions.shape == (200, seen.shape[1], truth.shape[1])
    assert np.isfinite(directions).all() and np.linalg.svd(directions, compute_uv=False)[:, -1].max() > 1e-3


def test_unknown_systems_are_refused() -> None:
    for task, condition in (("source-2", ""), ("place-cells", "mild"), ("sources-x", "")):
        with pytest.raises(ValueError, match=r"expected linear-latent|no such variant"):
            find_system(task, condition, 0)


def test_the_oracle_of_the_linear_latent_system_is_better_than_any_frame_alone() -> None:
    system = find_system("linear-latent", "mild", 0)
    drawn = system.draw(2, 60, split(0, 2))
    assert system.oracle is not None
    assert metrics.r2(system.oracle(drawn.observations, 4000), drawn.truth) > 0.985


def test_the_oracle_of_place_cells_finds_the_rat() -> None:
    system = find_system("place-cells", "", 0)
    drawn = system.draw(4, 150, split(0, 2))
    assert system.oracle is not None
    assert metrics.r2(system.oracle(drawn.observations, 1000), drawn.truth) > 0.98


# --- the judge


def affine(values: np.ndarray) -> np.ndarray:
    return values @ np.array([[2.0, 0.3, 0, 0], [0, 1, 0, 0], [0.5, 0, 1, 0], [0, 0, 0, 0.7]]).T + 1.0


def test_an_affine_image_of_the_truth_gets_full_marks() -> None:
    data = Bench("linear-latent", "mild", settings_of("linear-latent", "smoke"), seed=0)
    matrix = affine(np.eye(4)).T - 1.0
    transition = matrix @ data.system.transition @ np.linalg.inv(matrix)
    offset = (np.eye(4) - transition) @ np.ones(4)
    readout, test = (Encoding(affine(part.truth), np.full(part.truth.shape[:2], 1.5), transition, offset) for part in (data.readout, data.test))
    figures = evaluate(readout, test, data)
    assert [figures[name] for name in ("affine_r2", "affine_r2_back", "mcc", "dyn_r2")] == pytest.approx([1.0] * 4, abs=1e-5)
    assert figures["eig_error"] == pytest.approx(0.0, abs=1e-9) and figures["mse"] == pytest.approx(0.0, abs=1e-9) and figures["nis"] == 1.5
    assert figures["procrustes"] == pytest.approx(metrics.procrustes_disparity(affine(data.test.truth), data.test.truth))
    assert "injectivity" not in figures  # no encoder


def test_injectivity_is_measured_along_the_manifold() -> None:
    """The exact inverse of the network, made by its own Jacobian: a singular ratio of 1 everywhere, neighbours kept."""
    data = Bench("linear-latent", "mild", settings_of("linear-latent", "smoke"), seed=0)
    known = {tuple(x): z for x, z in zip(data.test.observations.reshape(-1, 40).tolist(), data.test.truth.reshape(-1, 4), strict=True)}

    def embed(rows: torch.Tensor) -> torch.Tensor:
        truth = np.stack([known[tuple(x)] for x in rows.tolist()])
        inverse = torch.as_tensor(np.linalg.pinv(data.system.directions(truth)), dtype=rows.dtype)
        return torch.einsum("nij,nj->ni", inverse, rows)

    sides = [Encoding(part.truth, latent=part.truth, embed=embed) for part in (data.readout, data.test)]
    figures = evaluate(*sides, data)
    assert figures["injectivity"] == pytest.approx(1.0, abs=1e-3) and figures["neighbours"] == 1.0


def test_a_network_reads_out_what_an_affine_map_cannot() -> None:
    data = Bench("place-cells", "", settings_of("place-cells", "smoke"), seed=0)
    bent = [Encoding(np.abs(part.truth - 0.8)) for part in (data.readout, data.test)]
    both = [Encoding(np.concatenate([side.mean, part.truth > 0.8], axis=-1)) for side, part in zip(bent, (data.readout, data.test), strict=True)]
    figures = evaluate(*both, data)
    assert figures["affine_r2"] < 0.9 and figures["mlp_r2"] > 0.98


def test_truth_figures_of_the_truth() -> None:
    data = Bench("place-cells", "", settings_of("place-cells", "smoke"), seed=0)
    assert truth_figures(data.test.truth, data) == {"affine_r2": 1.0, "mse": 0.0}


# --- methods and runner


def test_whitening_brings_all_directions_to_one_scale_and_starts_at_zero() -> None:
    values = np.random.default_rng(0).standard_normal((500, 3)) * [1.0, 1e-2, 1e-4]
    network = latent_encoder.WhitenedPerceptron(values - values.mean(0), 2, 2, (8,))
    white = torch.as_tensor(values - values.mean(0), dtype=torch.float32) @ network.whiten
    assert torch.cov(white.T).numpy() == pytest.approx(np.eye(2), abs=1e-3)
    assert not network(torch.randn(5, 3)).any()


def test_a_smoke_run_of_both_conditions_with_every_method(tmp_path: Path) -> None:
    assert quality.run_all(["linear-latent"], None, "smoke", 1, tmp_path) == 0
    rows = records.read(tmp_path)
    methods = {condition: latent_methods.default_methods("linear-latent", condition) for condition in ("", "mild")}
    assert [(row["condition"], row["method"]) for row in rows] == [(condition, method) for condition in methods for method in methods[condition]]
    assert set(methods[""]) - set(methods["mild"]) == {"ldm-log-det+wide", "untrained+wide", "pca-em-kf+wide"}
    mild = {row["method"]: row["metrics"] for row in rows if row["condition"] == "mild"}
    names = "affine_r2 affine_r2_back mse mcc procrustes eig_error dyn_r2 injectivity neighbours nis nis_low nis_high fit_seconds fit_cpu_seconds"
    assert set(mild["ldm-log-det"]) == set(names.split())
    assert mild["oracle"]["affine_r2"] > mild["ldm-log-det"]["affine_r2"] > 0.8


def test_supervised_baselines_learn_from_the_read_outs_labels(tmp_path: Path) -> None:
    assert quality.run_all(["place-cells"], ["ridge-supervised", "mlp-supervised"], "smoke", 1, tmp_path) == 0
    assert all(0.3 < row["metrics"]["affine_r2"] < 0.95 for row in records.read(tmp_path))


def test_every_task_has_one_family_and_unknown_ones_are_refused() -> None:
    assert len(set(families.TASKS)) == len(families.TASKS)
    assert all(task in families.family_of(task, condition).tasks for task in families.TASKS for condition in families.conditions_of(task))
    assert set(families.PUBLISHED) <= set(families.TASKS)
    with pytest.raises(ValueError, match="task is 'figure9'"):
        families.family_of("figure9")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: settings_of("sources", "cpu"), "task is 'sources'"),
        (lambda: settings_of("place-cells", "huge"), "budget is 'huge'"),
        (lambda: latent_methods.run("place-cells", "", "guess", "smoke", 0), "method is 'guess'"),
        (lambda: latent_methods.run("place-cells", "", "untrained+wide", "smoke", 0), "variant is 'wide' of place-cells"),
    ],
)
def test_unknown_names_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- the figures themselves


@pytest.mark.slow
def test_the_mild_linear_latent_system_is_recovered() -> None:
    figures = latent_methods.run("linear-latent", "mild", "ldm-log-det", "cpu", 0).metrics
    assert figures["affine_r2"] > 0.99 and figures["affine_r2_back"] > 0.99
    assert figures["eig_error"] < 0.01 and figures["dyn_r2"] > 0.98


@pytest.mark.slow
def test_spikes_are_read_better_than_by_supervised_methods() -> None:
    figures = latent_methods.run("place-cells", "", "ldm-log-det", "cpu", 0).metrics
    assert figures["affine_r2"] > 0.9 and figures["mlp_r2"] > 0.98
    for method in latent_methods.SUPERVISED:
        assert latent_methods.run("place-cells", "", method, "cpu", 0).metrics["affine_r2"] < figures["affine_r2"]


@pytest.mark.slow
def test_nearest_neighbours_find_the_wobbly_position() -> None:
    assert latent_methods.run("wobbly", "", "ldm-knn", "cpu", 0).metrics["affine_r2"] > 0.985
