"""Which runs of older code count as today's: those of methods that were seen to give the same figures. The figures here are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import records
from benchmarks.same_figures import counts_as, main, note
from tests.benchmarks.test_tables import TASK, row


def run(code: str, seed: int = 0, method: str = "ldm-log-det", **metrics: float) -> records.Row:
    return row(code=code, seed=seed, method=method, budget="smoke", metrics={"r2": 0.9, "fit_seconds": 1.0} | metrics)


def test_methods_with_the_same_figures_count_and_others_do_not(tmp_path: Path) -> None:
    path = tmp_path / "same.json"
    older = [run("old"), run("old", 1), run("old", method="pca-em-kf"), run("old", method="oracle", crps=2.0), run("old", method="pca-affine")]
    newer = [
        *(run("new", fit_seconds=2.0, r2=0.9 + 1e-7), run("new", 1)),
        *(run("new", method="pca-em-kf", r2=0.901), run("new", method="oracle", crps=3.0)),  # and nothing of the fourth
    ]
    told = note(older, newer, path)
    assert told == [f"{TASK} oracle: crps is 3, was 2", f"{TASK} pca-em-kf: r2 is 0.901, was 0.9"]
    assert counts_as(run("old", 7), "new", path) and counts_as(run("new"), "old", path) and counts_as(run("x"), "x", path)
    assert not any(counts_as(run("old", method=method), "new", path) for method in ("pca-em-kf", "oracle", "pca-affine"))
    assert not counts_as(run("old") | {"condition": "mild"}, "new", path)
    assert note([run("")], [run("new")], path) == [] and not counts_as(run(""), "new", path)


def test_one_seed_that_differs_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "same.json"
    assert len(note([run("old"), run("old", 1)], [run("new"), run("new", 1, r2=0.8)], path)) == 1
    assert not counts_as(run("old"), "new", path)
    assert note([run("old")], [run("new", further=1.0)], path) == [f"{TASK} ldm-log-det: other figures, read-out or number of updates"]


def test_runs_about_time_never_count(tmp_path: Path) -> None:
    path = tmp_path / "same.json"
    assert note([run("old", step_us=48.0)], [run("new", step_us=48.0)], path) == [
        f"{TASK} ldm-log-det: is about time, which other code may take more of"
    ]
    assert not counts_as(run("old"), "new", path)


def test_what_is_the_same_as_the_same_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "same.json"
    for old, new in (("a", "b"), ("c", "d"), ("b", "c")):
        assert note([run(old)], [run(new)], path) == []
    assert counts_as(run("a"), "d", path) and not counts_as(run("a"), "e", path)


def test_the_command_says_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.same_figures.SAME", tmp_path / "same.json")
    for folder, figures in (("old", 0.9), ("new", 0.9), ("other", 0.8)):
        records.append(tmp_path / folder, run(folder, r2=figures))
    assert main([str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    assert main([str(tmp_path / "old"), str(tmp_path / "other")]) == 1
    same = "methods have the same figures"
    assert capsys.readouterr().out.splitlines() == [f"1 {same}", f"{TASK} ldm-log-det: r2 is 0.8, was 0.9", f"0 {same}"]
    assert counts_as(run("old"), "new", tmp_path / "same.json")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "old"), str(tmp_path / "nowhere")])
    assert "no run is in both" in capsys.readouterr().err
