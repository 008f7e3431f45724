"""Dynamics with a filter of their own, one observation at a time: nonlinear, with noise of the state, adaptive, recurrent, and a user's own."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_filter.core.gating import Gate
from ldm_filter.models.base import NO_CONTEXT, Dynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.recurrent_dynamics import RecurrentDynamics
from ldm_filter.online import OnlineFilter
from ldm_filter.types import Context, FilterResult, Gaussian, SmootherResult
from tests.models.problems import rng, seeded
from tests.models.test_nonlinear import make
from tests.online_problems import assert_equal_results, make_series, run_batch, run_online

EXACT = {"rtol": 1e-10, "atol": 1e-10, "equal_nan": True}


class RandomWalk(Dynamics):
    """What a user may write: no state-space model, every method by hand. One number is followed with a gain of one half."""

    state_dim = latent_dim = 2

    def initial(self) -> Gaussian:
        return Gaussian(torch.zeros(2).double(), torch.eye(2).double())

    def predict(self, belief: Gaussian, context: Context = NO_CONTEXT) -> Gaussian:
        return belief._replace(cov=belief.cov.expand(*belief.mean.shape, 2) + 0.1 * torch.eye(2).double())

    def project(self, belief: Gaussian, measurement_cov: Tensor, context: Context = NO_CONTEXT) -> Gaussian:
        return belief._replace(cov=belief.cov + measurement_cov)

    def update(
        self, predicted: Gaussian, measurement: Gaussian, observed: Tensor | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Gaussian, Tensor]:
        seen = torch.ones_like(predicted.mean[:, 0]).bool() if observed is None else observed
        mean = torch.where(seen[:, None], 0.5 * (predicted.mean + measurement.mean), predicted.mean)
        density = torch.distributions.MultivariateNormal(*self.project(predicted, measurement.cov)).log_prob(measurement.mean)
        return Gaussian(mean, torch.where(seen[:, None, None], 0.5 * predicted.cov, predicted.cov)), torch.where(seen, density, 0.0)

    def filter(
        self, measurements: Gaussian, observed: Tensor | None = None, context: Context = NO_CONTEXT, initial: Gaussian | None = None
    ) -> FilterResult:
        batch, steps, _ = measurements.mean.shape
        seen = torch.ones(batch, steps, dtype=torch.bool) if observed is None else observed
        noise = measurements.cov.double().expand(batch, steps, 2, 2)
        start = self.initial() if initial is None else initial
        belief = Gaussian(start.mean.expand(batch, 2), start.cov.expand(batch, 2, 2))
        rows, density = [], []
        for t in range(steps):
            belief = self.predict(belief) if t else belief
            projected = self.project(belief, noise[:, t])
            after, found = self.update(belief, Gaussian(measurements.mean[:, t].double(), noise[:, t]), seen[:, t])
            rows.append((belief, after, projected))
            density.append(found)
            belief = after
        joined = (Gaussian(*(torch.stack(parts, 1) for parts in zip(*column, strict=True))) for column in zip(*rows, strict=True))
        return FilterResult(*joined, torch.stack(density, 1))

    def smooth(self, result: FilterResult, context: Context = NO_CONTEXT) -> SmootherResult:
        return SmootherResult(result.filtered, result.filtered.cov[:, 1:])


STEPWISE = ("linear", "locally-linear", "ekf", "ukf", "adaptive", "state", "all", "jump")
KINDS = (*STEPWISE, "recurrent", "own")


def model_of(kind: str, dtype: torch.dtype = torch.float64) -> LatentFilter:
    with seeded():
        dynamics = {"recurrent": lambda: RecurrentDynamics(2, hidden=5), "own": RandomWalk}.get(kind, lambda: make(kind, trained=True))()
        model = LatentFilter(Encoder((4,), 2, network="mlp", noise="input"), dynamics).to(dtype).eval()
        with torch.no_grad():
            for parameter in model.encoder.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, dtype=dtype))
    return model


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> LatentFilter:
    return model_of(request.param)


def rows(steps: int = 30, series: int = 1) -> np.ndarray:
    return make_series(steps, series, event_shape=(4,))


def test_equals_the_whole_series(model: LatentFilter) -> None:
    values = rows()
    result = run_online(OnlineFilter(model), values[0])
    for name, want in run_batch(model, values).items():
        torch.testing.assert_close(getattr(result, name), want[0], **EXACT)


def test_streams_side_by_side_equal_the_batch(model: LatentFilter) -> None:
    values = rows(15, series=3)
    result = run_online(OnlineFilter(model, streams=3), values.swapaxes(0, 1))
    for name, want in run_batch(model, values).items():
        torch.testing.assert_close(getattr(result, name).transpose(0, 1), want, **EXACT)


def test_goes_on_bit_for_bit_after_a_restart(model: LatentFilter) -> None:
    values = rows()[0]
    first = OnlineFilter(model, lag=4, step_seconds=0.5)
    run_online(first, values[:17])
    second = OnlineFilter(model, lag=4, step_seconds=0.5)
    second.load_state(pickle.loads(pickle.dumps(first.save_state())))
    assert_equal_results(run_online(first, values[17:]), run_online(second, values[17:]))


@pytest.mark.parametrize("kind", ["ekf", "all", "recurrent", "own"])
def test_late_observations_end_as_the_batch(kind: str) -> None:
    model, values = model_of(kind), rows(20)
    online = OnlineFilter(model, lag=6, step_seconds=0.5)
    for step in (0, 1, 2, 5, 3, 4, 8, 6, 7, 9, 12, 11, 10, 13, 14, 15, 19, 18, 17, 16):
        online.step(values[0, step], time=0.5 * step)
    want = run_batch(model, values)
    torch.testing.assert_close(torch.from_numpy(online.state.belief.mean), want["mean"][0, -1], **EXACT)
    torch.testing.assert_close(torch.from_numpy(online.state.belief.cov), want["cov"][0, -1], **EXACT)


@pytest.mark.parametrize("kind", STEPWISE)
def test_the_smoothed_past_is_the_smoother_s(kind: str) -> None:
    model, values = model_of(kind), rows(20, series=2)
    online = OnlineFilter(model, streams=2, lag=8)
    run_online(online, values.swapaxes(0, 1))
    found = online.smoothed()
    x = torch.from_numpy(values)
    with torch.no_grad():
        want = model.smooth(x.nan_to_num(0.0), ~x.isnan())[1].smoothed
    torch.testing.assert_close(found.mean, want.mean[:, -9:], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.cov, want.cov[:, -9:], rtol=1e-8, atol=1e-8)


def test_no_smoothed_past_without_a_posterior() -> None:
    online = OnlineFilter(model_of("recurrent"), lag=3)
    run_online(online, rows(5)[0])
    with pytest.raises(ValueError, match="recurrent"):
        online.smoothed()


@pytest.mark.parametrize("kind", ["ekf", "ukf", "locally-linear"])
def test_a_gap_is_as_many_rows_without_an_observation(kind: str) -> None:
    model, values = model_of(kind), rows(20)[0]
    filled, holes = OnlineFilter(model, step_seconds=1.0), OnlineFilter(model, step_seconds=1.0)
    kept = [*range(7), *range(11, 20)]
    for t in range(20):
        whole = filled.step(values[t] if t in kept else None, time=float(t))
    for t in kept:
        part = holes.step(values[t], time=float(t))
    torch.testing.assert_close(part.mean, whole.mean, **EXACT)
    torch.testing.assert_close(part.cov, whole.cov, **EXACT)
    x = torch.from_numpy(values[kept])[None]
    dt = torch.tensor([[1.0, *np.diff(kept).astype(float)]], dtype=torch.float64)
    with torch.no_grad():
        batch = model(x.nan_to_num(0.0), ~x.isnan(), Context(dt))
        smoothed = model.dynamics.smooth(batch, Context(dt)).smoothed
        every = torch.from_numpy(values)[None].clone()
        every[:, 7:11] = torch.nan
        dense = model.smooth(every.nan_to_num(0.0), ~every.isnan())[1].smoothed
    torch.testing.assert_close(batch.filtered.mean[0, -1], whole.mean, **EXACT)
    torch.testing.assert_close(smoothed.mean, dense.mean[:, kept], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(smoothed.cov, dense.cov[:, kept], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["ekf", "all", "recurrent"])
def test_a_rejected_observation_is_one_that_is_missing(kind: str) -> None:
    model, values = model_of(kind), make_series(25, event_shape=(4,), holes=False)[0]
    spoiled, gone = values.copy(), values.copy()
    spoiled[9] = 1e4
    gate = Gate("hard", 1.0 - 1e-15)
    with_gate = run_online(OnlineFilter(model, gate=gate), spoiled)
    assert float(with_gate.weight[9]) == 0.0
    gone[with_gate.weight.numpy() == 0.0] = np.nan  # a model of random numbers may reject more than that
    torch.testing.assert_close(with_gate.mean, run_online(OnlineFilter(model), gone).mean, **EXACT)


def test_linear_dynamics_are_gated_alike_whichever_way() -> None:
    """Stepwise dynamics without noise of their own are the linear ones, for which there is another implementation."""
    stepwise = model_of("linear")
    plain = LatentFilter(stepwise.encoder, stepwise.dynamics.base)
    values = make_series(40, event_shape=(4,))[0]
    values[[8, 9, 21]] += 40.0
    for kind in ("hard", "inflate", "student-t"):
        gate = Gate(kind, 0.95, patience=1)
        one, other = run_online(OnlineFilter(stepwise, gate=gate), values), run_online(OnlineFilter(plain, gate=gate), values)
        assert float(one.weight.min()) < 0.5
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_a_gate_that_raises_r_needs_an_r() -> None:
    online = OnlineFilter(model_of("recurrent"), gate=Gate("inflate"))
    with pytest.raises(ValueError, match="take no notice of R"):
        run_online(online, rows(3)[0][1:])


def test_inputs_reach_dynamics_of_their_own() -> None:
    from ldm_filter.models.dynamics import LinearDynamics
    from ldm_filter.models.nonlinear import NonlinearDynamics

    with seeded():
        dynamics = NonlinearDynamics(LinearDynamics(3, 2, input_dim=2, generator=rng(0)), "ekf", hidden=(8,), generator=rng(1)).double()
        model = LatentFilter(Encoder((4,), 2, network="mlp"), dynamics).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, dtype=torch.float64))
    values, inputs = rows(12), np.random.default_rng(3).normal(size=(12, 2))
    x = torch.from_numpy(values)
    with torch.no_grad():
        want = model(x.nan_to_num(0.0), ~x.isnan(), Context(inputs=torch.from_numpy(inputs)[None])).filtered
    online = OnlineFilter(model)
    got = torch.stack([online.step(row, inputs=u).mean for row, u in zip(values[0], inputs, strict=True)])
    torch.testing.assert_close(got, want.mean[0], **EXACT)
    with pytest.raises(ValueError, match="inputs"):
        online.step(values[0, 0])


def test_a_saved_state_with_another_memory_is_refused() -> None:
    online = OnlineFilter(model_of("adaptive"))
    online.step(rows(2)[0, 1])
    state = online.save_state()
    with pytest.raises(ValueError, match="memory"):
        online.load_state(state | {"memory": np.full_like(state["memory"], np.nan)})
