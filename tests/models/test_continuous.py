"""Dynamics in continuous time: irregular steps are exact, gaps on a grid too, inputs push as they should, nothing depends on the basis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldm_filter.core.kalman import filter_sequence
from ldm_filter.core.linalg import stationary
from ldm_filter.models.affine import AffineDynamics
from ldm_filter.models.continuous import ContinuousDynamics
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.objectives.latent_models import predictive_log_density
from ldm_filter.types import Context, Gaussian
from tests.models.problems import radius, rng, seeded, stable_model

KINDS = [LinearDynamics, ContinuousDynamics]


def build(kind: type[AffineDynamics], n: int = 4, m: int = 2, inputs: int = 0, seed: int = 0, **choices: str) -> AffineDynamics:
    """Float64, every parameter moved from its start."""
    dynamics = kind(n, m, generator=rng(seed), input_dim=inputs, **choices).double()  # type: ignore[call-arg, arg-type]
    with torch.no_grad():
        for i, parameter in enumerate(dynamics.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng(seed + i), dtype=torch.float64))
    return dynamics


def measurements(batch: int, steps: int, m: int = 2) -> Gaussian:
    mean = torch.randn(batch, steps, m, generator=rng(8), dtype=torch.float64)
    return Gaussian(mean, 0.4 * torch.eye(m, dtype=torch.float64))


def close(one: Tensor, other: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [0, 2])
def test_a_thinned_grid_filtered_as_irregular_equals_the_grid_with_gaps(kind: type[AffineDynamics], inputs: int) -> None:
    dynamics = build(kind, inputs=inputs)
    dynamics.set_interval(0.02)
    full = measurements(3, 60)
    kept = torch.rand(60, generator=rng(1)) < 0.4
    kept[0] = True
    rows = kept.nonzero().flatten()
    before = torch.cat([rows[:1], rows[:-1]])
    dt = ((rows - before).clamp_min(1).double() * 0.02)[None]
    u = None
    if inputs:  # held between the rows that are kept: what stands at a row was in force since the one before
        held = torch.randn(1, len(rows), inputs, generator=rng(2), dtype=torch.float64)
        u = held[:, torch.searchsorted(rows, torch.arange(60)).clamp_max(len(rows) - 1)]
    irregular = Context(dt, None if u is None else u[:, rows])
    grid = dynamics.filter(full, kept[None], Context(inputs=u))
    thin = dynamics.filter(full._replace(mean=full.mean[:, rows]), None, irregular)
    for name in ("filtered", "predicted"):
        close(getattr(thin, name).mean, getattr(grid, name).mean[:, rows])
        close(getattr(thin, name).cov, getattr(grid, name).cov[:, rows])
    close(thin.log_likelihood, grid.log_likelihood[:, rows])
    close(dynamics.smooth(thin, irregular).smoothed.mean, dynamics.smooth(grid, Context(inputs=u)).smoothed.mean[:, rows])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(1, 8), log_scale=st.floats(-6, 1.5), seed=st.integers(0, 999), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_it_is_stable_for_any_parameters_and_the_state_has_variance_one(n: int, log_scale: float, seed: int, dtype: torch.dtype) -> None:
    dynamics = ContinuousDynamics(n, n).to(dtype)
    with torch.no_grad():
        for i, parameter in enumerate(dynamics.parameters()):
            parameter.copy_(10.0**log_scale * torch.randn(parameter.shape, generator=rng(seed + i), dtype=torch.float64).clamp(-2, 2))
    assert radius(dynamics().transition_matrix) < 1.0 - 1e-6
    exact = dynamics.exact()
    assert float(stationary(exact.transition_matrix, exact.transition_cov).detach().diagonal().max()) <= 1.0 + 1e-6


@pytest.mark.parametrize("cov", ["full", "diagonal"])
def test_any_stable_equation_can_be_taken_over(cov: str) -> None:
    drift = torch.tensor([[0.0, 1.0], [-4.0, -0.3]], dtype=torch.float64)  # an oscillator pushed by white noise: Q has rank 1, nearly
    diffusion = torch.diag(torch.tensor([1e-6, 0.5], dtype=torch.float64))
    dynamics = ContinuousDynamics(2, 2, cov).double()
    transform = dynamics.set_drift(drift, diffusion)
    back = torch.linalg.inv(transform)
    close(back @ dynamics.drift.detach() @ transform, drift, 1e-8)
    close(back @ dynamics.noise_cov().detach() @ back.mT, diffusion, 1e-7)
    with pytest.raises(ValueError, match="expected below"):
        dynamics.set_drift(-drift, diffusion)


@pytest.mark.parametrize("cov", ["full", "diagonal"])
def test_canonical_form_centre_and_gauge_do_not_change_what_the_filter_says(cov: str) -> None:
    dynamics = build(ContinuousDynamics, inputs=1, transition_cov=cov)
    z = measurements(2, 20)
    context = Context(0.2 + torch.rand(2, 20, generator=rng(3), dtype=torch.float64), torch.randn(2, 20, 1, generator=rng(4), dtype=torch.float64))
    before = dynamics.filter(z, None, context)
    level = dynamics.centre()
    close(dynamics.filter(z._replace(mean=z.mean - level), None, context).log_likelihood, before.log_likelihood)
    std = torch.tensor([2.0, 0.5]).double()
    dynamics.rescale_latents(torch.zeros(2).double(), std)
    scaled = Gaussian((z.mean - level) / std, z.cov / std / std[:, None])
    close(dynamics.filter(scaled, None, context).log_likelihood, before.log_likelihood + std.log().sum())
    transform = dynamics.canonicalise()
    after = dynamics.filter(scaled, None, context)
    close(after.log_likelihood, before.log_likelihood + std.log().sum(), 1e-8)
    close(transform @ transform.mT, torch.eye(4).double())
    close(dynamics.canonicalise(), torch.eye(4).double(), 1e-6)


def test_all_covariances_times_one_factor_leave_the_means() -> None:
    dynamics = build(ContinuousDynamics, inputs=1)
    z, context = measurements(2, 20), Context(inputs=torch.randn(2, 20, 1, generator=rng(4), dtype=torch.float64))
    before = dynamics.filter(z, None, context).projected
    assert dynamics.scale_covariances(2.5)
    after = dynamics.filter(z._replace(cov=2.5 * z.cov), None, context).projected
    close(after.mean, before.mean)
    close(after.cov, 2.5 * before.cov)
    assert not build(ContinuousDynamics, observation="selector").scale_covariances(2.5)


def test_it_starts_from_a_discrete_model_with_its_spectrum() -> None:
    ssm = stable_model(4, 2, seed=3)
    dynamics = ContinuousDynamics(4, 2).double()
    dynamics.start_from(ssm)
    found = torch.linalg.eigvals(dynamics().transition_matrix.detach())
    wanted = torch.linalg.eigvals(ssm.transition_matrix)
    if bool((wanted.real > 0).all()):
        close(found.abs().sort().values, wanted.abs().sort().values, 0.05)
    z = measurements(2, 50)
    found_density = dynamics.moments(z)[1].sum()
    assert float(found_density.detach()) > float(filter_sequence(ssm, z).log_likelihood.sum()) - 30.0


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_offsets_of_state_and_observation(kind: type[AffineDynamics]) -> None:
    dynamics = build(kind, inputs=2)
    dynamics.set_input_scale(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]))
    u = torch.randn(3, 9, 2, generator=rng(6), dtype=torch.float64)
    ssm, plain = dynamics(Context(inputs=u)), dynamics()
    standard = (u - torch.tensor([1.0, -2.0])) / torch.tensor([0.5, 3.0])
    held = dynamics.steps(None).held.detach()
    close(ssm.transition_offset.detach(), (plain.transition_offset + standard @ dynamics.input_matrix.mT @ held.mT).detach())
    close(ssm.observation_offset.detach(), (plain.observation_offset + standard @ dynamics.feedthrough.mT).detach())
    with pytest.raises(ValueError, match="expected 2 at the end"):
        dynamics(Context(inputs=u[..., :1]))
    with pytest.raises(ValueError, match="the model has none"):
        build(kind)(Context(inputs=u))


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_at_a_time_is_the_whole(kind: type[AffineDynamics]) -> None:
    dynamics = build(kind, inputs=1)
    z, context = measurements(2, 12), Context(torch.full((2, 12), 3.0).double(), torch.randn(2, 12, 1, generator=rng(6), dtype=torch.float64))
    whole = dynamics.filter(z, None, context)
    belief = Gaussian(*(part.expand(2, *part.shape) for part in dynamics.initial()))
    for t in range(12):
        here = context.steps(t, t + 1)
        belief = dynamics.predict(belief, here) if t else belief
        belief, density = dynamics.update(belief, Gaussian(z.mean[:, t], z.cov), None, here)
        close(density, whole.log_likelihood[:, t])
    close(belief.mean, whole.filtered.mean[:, -1])
    ahead = Context(context.dt[:, :5], context.inputs[:, :5])  # type: ignore[index]
    path = dynamics.forecast(belief, 5, ahead)
    for t in range(5):
        belief = dynamics.predict(belief, ahead.steps(t, t + 1))
        close(belief.mean, path.mean[:, t])
        close(belief.cov, path.cov[:, t])


def test_a_grid_is_refused_off_the_grid() -> None:
    dynamics = build(LinearDynamics)
    with pytest.raises(ValueError, match=r"1\.5 sampling intervals.*continuous"):
        dynamics(Context(torch.tensor([[1.0, 1.5]])))
    with pytest.raises(ValueError, match="expected positive"):
        dynamics(Context(torch.tensor([[1.0, 0.0]])))


def test_equal_steps_keep_the_constant_regime() -> None:
    dynamics = build(ContinuousDynamics)
    assert dynamics(Context(torch.full((3, 7), 2.0))).transition_matrix.shape == (4, 4)
    close(dynamics(Context(torch.ones(3, 7))).transition_matrix.detach(), dynamics().transition_matrix.detach())


def test_the_interval_is_not_rounded_with_the_model_and_is_saved() -> None:
    dynamics = ContinuousDynamics(2, 1)
    dynamics.set_interval(0.02)
    other = ContinuousDynamics(2, 1)
    other.load_state_dict(dynamics.float().state_dict())
    assert other.interval == 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: type[AffineDynamics]) -> None:
    with seeded():
        model = LatentFilter(Encoder((2,), 2), build(kind, inputs=1)).double()
    values = torch.randn(2, 15, 2, generator=rng(2), dtype=torch.float64)
    z, seen = model.encode(values, torch.ones_like(values, dtype=torch.bool))
    context = Context(torch.randint(1, 4, (2, 15), generator=rng(3)).double(), values[..., :1])
    predictive_log_density(model.dynamics, z, seen, context).sum().backward()
    for name, parameter in model.dynamics.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name
