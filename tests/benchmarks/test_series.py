"""Tasks on real series: what is judged, that nothing of the future is known, and the classical methods."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import series_methods, series_tasks
from benchmarks.series_tasks import TASKS, Bench, judge

FORECASTS = [task for task, settings in TASKS.items() if settings.horizon]


@pytest.mark.parametrize("task", TASKS)
def test_shapes_and_splits(task: str) -> None:
    settings = TASKS[task]
    bench = settings.make()
    count, known, channels = bench.contexts.shape
    assert {part.shape[1] for part in bench.train} == {channels}
    if settings.horizon:
        assert bench.truth.shape == (count, settings.horizon, channels)
        assert count >= 100
        assert bench.held is not None
        assert [part.shape[1:] for part in bench.held] == [bench.contexts.shape[1:], bench.truth.shape[1:]]
        assert len(bench.held[0]) >= 50
    else:
        hidden = np.isnan(bench.contexts)
        assert 0.1 < hidden.mean() < 0.2
        np.testing.assert_array_equal(bench.contexts[~hidden], bench.truth[~hidden])
    if bench.inputs is not None:
        assert bench.inputs.shape[:2] == (count, known + settings.horizon)
        assert bench.train_inputs is not None
        assert [len(part) for part in bench.train_inputs] == [len(part) for part in bench.train]
        assert np.isfinite(bench.inputs).all()


def test_what_is_forecast_was_not_trained_on() -> None:
    for task in ("weather-forecast", "co2-forecast"):
        bench = TASKS[task].make()
        assert bench.held is not None
        seen = np.nan_to_num(np.concatenate([*bench.train, *bench.held[1]]), nan=-9.0)
        windows = np.lib.stride_tricks.sliding_window_view(seen, 12, axis=0)  # (rows, channel, 12)
        for truth in bench.truth[:: max(1, len(bench.truth) // 20)]:
            assert not np.all(windows == np.nan_to_num(truth[:12], nan=-9.0).T, axis=(1, 2)).any()


def test_the_judge_counts_what_was_asked_for() -> None:
    truth = np.random.default_rng(0).normal(size=(50, 40, 2))
    bench = Bench([truth[0]], np.zeros((50, 7, 2)), truth)
    found = judge(bench, np.zeros_like(truth), np.ones_like(truth))
    assert found["rmse"] == pytest.approx(1.0, abs=0.05)
    assert found["crps"] == pytest.approx((np.sqrt(2) - 1) / np.sqrt(np.pi) * np.sqrt(1) + 0.0, abs=0.4)
    assert found["coverage80"] == pytest.approx(0.8, abs=0.02)
    assert found["coverage95"] == pytest.approx(0.95, abs=0.02)
    assert found["nees_low"] < 1.0 < found["nees_high"] and found["pit_distance"] < 0.05
    assert judge(bench, np.stack([np.zeros((50, 40)), np.full((50, 40), 5.0)], -1), np.ones_like(truth))["pit_distance"] > 0.9  # the worse channel
    gaps = np.where(np.arange(40)[:, None] % 10 < 2, np.nan, truth)
    estimate = np.where(np.isnan(gaps), truth + 0.5, 1e9)
    assert judge(Bench([truth[0]], gaps, truth), estimate, np.ones_like(truth))["rmse"] == pytest.approx(0.5)


def test_the_classical_methods_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    full = series_tasks.weather_forecast()
    small = Bench(full.train[:2], full.contexts[:6], full.truth[:6])
    monkeypatch.setitem(TASKS, "weather-forecast", TASKS["weather-forecast"]._replace(make=lambda: small))
    figures = {
        method: series_methods.run("weather-forecast", "", method, "smoke", 0).metrics
        for method in ("hold-last", "seasonal-naive", "var6", "var6-adapted")
    }
    assert all(0.05 < found["crps"] < 2.0 for found in figures.values())
    assert figures["seasonal-naive"] != figures["hold-last"]
    with pytest.raises(ValueError, match="method is 'guess'"):
        series_methods.run("weather-forecast", "", "guess", "smoke", 0)
    with pytest.raises(ValueError, match="task is 'tides'"):
        series_methods.run("tides", "", "ldm", "smoke", 0)


@pytest.mark.parametrize("task", FORECASTS)
def test_every_forecast_has_a_rule_of_thumb_beside_it(task: str) -> None:
    assert {"ldm", "hold-last", "seasonal-naive"} < set(series_methods.default_methods(task))
