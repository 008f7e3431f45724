"""Observation by observation gives what the whole series gives, and goes on after a restart as if nothing had happened."""

from __future__ import annotations

import gc
import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.online import OnlineFilter, StepResult
from tests.online_problems import assert_equal_results, make_model, make_series, run_batch, run_online

# --------------------------------------------------------------------------------------------------- equality with batch


@pytest.mark.parametrize("noise", ["constant", "input"])
def test_equals_the_whole_series(noise: str):
    model, values = make_model(noise), make_series(60)
    result = run_online(OnlineFilter(model), values[0])
    for name, want in run_batch(model, values).items():
        torch.testing.assert_close(getattr(result, name), want[0], rtol=1e-10, atol=1e-10, equal_nan=True)
    whole_steps = np.isnan(values[0]).all(-1)
    assert 0 < whole_steps.sum() < 60
    assert (np.isnan(result.nis.numpy()) == whole_steps).all()
    assert not result.log_likelihood[whole_steps].any()


@pytest.mark.parametrize("noise", ["constant", "input"])
def test_streams_side_by_side_equal_the_batch(noise: str):
    model, values = make_model(noise), make_series(40, series=3)
    result = run_online(OnlineFilter(model, streams=3), values.swapaxes(0, 1))
    assert result.cov.shape == (40, 3, 8, 8)
    for name, want in run_batch(model, values).items():
        torch.testing.assert_close(getattr(result, name).transpose(0, 1), want, rtol=1e-10, atol=1e-10, equal_nan=True)


def test_one_of_streams_keeps_the_leading_dimension():
    model, values = make_model(), make_series(10)
    alone, together = run_online(OnlineFilter(model), values[0]), run_online(OnlineFilter(model, streams=1), values.swapaxes(0, 1))
    assert together.nis.shape == (10, 1)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b[:, 0], rtol=1e-12, atol=1e-12, equal_nan=True)


def test_frames():
    model, values = make_model(event_shape=(4, 3)), make_series(20, event_shape=(4, 3))
    result = run_online(OnlineFilter(model), values[0])
    torch.testing.assert_close(result.mean, run_batch(model, values)["mean"][0], rtol=1e-10, atol=1e-10)


def test_float32_model_keeps_its_dtype_and_stays_near_the_batch():
    model, values = make_model(dtype=torch.float32), make_series(200)
    result = run_online(OnlineFilter(model), values[0])
    want = run_batch(model, values)
    assert all(field.dtype == torch.float32 for field in result)
    for name, field in want.items():
        torch.testing.assert_close(getattr(result, name), field[0], rtol=1e-3, atol=1e-4, equal_nan=True)


def test_none_is_a_row_without_values_and_tensors_are_taken():
    model, rows = make_model(), make_series(10)[0]
    first = run_online(OnlineFilter(model), rows)
    online = OnlineFilter(model)
    steps = [online.step(None if np.isnan(row).all() else torch.tensor(row, requires_grad=True)) for row in rows]
    assert_equal_results(first, StepResult(*(torch.stack(field) for field in zip(*steps, strict=True))))


def test_array_kinds_are_read_alike():
    model = make_model()
    want = OnlineFilter(model).step(np.array([1.0, 2.0, 3.0, 4.0, 5.0, np.nan])).mean
    masked = np.ma.masked_array(np.arange(1, 7), mask=[False] * 5 + [True])
    frozen = np.array([1.0, 2.0, 3.0, 4.0, 5.0, np.nan])
    frozen.flags.writeable = False
    backwards = np.array([np.nan, 5.0, 4.0, 3.0, 2.0, 1.0])[::-1]
    for y in (masked, frozen, backwards, frozen.astype(">f4"), torch.tensor(frozen.copy(), dtype=torch.float16)):
        assert torch.equal(OnlineFilter(model).step(y).mean, want)


# ----------------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("streams", [None, 3])
def test_restored_in_the_middle_goes_on_bit_for_bit(streams: int | None, dtype: torch.dtype):
    model = make_model(dtype=dtype)
    rows = make_series(40, series=3).swapaxes(0, 1) if streams else make_series(40)[0]
    online = OnlineFilter(model, streams=streams)
    run_online(online, rows[:20])
    stored = pickle.dumps(online.save_state())
    uninterrupted = run_online(online, rows[20:])
    resumed = OnlineFilter(model, streams=streams)
    resumed.load_state(pickle.loads(stored))
    assert_equal_results(run_online(resumed, rows[20:]), uninterrupted)
    assert resumed.state.steps == 40


def test_restored_before_the_first_step_and_with_times():
    model, rows = make_model(), make_series(6, holes=False)[0]
    online, fresh = OnlineFilter(model, step_seconds=1.0), OnlineFilter(model, step_seconds=1.0)
    fresh.load_state(online.save_state())
    first = online.step(rows[0], time=5.0)
    assert torch.equal(fresh.step(rows[0], time=5.0).mean, first.mean)
    fresh.load_state(online.save_state())
    assert torch.equal(fresh.step(rows[1], time=9.0).mean, online.step(rows[1], time=9.0).mean)
    with pytest.raises(ValueError, match="not later"):
        fresh.step(rows[2], time=9.0)


def test_state_is_small_and_plain():
    online = OnlineFilter(make_model())
    run_online(online, make_series(50)[0])
    state = online.save_state()
    assert all(value is None or type(value) in (np.ndarray, int, float, str) for value in state.values())
    assert len(pickle.dumps(state)) < 2048


