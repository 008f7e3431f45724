"""The benchmark's runner and judge. Figures are made by `python -m benchmarks.quality`, never here."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import dot_methods, families, quality, records
from benchmarks.dot_judge import Estimate, evaluate, evaluate_oracle
from benchmarks.dot_tasks import Bench, settings_of
from benchmarks.same_figures import note
from ldm_filter import metrics

TASK = "circular-constant-noise"


# --- the runner


def test_a_smoke_run_writes_whole_lines_and_is_not_repeated(tmp_path: Path) -> None:
    methods = ["ldm-log-det", "pca-em-kf", "pca-affine", "oracle"]
    assert quality.run_all([TASK], methods, "smoke", 1, tmp_path) == 0
    rows = records.read(tmp_path)
    assert [entry["method"] for entry in rows] == methods
    assert all(tuple(entry) == records.FIELDS for entry in rows)
    learned, classical, unfiltered, oracle = (entry["metrics"] for entry in rows)
    names = "r2 r2_x r2_y mse excess nis nees coverage50 coverage80 coverage95 nll crps fit_seconds fit_cpu_seconds"
    kept = ["nll", "nees", "coverage50", "coverage80", "coverage95", "pit_distance"]
    others = {f"{name}_{variant}" for name in kept for variant in ("turned", "scaled")}
    bounded = ["nis", *(f"{name}{variant}" for name in ("nees", "coverage95") for variant in ("", "_turned", "_scaled"))]
    bounds = {f"{name}_{end}" for name in bounded for end in ("low", "high")}
    assert set(learned) == {*names.split(), *kept} | others | bounds
    assert all(learned[f"{name}_low"] <= learned[name] <= learned[f"{name}_high"] for name in bounded)
    assert oracle["r2"] > max(learned["r2"], classical["r2"]) and min(learned["r2"], classical["r2"]) > unfiltered["r2"]
    assert oracle["excess"] == 0.0 and learned["excess"] == pytest.approx(learned["mse"] / oracle["mse"] - 1)
    assert all(entry["code"] == quality.family_of(TASK).code() and entry["cpu_seconds"] >= 0 for entry in rows)
    assert rows[0]["train_steps"] == 3 and rows[3]["train_steps"] == 0  # 22 of 24 series train, in batches of at most 8
    assert quality.run_all([TASK], methods, "smoke", 1, tmp_path) == 0
    assert len(records.read(tmp_path)) == 4
    quality.run_all([TASK], ["oracle"], "smoke", 1, tmp_path, force=True)
    assert len(records.read(tmp_path)) == 5


def test_a_run_by_code_that_makes_the_same_figures_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.same_figures.SAME", tmp_path / "same.json")
    assert quality.run_all([TASK], ["oracle"], "smoke", 1, tmp_path / "made") == 0
    (made,) = records.read(tmp_path / "made")
    records.append(tmp_path / "old", made | {"code": "old"})
    assert note(records.read(tmp_path / "old"), [made]) == []
    quality.run_all([TASK], ["oracle"], "smoke", 1, tmp_path / "old")
    assert len(records.read(tmp_path / "old")) == 1
    records.append(tmp_path / "other", made | {"code": "other"})
    quality.run_all([TASK], ["oracle"], "smoke", 1, tmp_path / "other")
    assert len(records.read(tmp_path / "other")) == 2


def test_a_method_that_fails_costs_no_other_and_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.run_all([TASK], ["guess", "oracle"], "smoke", 1, tmp_path) == 1
    assert [entry["method"] for entry in records.read(tmp_path)] == ["oracle"]
    assert "method is 'guess', expected oracle" in capsys.readouterr().err


def test_a_full_run_that_broke_off_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SMOKE_RESULTS", tmp_path)
    seen = []

    def run(*arguments: object) -> records.Outcome:
        path = records.checkpoint()
        assert path is not None and path.parent.is_dir()
        seen.append(path.exists())
        path.write_text("state")
        if len(seen) == 1:
            raise RuntimeError("power failure")
        return records.Outcome({"r2": 0.5}, "none", 1.0, 0)

    monkeypatch.setattr(quality, "family_of", lambda *_: families.Family({TASK: ("",)}, lambda *_: ("m",), run, {}))
    monkeypatch.setattr(families.Family, "code", lambda _: "c0de")
    assert quality.run_all([TASK], ["m"], "full", 1, tmp_path / "results") == 1
    assert quality.run_all([TASK], ["m"], "full", 1, tmp_path / "results") == 0
    assert seen == [False, True] and not list((tmp_path / "checkpoints").iterdir())
    assert records.checkpoint() is None


def test_the_command_line_knows_its_tasks_and_budgets(tmp_path: Path) -> None:
    for arguments in (["--task", "figure9"], ["--task", TASK, "--budget", "huge"], []):
        with pytest.raises(SystemExit, match="2"):
            quality.main(arguments)
    assert quality.main(["--task", TASK, "--budget", "smoke", "--seeds", "1", "--methods", "oracle", "--out", str(tmp_path)]) == 0
    assert len(records.read(tmp_path)) == 1


@pytest.mark.slow
def test_the_smoke_run_of_all_tasks_takes_less_than_five_minutes(tmp_path: Path) -> None:
    before = time.process_time()
    assert quality.run_all(families.TASKS, None, "smoke", 1, tmp_path) == 0
    assert time.process_time() - before < 300
    ran = {(row["task"], row["condition"]) for row in records.read(tmp_path)}
    assert ran == {(task, condition) for task in families.TASKS for condition in families.conditions_of(task)}


def test_within_60_seconds_only_a_fit_that_ended_in_them_counts() -> None:
    data = Bench(TASK, settings_of(TASK, "smoke"), seed=0)
    assert dot_methods._within_limit("ldm-log-det", data, 59.0, 0.5) == {"r2_at_60s": 0.5, "seconds_at_60s": 59.0}
    assert dot_methods._within_limit("ldm-log-det", data, 70.0, 0.5) == {}  # one epoch is the least
    data.settings = replace(data.settings, epochs=2)
    again = dot_methods._within_limit("ldm-log-det", data, 70.0, 0.5)
    assert again["r2_at_60s"] > 0.9 and 0 < again["seconds_at_60s"] < 60


# --- the judge


def test_evaluate_of_a_known_filter_gives_its_known_figures() -> None:
    """h = M (position + e), e ~ N(0, s_t^2 I) with the filter saying s_t: calibrated by construction, also through the affine map."""
    data = Bench("circular-input-noise", replace(settings_of("circular-input-noise", "smoke"), readout=64, test=64, mlp=False), seed=0)
    rng = np.random.default_rng(0)
    matrix = np.array([[2.0, 1.0], [0.0, 3.0]])

    def known(position: np.ndarray, noise_var: np.ndarray) -> Estimate:
        std = 0.05 + 0.1 * noise_var[..., None]
        cov = std[..., None] ** 2 * (matrix @ matrix.T)
        return Estimate(
            (position + std * rng.standard_normal(position.shape)) @ matrix.T,
            cov,
            np.full(std.shape[:2], 1.25),
            noise_var[..., None, None] * np.eye(2) + 1.0,
        )

    test = known(data.test.position, data.test.noise_var)
    figures = evaluate(known(data.readout.position, data.readout.noise_var), test, data)
    error = test.mean @ np.linalg.inv(matrix).T - data.test.position
    assert figures["mse"] == pytest.approx((error**2).mean(), rel=0.02)
    assert figures["r2"] == pytest.approx((figures["r2_x"] + figures["r2_y"]) / 2)
    assert figures["r2"] == pytest.approx(1 - (error**2).mean() / 0.5, abs=1e-3)  # the variance of a coordinate on the unit circle
    assert figures["coverage95"] == pytest.approx(0.95, abs=0.02) and figures["coverage50"] == pytest.approx(0.5, abs=0.04)
    assert figures["nees"] == pytest.approx(1.0, abs=0.1)
    assert figures["coverage95_turned"] == pytest.approx(0.95, abs=0.02)  # nothing here turns with the position
    assert figures["coverage95_scaled"] == pytest.approx(0.95, abs=0.02)  # nothing here needs scaling
    assert figures["nll_turned"] == pytest.approx(figures["nll"], abs=0.05)
    assert figures["pit_distance"] < 0.03 and figures["nees_low"] < 1.0 < figures["nees_high"]
    assert figures["coverage95_low"] < 0.95 < figures["coverage95_high"]
    assert figures["noise_corr"] == pytest.approx(1.0) and figures["nis"] == 1.25
    assert figures["excess"] == pytest.approx(figures["mse"] / evaluate_oracle(data)["mse"] - 1)


def test_a_network_reads_out_what_an_affine_map_cannot() -> None:
    data = Bench(TASK, replace(settings_of(TASK, "smoke"), mlp=True), seed=0)

    def phase(angle: np.ndarray) -> Estimate:
        turned = np.mod(angle, 2 * np.pi)[..., None]
        return Estimate(turned, np.zeros((*turned.shape, 1)))

    figures = evaluate(phase(data.readout.angle), phase(data.test.angle), data)
    assert figures["r2"] < 0.5 and figures["mlp_r2"] > 0.97
    assert "nis" not in figures and "noise_corr" not in figures


def test_train_read_out_and_test_share_no_sequence() -> None:
    data = Bench(TASK, settings_of(TASK, "smoke"), seed=1)
    firsts = np.concatenate([data.train[:, 0], data.readout.frames[:, 0], data.test.frames[:, 0]]).reshape(-1, 100)
    assert len(np.unique(firsts, axis=0)) == len(firsts) == 24 + 16 + 8
    assert metrics.mse(data.readout.frames, Bench(TASK, settings_of(TASK, "smoke"), seed=1).readout.frames) == 0.0
