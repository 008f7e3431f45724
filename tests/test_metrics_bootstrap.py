"""Confidence intervals by block bootstrap: they hold their level, and know that neighbouring steps err alike."""

from __future__ import annotations

import numpy as np
import pytest

from ldm_filter import metrics
from ldm_filter.plots import plot_reliability


def correlated(series: int, steps: int, rng: np.random.Generator) -> np.ndarray:
    """AR(1) of coefficient 0.9 and variance 1, ``(series, steps)``."""
    x, rows = rng.standard_normal(series), []
    for _ in range(steps):
        rows.append(x)
        x = 0.9 * x + np.sqrt(1 - 0.81) * rng.standard_normal(series)
    return np.stack(rows, 1)


def test_the_interval_holds_its_level_where_steps_are_correlated() -> None:
    rng = np.random.default_rng(0)
    inside, single = [], []
    for _ in range(100):
        found = metrics.bounded_mean(correlated(40, 50, rng), resamples=300)
        inside.append(found.low <= 0.0 <= found.high)
        alone = metrics.bounded_mean(correlated(1, 2500, rng)[0], resamples=300)
        single.append(alone.low <= 0.0 <= alone.high)
    assert np.mean(inside) == pytest.approx(0.94, abs=0.06)
    assert np.mean(single) > 0.85  # steps taken for independent would hold 0 in about 40 %
    assert found.mean == pytest.approx((found.low + found.high) / 2, abs=0.1)


def test_the_width_of_independent_series_is_that_of_the_central_limit() -> None:
    values = np.random.default_rng(1).standard_normal((400, 25))
    values[:, 5] = np.nan
    found = metrics.bounded_mean(values, 0.95, resamples=4000)
    assert found.mean == pytest.approx(np.nanmean(values))
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(400 * 24), rel=0.1)
    assert metrics.bounded_mean(values, seed=3) == metrics.bounded_mean(values, seed=3) != metrics.bounded_mean(values, seed=4)


def test_scores_come_with_bounds_about_them() -> None:
    rng = np.random.default_rng(2)
    root = np.array([[1.0, 0.0], [0.5, 0.3]])
    truth = rng.standard_normal((50, 40, 2)) @ root.T
    mean, cov = np.zeros_like(truth), root @ root.T
    mask = rng.random((50, 40)) < 0.8
    found, plain = metrics.bounded_scores(mean, cov, truth, mask), metrics.scores(mean, cov, truth, mask)
    assert set(found) == {"nees", "log_likelihood", "crps", "coverage50", "coverage80", "coverage95"}
    for name, bounds in found.items():
        value = -plain["nll"] if name == "log_likelihood" else plain[name]
        assert bounds.mean == pytest.approx(value), name
        assert bounds.low < bounds.mean < bounds.high
    assert found["coverage95"].low < 0.95 < found["coverage95"].high
    assert found["nees"].low < 1.0 < found["nees"].high


def test_the_histogram_tells_narrow_wide_and_right_forecasts_apart() -> None:
    truth = np.random.default_rng(3).standard_normal((60, 50))
    shown = {std: metrics.pit_histogram(metrics.pit(np.zeros_like(truth), np.full_like(truth, std), truth), bins=10) for std in (0.5, 1.0, 2.0)}
    for found in shown.values():
        assert found.density.mean() == pytest.approx(1.0)
    right = (shown[1.0].low <= 1.0) & (shown[1.0].high >= 1.0)
    assert right.sum() >= 8
    assert shown[0.5].low[0] > 1.0 and shown[0.5].high[4] < 1.0  # a bowl
    assert shown[2.0].high[0] < 1.0 and shown[2.0].low[4] > 1.0  # a hump


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="no entry that counts"):
        metrics.bounded_mean(np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        metrics.bounded_mean(np.ones((3, 4)), 95)
    with pytest.raises(ValueError, match="bins is 1"):
        metrics.pit_histogram(np.ones((3, 4)), bins=1)
    with pytest.raises(ValueError, match="PIT lie between 0 and 1"):
        metrics.pit_histogram(2 * np.ones((3, 4)))


def test_the_reliability_plot_lies_on_the_diagonal_where_calibrated_and_below_where_overconfident() -> None:
    truth = np.random.default_rng(4).standard_normal((60, 50))
    mask = np.ones(truth.shape, dtype=bool)
    mask[:, 7] = False
    for std, side in ((1.0, 0.0), (0.5, -1.0)):
        figure = plot_reliability(np.zeros_like(truth), np.full_like(truth, std), np.where(mask, truth, np.nan), mask)
        curve = figure.axes[0].lines[1]
        gap = np.asarray(curve.get_ydata()) - np.asarray(curve.get_xdata())
        assert np.abs(gap).max() < 0.04 if side == 0.0 else gap.min() < -0.2
        assert len(figure.axes) == 2
