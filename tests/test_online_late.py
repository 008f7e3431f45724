"""Late observations end up where the batch has them, the smoothed past is the smoother's, and neither grows with time."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.online import OnlineFilter
from tests.online_problems import CHANNELS, assert_equal_results, make_model, make_series, run_batch, run_online

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def make_online(model: LatentFilter | None = None, lag: int = 12, **options) -> OnlineFilter:
    return OnlineFilter(make_model() if model is None else model, step_seconds=0.5, lag=lag, **options)


def smoothed_batch(model: LatentFilter, values: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.from_numpy(values)
    with torch.no_grad():
        result = model(x.nan_to_num(0.0), ~x.isnan())
        return smooth_sequence(model.dynamics(), result).smoothed


@pytest.mark.parametrize("noise", ["constant", "input"])
def test_any_order_within_the_lag_ends_as_the_batch(noise: str):
    model, values = make_model(noise), make_series(60)
    rng = np.random.default_rng(2)
    order = np.argsort(np.arange(60) + rng.uniform(0, 10, 60) * (np.arange(60) > 0))
    assert (np.diff(order) < 0).sum() > 10
    online = make_online(model)
    for step in order:
        online.step(values[0, step], time=100.0 + 0.5 * step)
    want = run_batch(model, values)
    torch.testing.assert_close(torch.from_numpy(online.state.belief.mean), want["mean"][0, -1], **EXACT)
    torch.testing.assert_close(torch.from_numpy(online.state.belief.cov), want["cov"][0, -1], **EXACT)
    assert online.state.steps == 60
    assert len(online.state.entries) == 14


def test_a_late_result_is_the_newest_state_and_the_late_density():
    model, values = make_model(), make_series(10, holes=False)
    online = make_online(model)
    for step in (0, 1, 2, 3, 5, 6, 7, 8, 9):
        online.step(values[0, step], time=0.5 * step)
    result, want = online.step(values[0, 4], time=2.0), run_batch(model, values)
    torch.testing.assert_close(result.mean, want["mean"][0, 9], **EXACT)
    torch.testing.assert_close(result.log_likelihood, want["log_likelihood"][0, 4], **EXACT)
    torch.testing.assert_close(result.nis, want["nis"][0, 4], **EXACT)


def test_channels_of_one_step_may_come_apart():
    model, values = make_model(), make_series(20, holes=False)
    online = make_online(model)
    first, second = values[0].copy(), values[0].copy()
    first[:, 3:], second[:, :3] = np.nan, np.nan
    for step in range(20):
        online.step(first[step], time=0.5 * step)
        if step >= 5:
            online.step(second[step - 5], time=0.5 * (step - 5))
    for step in range(15, 20):
        online.step(second[step], time=0.5 * step)
    torch.testing.assert_close(torch.from_numpy(online.state.belief.mean), run_batch(model, values)["mean"][0, -1], **EXACT)


def test_streams_fill_each_other_up():
    model, values = make_model(), make_series(12, series=3, holes=False)
    online = make_online(model, streams=3)
    for step in range(12):
        row = values[:, step].copy()
        row[1] = np.nan
        online.step(row, time=0.5 * step)
    for step in reversed(range(12)):
        online.step(np.where(np.arange(3)[:, None] == 1, values[:, step], np.nan), time=0.5 * step)
    torch.testing.assert_close(torch.from_numpy(online.state.belief.mean), run_batch(model, values)["mean"][:, -1], **EXACT)


def test_smoothed_is_the_smoother_of_what_came_so_far():
    model, values = make_model(), make_series(40)
    online = make_online(model, lag=15)
    for step in range(40):
        online.step(values[0, step], time=0.5 * step)
        if step in (0, 7, 22, 39):
            mean, cov = smoothed_batch(model, values[:, : step + 1])
            result = online.smoothed()
            count = min(step, 15) + 1
            assert result.times == tuple(0.5 * (step + 1 - count + i) for i in range(count))
            torch.testing.assert_close(result.mean, mean[0, -count:], **EXACT)
            torch.testing.assert_close(result.cov, cov[0, -count:], **EXACT)


def test_smoothed_across_a_gap_in_time_and_for_streams():
    model, values = make_model(), make_series(20, series=2, holes=False)
    values[:, 9:14] = np.nan
    online = make_online(model, lag=15, streams=2)
    seen = [*range(9), *range(14, 20)]
    for step in seen:
        online.step(values[:, step], time=0.5 * step)
    result, (mean, _) = online.smoothed(), smoothed_batch(model, values)
    shown = [step for step in seen if step >= 4]
    assert result.mean.shape == (2, len(shown), 8)
    torch.testing.assert_close(result.mean, mean[:, shown], **EXACT)


def test_state_with_a_lag_is_restored_bit_for_bit_and_does_not_grow():
    model, values = make_model(), make_series(80)
    online = make_online(model)
    for step in range(30):
        online.step(values[0, step], time=0.5 * step)
    stored = pickle.dumps(online.save_state())
    for step in range(30, 60):
        online.step(values[0, step], time=0.5 * step)
    assert len(pickle.dumps(online.save_state())) == len(stored)
    uninterrupted, resumed = make_online(model), make_online(model)
    for step in range(30):
        uninterrupted.step(values[0, step], time=0.5 * step)
    resumed.load_state(pickle.loads(stored))
    late = [(33, 16.5), (31, 15.5), (32, 16.0)]
    for row, when in late:
        assert_equal_results(resumed.step(values[0, row], time=when), uninterrupted.step(values[0, row], time=when))
    for a, b in zip(resumed.smoothed()[:2], uninterrupted.smoothed()[:2], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("when", "words"),
    [
        (13.0, r"where y was given before at index \[0\]"),
        (7.4, r"15 steps before the newest.*reaches back 12"),
        (12.7, "0.400 steps of 0.5 s from the step at 12.5 s"),
    ],
)
def test_what_is_too_late_is_refused_and_leaves_the_state(when: float, words: str):
    online, rows = make_online(), make_series(31, holes=False)[0]
    for step in range(31):
        online.step(rows[step], time=0.5 * step)
    before = online.state
    with pytest.raises(ValueError, match=words):
        online.step(np.zeros(CHANNELS), time=when)
    assert online.state is before


def test_lag_needs_the_step_and_smoothed_needs_the_lag():
    online = OnlineFilter(make_model(), lag=5)
    online.step(np.zeros(CHANNELS), time=1.0)
    with pytest.raises(ValueError, match="knows its step"):
        online.step(np.zeros(CHANNELS), time=0.5)
    assert online.smoothed().mean.shape == (1, 8)
    with pytest.raises(ValueError, match="lag is 0"):
        OnlineFilter(make_model()).smoothed()
    for bad, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="lag"):
            OnlineFilter(make_model(), lag=bad)


def test_without_times_a_lag_changes_nothing():
    model, rows = make_model(), make_series(30)[0]
    assert_equal_results(run_online(OnlineFilter(model, lag=6), rows), run_online(OnlineFilter(model), rows))
