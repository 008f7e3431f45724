"""Ablations run with one thing changed, and their sentences say what the figures say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import families, quality, records, tables
from benchmarks.ablations import ABLATIONS, Ablation, Variant, sentence

FILTER = ("figure8", "ablation-filter")


def test_a_smoke_run_shows_what_the_filter_adds(tmp_path: Path) -> None:
    assert quality.run_all([FILTER[0]], None, "smoke", 1, tmp_path, conditions=[FILTER[1]]) == 0
    both = {row["method"]: row["metrics"] for row in records.read(tmp_path)}
    assert list(both) == ["filtered", "encoder-alone"]
    assert both["filtered"]["r2"] > both["encoder-alone"]["r2"]
    assert "nis" in both["filtered"] and "nis" not in both["encoder-alone"]
    with pytest.raises(ValueError, match="method is 'guess', expected one of filtered, encoder-alone"):
        families.family_of(*FILTER).run(*FILTER, "guess", "smoke", 0)


def test_every_ablation_belongs_to_a_task_and_leaves_the_task_its_own_methods() -> None:
    for (task, condition), ablation in ABLATIONS.items():
        assert condition in families.conditions_of(task)
        assert families.family_of(task, condition).default_methods(task, condition) == tuple(ablation.variants)
        assert "oracle" in families.family_of(task).default_methods(task, "")
        assert len(ablation.variants) > 1
    with pytest.raises(ValueError, match="condition is 'none', expected one of"):
        families.family_of("figure8", "none")


def test_the_sentence_names_the_variant_that_differs_most_and_by_how_much() -> None:
    two = Ablation("?", {"a": Variant("all of it", {}), "b": Variant("half of it", {})})
    figures = {"a": {"r2": 0.99, "mse": 0.01, "coverage95": 0.95}, "b": {"r2": 0.9, "mse": 0.1, "coverage95": 0.8}}
    said = sentence(two, figures)
    assert said.startswith("Half of it: R² 0.9000 instead of 0.9900 with all of it, 10 times the mean squared error")
    assert said.endswith("holds 80.0 % instead of 95.0 %.")
    assert "10 times less" in sentence(two, {"a": figures["b"], "b": figures["a"]})
    assert sentence(two, {"a": figures["a"]}) == ""
    three = Ablation("?", {**two.variants, "c": Variant("none of it", {})})
    assert sentence(three, figures | {"c": {"r2": 0.1, "mse": 0.9, "coverage95": 0.9}}).startswith("Farthest from it: none of it: R² 0.1000")


def test_an_ablation_has_a_table_of_its_own_and_none_among_the_tasks() -> None:
    task, condition = FILTER
    row = {
        "task": task,
        "condition": condition,
        "readout": "affine",
        "budget": "cpu",
        "seed": 0,
        "seconds": 1.0,
        "cpu_seconds": 1.0,
        "train_steps": 1,
    }
    row |= {"device": "cpu", "versions": {"torch": "2"}, "commit": "abc", "code": "c0de", "time": "2026-01-01T00:00:00+00:00"}
    rows = [
        row | {"method": name, "metrics": {"r2": r2, "mse": 1 - r2, "coverage95": 0.95}} for name, r2 in (("filtered", 0.9), ("encoder-alone", 0.5))
    ]
    shown = tables.ablation_tables(rows, lambda *_: "c0de")
    assert "| encoder and filter | 1 | 0.9000 |" in shown and "Encoder alone, each frame by itself: R² 0.5000" in shown
    assert tables.full_tables(rows, lambda *_: "c0de") == tables.NOTHING
