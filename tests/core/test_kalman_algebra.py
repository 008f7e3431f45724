"""What must hold whatever the numbers: single steps compose, batches equal loops, shared equals expanded, nothing is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from ldm_filter.core.kalman import filter_moments, filter_sequence, forecast, predict, project, update
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.types import FilterResult, Gaussian, StateSpace
from tests.core.problems import constant_ssm, normal, observed_of, random_cov, random_measurements, stable, varying_ssm

B, T, N, M = 3, 7, 4, 2
TIGHT: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-11}


def tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [x for part in value for x in tensors(part)]


def expanded(ssm: StateSpace, batch: int, steps: int) -> StateSpace:
    """Every field written out per series and step."""
    A, a, Q, C, c, initial = ssm
    fields = [x.expand(batch, steps, *x.shape).clone() for x in (A, a, Q, C, c)]
    return StateSpace(*fields, Gaussian(*(x.expand(batch, *x.shape).clone() for x in initial)))


def assert_results_equal(one: FilterResult, other: FilterResult, **tolerance: Any) -> None:
    for x, y in zip(tensors(one), tensors(other), strict=True):
        assert_close(x.expand_as(y) if x.shape[0] == 1 else x, y.expand_as(x) if y.shape[0] == 1 else y, **(tolerance or TIGHT))


def test_two_predicts_equal_one() -> None:
    belief = Gaussian(normal(1, B, N), random_cov(2, B, N))
    A, other = stable(3, N), stable(4, N)
    a, b, Q, W = normal(5, N), normal(6, N), random_cov(7, N), random_cov(8, N)
    twice = predict(predict(belief, A, a, Q), other, b, W)
    once = predict(belief, other @ A, other @ a + b, other @ Q @ other.mT + W)
    assert_close(twice, once, **TIGHT)


def test_updates_with_block_diagonal_noise_commute() -> None:
    belief = Gaussian(normal(1, B, N), random_cov(2, B, N))
    C, c, z = normal(3, 3, N), normal(4, 3), normal(5, B, 3)
    R = torch.block_diag(random_cov(6, 1), random_cov(7, 2))
    first, last = slice(0, 1), slice(1, 3)

    def by(state: Gaussian, part: slice) -> tuple[Gaussian, Tensor]:
        return update(state, Gaussian(z[:, part], R[part, part]), C[part], c[part])

    together, density = update(belief, Gaussian(z, R), C, c)
    for order in ((first, last), (last, first)):
        state, one = by(belief, order[0])
        state, two = by(state, order[1])
        assert_close(state, together, **TIGHT)
        assert_close(one + two, density, **TIGHT)


def test_masked_update_is_the_update_by_what_is_seen() -> None:
    belief = Gaussian(normal(1, B, N), random_cov(2, B, N))
    C, c, z, R = normal(3, 3, N), normal(4, 3), normal(5, B, 3), random_cov(6, 3)
    seen = [0, 2]
    z[:, 1] = float("nan")
    part, density = update(belief, Gaussian(z[:, seen], R[seen][:, seen]), C[seen], c[seen])
    masked = update(belief, Gaussian(z, R), C, c, torch.tensor([[True, False, True]]))
    assert_close(masked, (part, density), **TIGHT)
    nothing, zero = update(belief, Gaussian(z, R), C, c, torch.zeros(B, dtype=torch.bool))
    assert_close(nothing, belief, **TIGHT)
    assert not zero.any()


def test_update_without_batch_dimensions() -> None:
    belief, z = Gaussian(normal(1, N), random_cov(2, N)), Gaussian(normal(5, M), random_cov(6, M))
    C, c = normal(3, M, N), normal(4, M)
    alone, density = update(belief, z, C, c)
    batched, densities = update(Gaussian(*(x[None] for x in belief)), Gaussian(*(x[None] for x in z)), C, c)
    assert alone.mean.shape == (N,)
    assert density.shape == ()
    assert_close(alone, Gaussian(batched.mean[0], batched.cov[0]), **TIGHT)
    assert_close(density, densities[0], **TIGHT)
    half, _ = update(belief, z, C, c, torch.tensor([True, False]))
    assert_close(half, update(belief, Gaussian(z.mean[:1], z.cov[:1, :1]), C[:1], c[:1])[0], **TIGHT)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("varying", [False, True])
def test_steps_equal_the_sequence(varying: bool, masked: bool) -> None:
    ssm = varying_ssm(B, T, N, M) if varying else constant_ssm(N, M)
    measurements = random_measurements(B, T, M, varying=varying)
    observed = observed_of(B, T, M) if masked else None
    result = filter_sequence(ssm, measurements, observed)
    A, a, Q, C, c, initial = expanded(ssm, B, T) if not varying else ssm
    R = measurements.cov.expand(B, T, M, M)
    belief = initial
    for t in range(T):
        belief = belief if t == 0 else predict(belief, A[:, t], a[:, t], Q[:, t])
        assert_close(belief.mean, result.predicted.mean[:, t], **TIGHT)
        assert_close(belief.cov, result.predicted.cov[:, t].expand(B, -1, -1), **TIGHT)
        expected = project(belief, C[:, t], c[:, t], R[:, t])
        assert_close(expected.mean, result.projected.mean[:, t], **TIGHT)
        assert_close(expected.cov, result.projected.cov[:, t].expand(B, -1, -1), **TIGHT)
        z = Gaussian(measurements.mean[:, t], R[:, t])
        belief, density = update(belief, z, C[:, t], c[:, t], None if observed is None else observed[:, t])
        assert_close(belief.mean, result.filtered.mean[:, t], **TIGHT)
        assert_close(density, result.log_likelihood[:, t], **TIGHT)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 4),
    steps=st.integers(1, 6),
    m=st.integers(1, 3),
    more=st.integers(0, 2),
    varying=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_batched_equals_loop(batch: int, steps: int, m: int, more: int, varying: bool, masked: bool, seed: int) -> None:
    n = m + more
    ssm = varying_ssm(batch, steps, n, m, seed) if varying else constant_ssm(n, m, seed)
    measurements = random_measurements(batch, steps, m, seed, varying=varying)
    observed = observed_of(batch, steps, m, seed) if masked else None
    result = filter_sequence(ssm, measurements, observed)
    smoothed = smooth_sequence(ssm, result)
    assert result.filtered.mean.shape == (batch, steps, n)
    assert smoothed.gain.shape[1:] == (steps - 1, n, n)
    for b in range(batch):
        one = StateSpace(*(x[b : b + 1] for x in ssm[:5]), Gaussian(*(x[b : b + 1] for x in ssm.initial))) if varying else ssm
        cov = measurements.cov[b : b + 1] if varying else measurements.cov
        alone = filter_sequence(one, Gaussian(measurements.mean[b : b + 1], cov), None if observed is None else observed[b : b + 1])
        pairs = [(alone, result), (smooth_sequence(one, alone), smoothed)]
        for x, y in ((x, y) for part, whole in pairs for x, y in zip(tensors(part), tensors(whole), strict=True)):
            assert_close(x[0], y[b if y.shape[0] > 1 else 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
def test_constant_regime_equals_expanded(masked: bool) -> None:
    ssm, measurements = constant_ssm(N, M), random_measurements(B, T, M)
    observed = observed_of(1, T, M) if masked else None
    shared = filter_sequence(ssm, measurements, observed)
    for g in shared[:3]:
        assert g.cov.shape[0] == 1
        assert g.mean.shape[0] == B
    every = measurements._replace(cov=measurements.cov.expand(B, T, M, M).clone())
    seen = None if observed is None else observed.expand(B, T, M).clone()
    per_series = filter_sequence(expanded(ssm, B, T), every, seen)
    assert per_series.filtered.cov.shape == (B, T, N, N)
    assert_results_equal(shared, per_series)
    one, many = smooth_sequence(ssm, shared), smooth_sequence(expanded(ssm, B, T), per_series)
    assert one.smoothed.cov.shape == (1, T, N, N)
    assert_close(one.smoothed.mean, many.smoothed.mean, **TIGHT)
    assert_close(one.smoothed.cov.expand(B, -1, -1, -1), many.smoothed.cov, **TIGHT)


@pytest.mark.parametrize("field", range(7))
@pytest.mark.parametrize("lead", [(1, 1), (1, T), (B, 1), (B, T)])
def test_any_single_field_may_vary(field: int, lead: tuple[int, int]) -> None:
    ssm, measurements = constant_ssm(N, M), random_measurements(B, T, M)

    def spread(x: Tensor) -> Tensor:
        return x.expand(*lead, *x.shape).clone()

    if field < 5:
        changed, z = ssm._replace(**{ssm._fields[field]: spread(ssm[field])}), measurements
    elif field == 5:
        changed, z = ssm._replace(initial=Gaussian(*(x.expand(lead[0], *x.shape).clone() for x in ssm.initial))), measurements
    else:
        changed, z = ssm, measurements._replace(cov=spread(measurements.cov))
    result = filter_sequence(changed, z)
    plain = filter_sequence(ssm, measurements)
    assert_results_equal(plain, result)
    assert_close(smooth_sequence(changed, result).smoothed.mean, smooth_sequence(ssm, plain).smoothed.mean, **TIGHT)


@pytest.mark.parametrize("shape", [(1, T), (B, T), (1, T, M), (B, T, M)])
def test_full_mask_is_no_mask(shape: tuple[int, ...]) -> None:
    ssm, measurements = constant_ssm(N, M), random_measurements(B, T, M)
    masked = filter_sequence(ssm, measurements, torch.ones(shape, dtype=torch.bool))
    for x, y in zip(tensors(masked), tensors(filter_sequence(ssm, measurements)), strict=True):
        assert torch.equal(x, y)


def test_mask_per_step_is_mask_of_all_channels() -> None:
    ssm, measurements = constant_ssm(N, M), random_measurements(B, T, M)
    steps = observed_of(B, T, 1)[..., 0]
    per_step = filter_sequence(ssm, measurements, steps)
    per_channel = filter_sequence(ssm, measurements, steps[..., None].expand(B, T, M))
    assert_results_equal(per_step, per_channel, rtol=0.0, atol=0.0)
    assert not per_step.log_likelihood[~steps].any()


def test_forecast_is_filtering_nothing() -> None:
    ssm = varying_ssm(B, T, N, M)
    belief = ssm.initial
    blind = filter_sequence(ssm, random_measurements(B, T, M), torch.zeros(B, T, dtype=torch.bool))
    ahead = ssm._replace(**{name: getattr(ssm, name)[:, 1:] for name in ssm._fields[:3]})
    states = forecast(ahead, belief, T - 1)
    assert_close(states.mean, blind.filtered.mean[:, 1:], **TIGHT)
    assert_close(states.cov, blind.filtered.cov[:, 1:], **TIGHT)
    assert_close(blind.filtered, blind.predicted, **TIGHT)
    assert not blind.log_likelihood.any()


def test_forecast_of_a_constant_model_is_shared() -> None:
    ssm = constant_ssm(N, M)
    last = filter_sequence(ssm, random_measurements(B, T, M)).filtered
    states = forecast(ssm, Gaussian(last.mean[:, -1], last.cov[:, -1]), 4)
    assert states.mean.shape == (B, 4, N)
    assert states.cov.shape == (1, 4, N, N)
    step = predict(Gaussian(last.mean[:, -1], last.cov[:, -1]), *ssm[:3])
    assert_close(Gaussian(states.mean[:, 0], states.cov[:, 0]), step, **TIGHT)


@pytest.mark.parametrize("batch", [1, B])
def test_arguments_are_never_changed(batch: int) -> None:
    ssm, measurements = varying_ssm(batch, T, N, M), random_measurements(batch, T, M, varying=True)
    observed = observed_of(batch, T, M)
    measurements.mean[~observed] = float("nan")
    arguments = [*tensors(ssm), *tensors(measurements), observed]
    before = [x.clone() for x in arguments]
    result = filter_sequence(ssm, measurements, observed)
    filter_moments(ssm, measurements, observed)
    kept = [x.clone() for x in tensors(result)]
    smooth_sequence(ssm, result)
    forecast(ssm, ssm.initial, T)
    for x, y in zip([*arguments, *tensors(result)], [*before, *kept], strict=True):
        assert_close(x, y, rtol=0.0, atol=0.0, equal_nan=True)
    assert all(torch.isfinite(x).all() for x in tensors(result))


def test_what_hides_behind_the_mask_does_not_matter() -> None:
    ssm, measurements, observed = constant_ssm(N, M), random_measurements(B, T, M), observed_of(B, T, M)
    for value in (float("nan"), float("inf"), 1e300):
        hidden = measurements._replace(mean=torch.where(observed, measurements.mean, value))
        assert_results_equal(filter_sequence(ssm, hidden, observed), filter_sequence(ssm, measurements, observed), rtol=0.0, atol=0.0)
