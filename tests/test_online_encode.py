"""The encoder on arrays is the module, for every noise, dtype and pattern of what is missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ldm_filter.core.device_step import DeviceStep
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.streams.encode import _ArrayEncoder, _ModuleEncoder, measure_of
from ldm_filter.streams.filter import OnlineFilter
from ldm_filter.streams.motion import Motion
from tests.core.test_recording import Rerun
from tests.online_problems import make_model, make_series, run_batch, run_online


def test_the_problem_leaves_no_buffer_of_the_encoder_at_its_default():
    """Else the arrays could forget one, and no test here would see it."""
    for name, buffer in make_model().encoder.named_buffers():
        assert not (buffer == 0).all() and not (buffer == 1).all(), name


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("event_shape", [(6,), (4, 3), (20,)])
@pytest.mark.parametrize("noise", ["constant", "input"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_arrays_equal_the_module(noise: str, event_shape: tuple[int, ...], missing: bool, dtype: torch.dtype, tolerance: float):
    encoder = make_model(noise, dtype, event_shape).encoder
    quick, module = measure_of(encoder), _ModuleEncoder(encoder)
    assert isinstance(quick, _ArrayEncoder)
    rows = np.random.default_rng(0).normal(size=(5, *event_shape)).astype(str(dtype).removeprefix("torch."))
    seen = np.random.default_rng(1).random(rows.shape) < 0.7 if missing else None
    rows = rows if seen is None else np.where(seen, rows, rows.dtype.type(0))
    for pick in (slice(None), 0):
        mask = None if seen is None else seen[pick]
        for found, want in zip(quick(rows[pick], mask), module(rows[pick], mask), strict=True):
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, np.broadcast_to(want, found.shape), rtol=tolerance, atol=tolerance)


def test_extreme_values_do_not_warn():
    encoder = make_model(dtype=torch.float32).encoder
    for size in (1e4, 1e20):
        z, _ = measure_of(encoder)(np.full(6, size, dtype=np.float32), None)
        assert np.isfinite(z).all()


def test_a_module_of_the_user_and_large_networks_go_through_torch():
    torch.manual_seed(0)
    own = Encoder((6,), 4, network=nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))).double()
    large = Encoder((64, 64), 4, network="mlp")
    assert all(isinstance(measure_of(encoder), _ModuleEncoder) for encoder in (own, large))
    model, values = LatentFilter(own, LinearDynamics(8, 4)).double(), make_series(30, series=2)
    for streams, rows, pick in ((None, values[0], 0), (2, values.swapaxes(0, 1), slice(None))):
        result = run_online(OnlineFilter(model, streams=streams), rows)
        want = run_batch(model, values)["mean"][pick]
        torch.testing.assert_close(result.mean if streams is None else result.mean.transpose(0, 1), want, rtol=1e-10, atol=1e-10)


def test_conv_frames_equal_the_batch():
    torch.manual_seed(1)
    model = LatentFilter(Encoder((32, 32), 2, network="conv"), LinearDynamics(4, 2)).double()
    values = make_series(5, event_shape=(32, 32), holes=False)
    torch.testing.assert_close(run_online(OnlineFilter(model), values[0]).mean, run_batch(model, values)["mean"][0], rtol=1e-10, atol=1e-10)


def test_a_recorded_encoder_is_the_encoder():
    """On a CUDA device complete observations go through a recorded graph; here through a stand-in that keeps its rules."""
    encoder, recorder = make_model("input").encoder, Rerun()
    recorded, plain = _ModuleEncoder(encoder, recorder), _ModuleEncoder(encoder)
    rng = np.random.default_rng(0)
    for rows, missing in (
        (rng.normal(size=6), False),
        (rng.normal(size=(5, 6)), False),
        (rng.normal(size=(5, 6)), True),
        (rng.normal(size=6), False),
    ):
        mask = rng.random(rows.shape) < 0.7 if missing else None
        for found, want in zip(recorded(rows, mask), plain(rows, mask), strict=True):
            assert found.shape == want.shape
            np.testing.assert_array_equal(found, want)
    assert (recorder.recorded, recorder.replayed) == (2, 3)


def test_a_stream_with_everything_recorded_is_the_batch():
    model, values = make_model(), make_series(20, series=3)
    online, recorders = OnlineFilter(model, streams=3, lag=2), [Rerun(), Rerun()]
    motion = online._motion
    assert isinstance(motion, Motion)
    online._measure = _ModuleEncoder(model.encoder, recorders[0])
    motion._whole = DeviceStep(motion._way, *motion._seen, torch.device("cpu"), fewest=1, recorder=recorders[1])
    result, want = run_online(online, values.swapaxes(0, 1)), run_batch(model, values)
    for name in ("mean", "log_likelihood"):
        torch.testing.assert_close(getattr(result, name).transpose(0, 1), want[name], rtol=1e-10, atol=1e-10)
    assert all(recorder.replayed > 3 for recorder in recorders)
