"""The online filter's clock: gaps are predicted over, and times that make no sense are refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
import torch

from ldm_filter.online import OnlineFilter
from tests.online_problems import CHANNELS, make_model, make_series, run_batch


def test_a_gap_in_time_equals_missing_steps():
    model, rows = make_model(), make_series(8, holes=False)[0]
    times = [0, 1, 2, 7, 8, 9, 22, 23]
    padded = np.full((24, CHANNELS), np.nan)
    padded[times] = rows
    want = run_batch(model, padded[None])
    online = OnlineFilter(model, step_seconds=0.02)
    for when, row in zip(times, rows, strict=True):
        result = online.step(row, time=100.0 + 0.02 * when)
        torch.testing.assert_close(result.mean, want["mean"][0, when], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(result.cov, want["cov"][0, when], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(result.log_likelihood, want["log_likelihood"][0, when], rtol=1e-10, atol=1e-10)


def test_after_a_very_long_gap_only_the_stationary_state_is_left():
    model, rows = make_model(), make_series(2, holes=False)[0]
    online = OnlineFilter(model, step_seconds=1.0)
    online.step(rows[0], time=0.0)
    result = online.step(None, time=1e9)
    A = model.dynamics.transition_matrix.detach()
    torch.testing.assert_close(result.mean, model.dynamics.mean.detach(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(result.cov, A @ result.cov @ A.mT + model.dynamics.transition_cov.detach(), rtol=1e-8, atol=1e-8)


def test_without_a_sampling_step_every_call_is_one_step():
    model, rows = make_model(), make_series(3, holes=False)[0]
    plain, timed = OnlineFilter(model), OnlineFilter(model)
    for row, when in zip(rows, (3.0, 3.5, 90.0), strict=True):
        assert torch.equal(plain.step(row).mean, timed.step(row, time=when).mean)


def test_steps_without_time_move_the_clock():
    model, rows = make_model(), make_series(3, holes=False)[0]
    plain, timed = OnlineFilter(model), OnlineFilter(model, step_seconds=0.5)
    for row, when in zip(rows, (3.0, None, 4.0), strict=True):
        assert torch.equal(plain.step(row).mean, timed.step(row, time=when).mean)


@pytest.fixture
def abroad(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose own clock is not in UTC: that must not matter."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    "times",
    [
        [pd.Timestamp("2024-03-31 00:59:59.5"), pd.Timestamp("2024-03-31 01:00:00")],
        [np.datetime64("2024-03-31T00:59:59.500"), np.datetime64("2024-03-31T01:00:00")],
        [datetime(2024, 3, 31, 0, 59, 59, 500000), pd.Timestamp("2024-03-31 01:00:00")],
        [np.datetime64("2024-03-31T00:59:59.500000000"), datetime(2024, 3, 31, 1)],
        # the clocks go forward in Berlin at one o'clock UTC, and one zone may change to another
        [pd.Timestamp("2024-03-31 01:59:59.5", tz="Europe/Berlin"), pd.Timestamp("2024-03-31 03:00:00", tz="Europe/Berlin")],
        [datetime(2024, 3, 31, 0, 59, 59, 500000, tzinfo=UTC), datetime(2024, 3, 31, 3, tzinfo=timezone(timedelta(hours=2)))],
        [np.float32(1.5), 2],
    ],
)
def test_kinds_of_time(times: list, abroad: None):
    model, rows = make_model(), make_series(2, holes=False)[0]
    online, plain = OnlineFilter(model, step_seconds=0.5), OnlineFilter(model)
    for row, when in zip(rows, times, strict=True):
        assert torch.equal(online.step(row, time=when).mean, plain.step(row).mean)


@pytest.mark.parametrize(
    ("first", "second", "error", "words"),
    [
        (4.0, 4.0, ValueError, "4.0 s, not later than the last step at 4.0 s"),
        (4.0, 3.0, ValueError, "3.0 s, not later than the last step at 4.0 s"),
        (
            pd.Timestamp("2024-01-01 12:00"),
            pd.Timestamp("2024-01-01 11:00"),
            ValueError,
            r"2024-01-01T11:00:00.* UTC, not later .* 2024-01-01T12:00:00.* UTC",
        ),
        (4.0, 4.75, ValueError, "1.500 steps of 0.5 s after the last one at 4.0 s.*resample"),
        (4.0, 4.04, ValueError, "0.080 steps"),
        (4.0, pd.Timestamp("2024-01-01"), TypeError, "one kind"),
        (pd.Timestamp("2024-01-01", tz="UTC"), pd.Timestamp("2024-01-02"), TypeError, "one kind"),
        (4.0, np.nan, ValueError, "finite"),
        (4.0, np.inf, ValueError, "finite"),
        (pd.Timestamp("2024-01-01"), pd.NaT, ValueError, "finite"),
        (np.datetime64("2024-01-01"), np.datetime64("NaT"), ValueError, "finite"),
        (4.0, "2024-01-01", TypeError, "pandas.Timestamp"),
        (4.0, True, TypeError, "bool"),
    ],
)
def test_bad_times_are_refused_and_leave_the_state(first: object, second: object, error: type[Exception], words: str):
    online, rows = OnlineFilter(make_model(), step_seconds=0.5), make_series(2, holes=False)[0]
    online.step(rows[0], time=first)
    before = online.state
    with pytest.raises(error, match=words):
        online.step(rows[1], time=second)
    assert online.state is before


def test_small_jitter_is_rounded_to_the_grid_and_does_not_add_up():
    model, rows = make_model(), make_series(30, holes=False)[0]
    online, plain = OnlineFilter(model, step_seconds=0.5), OnlineFilter(model)
    for step, row in enumerate(rows):
        assert torch.equal(online.step(row, time=0.54 * step).mean, plain.step(row).mean)