def test_a_saved_state_and_a_result_share_no_memory_with_the_filter():
    model, rows = make_model(), make_series(3, holes=False)[0]
    untouched, online = OnlineFilter(model), OnlineFilter(model)
    for row in rows[:2]:
        want, result = untouched.step(row), online.step(row)
        assert torch.equal(result.mean, want.mean)
        result.mean.zero_()
        result.cov.zero_()
        online.save_state()["cov"][:] = 0.0
    state = online.save_state()
    online.load_state(state)
    state["mean"][:] = 0.0
    assert torch.equal(online.step(rows[2]).mean, untouched.step(rows[2]).mean)


def test_the_model_is_neither_changed_nor_followed():
    model, rows = make_model().train(), make_series(4, holes=False)[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    online, want = OnlineFilter(model), run_online(OnlineFilter(model), rows)
    online.step(rows[0])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    result = online.step(rows[1])
    assert torch.equal(result.mean, want.mean[1])
    assert not any(field.requires_grad for field in result)


@pytest.mark.parametrize("steps", [3000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_is_flat(steps: int):
    online, rows = OnlineFilter(make_model(dtype=torch.float32)), make_series(100)[0]
    run_online(online, rows)
    size = len(pickle.dumps(online.save_state()))
    tracemalloc.start()
    try:
        held = []
        for _ in range(3):  # the first round fills caches
            for step in range(steps // 2):
                online.step(rows[step % 100])
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # whatever a step kept, a pointer at least, would be there 500 times or more
    assert held[2] - held[1] < 8 * steps // 2
    assert len(pickle.dumps(online.save_state())) < size + 16
    assert online.state.steps == 100 + 3 * (steps // 2)


# ---------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        (np.zeros(5), ValueError, r"shape \(5,\), expected \(6,\)"),
        (np.zeros((1, 6)), ValueError, r"shape \(1, 6\), expected \(6,\)"),
        (np.array([0.0, 0.0, -np.inf, 0.0, 0.0, 0.0]), ValueError, r"-inf at index \[2\]"),
        (np.array([0.0, 0.0, 0.0, 1e300, 0.0, 0.0]), ValueError, r"1e\+300 at index \[3\].*float32"),
        (np.array(["0"] * 6), TypeError, "dtype"),
        (np.array([0.0] * 5 + [None]), TypeError, "object"),
        (np.zeros(6, dtype=complex), TypeError, "complex"),
        (torch.zeros(6, dtype=torch.complex64), TypeError, "complex"),
        ([0.0] * 6, TypeError, "list.*np.asarray"),
        (pd.Series(np.zeros(6)), TypeError, "Series.*order"),
        (0.0, TypeError, "float"),
    ],
)
def test_bad_observations_are_refused_and_leave_the_state(y: object, error: type[Exception], words: str):
    online = OnlineFilter(make_model(dtype=torch.float32))
    online.step(np.zeros(6), time=0.0)
    before = online.state
    with pytest.raises(error, match=words):
        online.step(y, time=1.0)
    assert online.state is before


def test_streams_check_their_shape():
    online = OnlineFilter(make_model(), streams=2)
    with pytest.raises(ValueError, match=r"shape \(6,\), expected \(2, 6\): \(streams"):
        online.step(np.zeros(6))


def test_inputs_are_refused():
    with pytest.raises(ValueError, match="inputs"):
        OnlineFilter(make_model()).step(np.zeros(6), inputs=np.zeros(1))


def test_constructor_refuses():
    model = make_model()
    for error, arguments in [
        (TypeError, (model.encoder,)),
        (TypeError, (model, "1s")),
        (TypeError, (model, True)),
        (ValueError, (model, 0.0)),
        (ValueError, (model, float("nan"))),
        (ValueError, (model, None, 0)),
        (TypeError, (model, None, 1.0)),
    ]:
        with pytest.raises(error, match=r"expected"):
            OnlineFilter(*arguments)


def test_dynamics_with_a_filter_of_their_own_go_their_own_way():
    """Their step need not be the linear one: a stream asks their methods, and here gets the same."""

    class Own(LinearDynamics):
        def filter(self, *arguments, **further):
            return super().filter(*arguments, **further)

    model, values = make_model(), make_series(12)[0]
    own = Own(8, 4).double()
    own.load_state_dict(model.dynamics.state_dict())
    results = [run_online(OnlineFilter(LatentFilter(model.encoder, dynamics)), values) for dynamics in (model.dynamics, own)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, equal_nan=True)


def test_foreign_states_are_refused():
    online = OnlineFilter(make_model())
    online.step(np.zeros(6))
    state = online.save_state()
    before = online.state
    for error, bad, words in [
        (TypeError, None, "NoneType"),
        (TypeError, {"mean": state["mean"]}, "save_state"),
        (ValueError, state | {"format": "ldm-filter-online-9"}, "online-9"),
        (ValueError, state | {"mean": np.zeros((1, 7))}, r"mean of shape \(1, 7\), expected \(1, 8\)"),
        (ValueError, state | {"cov": np.full((1, 8, 8), np.nan)}, "not finite"),
        (ValueError, OnlineFilter(make_model(), streams=2).save_state(), r"\(0, 8\)"),
        (ValueError, state | {"values": np.zeros((1, 5))}, r"values of shape \(1, 5\)"),
    ]:
        with pytest.raises(error, match=words):
            online.load_state(bad)
        assert online.state is before
