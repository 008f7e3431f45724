"""Angles across the jump: there and back, the spread, and errors on the circle."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ldm_filter import LDMFilter
from ldm_filter.data.angles import angle_moments, circular_error, join_angles, split_angles


def test_there_and_back():
    frame = pd.DataFrame({"wind": [0.0, 90.0, 359.0, np.nan], "heat": [1.0, 2.0, 3.0, 4.0]})
    split = split_angles(frame, ["wind"], 360.0)
    assert list(split.columns) == ["wind:sin", "wind:cos", "heat"]
    mean, std = angle_moments(split["wind:sin"], split["wind:cos"], 0 * split["wind:sin"], 0 * split["wind:cos"], 360.0)
    np.testing.assert_allclose(mean, frame["wind"], atol=1e-9)
    np.testing.assert_allclose(std[:3], 0.0)
    assert np.isnan(std[3])


def test_spread_equals_that_of_draws():
    rng = np.random.default_rng(0)
    s, c = np.sin(2.0) + 0.05 * rng.normal(size=200_000), np.cos(2.0) + 0.08 * rng.normal(size=200_000)
    _, std = angle_moments(np.sin(2.0), np.cos(2.0), 0.05, 0.08)
    assert std == pytest.approx(circular_error(np.arctan2(s, c), 2.0).std(), rel=0.02)
    assert angle_moments(0.0, 0.0, 1.0, 1.0, 360.0)[1] == pytest.approx(360 / np.sqrt(12))


def test_an_angle_is_forecast_across_the_jump():
    angle = np.mod(10.0 * np.arange(150) + 2 * np.random.default_rng(1).normal(size=150), 360.0)
    frame = split_angles(pd.DataFrame({"heading": angle}), ["heading"], 360.0)
    model = LDMFilter(2, readout="linear", window=50, seed=1).fit(frame, epochs=10, progress=False)
    ahead = join_angles(model.forecast(frame, 20, levels=()), ["heading"], 360.0)
    truth = np.mod(10.0 * np.arange(150, 170), 360.0)
    assert np.abs(circular_error(ahead["heading", "mean"], truth, 360.0)).max() < 15.0
    assert (ahead["heading", "std"] > 0).all()


def test_refusals():
    with pytest.raises(ValueError, match="not in the frame"):
        split_angles(pd.DataFrame({"a": [1.0]}), ["b"])
    with pytest.raises(ValueError, match="period"):
        split_angles(pd.DataFrame({"a": [1.0]}), ["a"], 0.0)
