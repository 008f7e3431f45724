"""Real data come out with the shapes, pairings and gaps that their cards state."""

from __future__ import annotations

import importlib.util
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from datasets import co2, robot, smartwatch, weather
from datasets.packages import require


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed: pip install 'ldm-filter[benchmarks]'")


@needs("seglearn")
class TestSmartwatch:
    def test_facts(self):
        recordings = smartwatch.load()
        assert len(recordings) == 140
        lengths = [len(recording.values) for recording in recordings]
        assert (min(lengths), max(lengths)) == (947, 2618)
        assert all(recording.values.shape[1] == 6 and recording.values.dtype == np.float32 for recording in recordings)
        assert all(np.isfinite(recording.values).all() for recording in recordings)
        assert {recording.exercise for recording in recordings} == {"PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"}
        labels = {(recording.subject, recording.exercise, recording.side) for recording in recordings}
        assert len(labels) == 140  # every subject did every exercise with either arm, once

    def test_channels_are_the_packages(self):
        assert list(smartwatch.CHANNELS) == require("seglearn.datasets").load_watch()["X_labels"]
        lengths = np.linalg.norm(np.concatenate([recording.values for recording in smartwatch.load()])[:, :3], axis=1)
        assert np.median(lengths) == pytest.approx(1, abs=0.1)  # gravity, in g

    def test_splits_share_no_subject(self):
        train, test = smartwatch.load("train"), smartwatch.load("test")
        assert (len(train), len(test)) == (98, 42)
        assert {recording.subject for recording in train} == set(range(1, 8))
        assert {recording.subject for recording in test} == {8, 9, 10}
        with pytest.raises(ValueError, match="split is 'valid'"):
            smartwatch.load("valid")

    def test_frame(self):
        recording = smartwatch.load("test")[0]
        frame = smartwatch.to_frame(recording)
        np.testing.assert_array_equal(frame.to_numpy(), recording.values)
        assert list(frame.columns) == list(smartwatch.CHANNELS)
        assert (np.diff(frame.index.to_numpy()) == np.timedelta64(20, "ms")).all()


@needs("pykalman")
class TestRobot:
    def test_pairing(self):
        data = robot.load()
        assert data.measurements.shape == (500, 2)
        assert data.states.shape == (500, 5)
        assert torch.isfinite(data.measurements).all()
        noise = data.measurements - data.states @ data.model.observation_matrix.mT - data.model.observation_offset
        shifted = data.measurements[:-1] - data.states[1:] @ data.model.observation_matrix.mT - data.model.observation_offset
        assert noise.var(dim=0).max() < 1.3
        assert shifted.var(dim=0).min() > 30  # the pairing that the file suggests

    def test_offsets_lead_into_their_row(self):
        data = robot.load()
        offset = data.model.transition_offset[0]
        assert offset.shape == (500, 5)
        residual = data.states[1:] - data.states[:-1] @ data.model.transition_matrix.mT - offset[1:]
        late = data.states[2:] - data.states[1:-1] @ data.model.transition_matrix.mT - offset[1:-1]
        assert residual.var(dim=0).sum() < 0.3 * late.var(dim=0).sum()
        torch.testing.assert_close(residual.mT @ residual / 499, data.model.transition_cov)

    def test_shipped_covariances_are_not_used(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            shipped = require("pykalman.datasets").load_robot()
        data = robot.load()
        assert np.abs(data.measurement_cov.numpy() - shipped.observation_covariance).max() > 5
        assert np.abs(data.model.transition_cov.numpy() - shipped.transition_covariance).max() > 1

    def test_filter_is_consistent_on_it(self):
        """A plain Kalman filter with these matrices: error and normalised error as they should be, so everything is aligned."""
        data = robot.load()
        A, offset, Q, C, d, (mean, P) = data.model
        errors, normalised = [], []
        for t, z in enumerate(data.measurements):
            if t > 0:
                mean, P = A @ mean + offset[0, t], A @ P @ A.mT + Q
            gain = P @ C.mT @ torch.linalg.inv(C @ P @ C.mT + data.measurement_cov)
            mean, P = mean + gain @ (z - C @ mean - d), P - gain @ C @ P
            errors.append(mean - data.states[t])
            normalised.append(errors[-1] @ torch.linalg.solve(P, errors[-1]))
        assert torch.stack(errors).square().mean().sqrt().item() == pytest.approx(3.64, abs=0.05)
        assert torch.stack(normalised).mean().item() == pytest.approx(5, abs=0.6)  # chi-square with 5 degrees of freedom


@needs("statsmodels")
class TestCo2:
    def test_facts(self):
        table = co2.load()
        assert table.shape == (2284, 1)
        assert list(table.columns) == ["co2"]
        assert table["co2"].isna().sum() == 59
        assert isinstance(table.index, pd.DatetimeIndex)
        assert table.index.name == "time"
        assert (np.diff(table.index.to_numpy()) == np.timedelta64(7, "D")).all()
        assert table["co2"].between(310, 380).sum() == 2284 - 59


@pytest.mark.parametrize(("package", "load"), [("seglearn", smartwatch.load), ("pykalman", robot.load), ("statsmodels", co2.load)])
def test_absent_package_is_named_with_its_extra(monkeypatch, package, load):
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"package {package}.*pip install ldm-filter\[benchmarks\]"):
        load()


class TestWeather:
    def test_a_year_of_hours_with_a_day_in_them(self) -> None:
        frame = weather.load()
        assert list(frame.columns) == list(weather.CHANNELS.values())
        assert frame.shape == (8760, 6)
        assert not frame.isna().any().any()
        assert frame.humidity.between(0, 100).all()
        by_hour = frame.groupby(pd.DatetimeIndex(frame.index).hour).mean()
        assert by_hour.sun.idxmax() in (11, 12)
        assert by_hour.temperature.idxmax() in (13, 14, 15, 16)
        assert float(frame.sun[pd.DatetimeIndex(frame.index).hour < 4].max()) == 0.0
