"""The latent filter: its methods agree with the core, and neither gauge nor canonical form changes what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_filter.core.kalman import filter_sequence
from ldm_filter.core.linalg import stationary
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.objectives.objective import Objective
from tests.models.problems import filter_of, rng


def data(missing: bool = True, steps: int = 23) -> tuple[Tensor, Tensor]:
    values = torch.randn(4, steps, 3, generator=rng(5), dtype=torch.float64)
    observed = torch.ones(values.shape, dtype=torch.bool)
    if missing:
        observed[1, 3:7] = False
        observed[2, 5, 1] = False
        observed[3, 20:] = False
    return values * observed, observed


def close(one: Any, other: Any, atol: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, rtol=atol, atol=atol)


@pytest.mark.parametrize("noise", ["constant", "input"])
def test_the_methods_are_the_core_on_the_encoders_measurements(noise: str) -> None:
    model = filter_of(noise=noise)
    values, observed = data()
    measurements, seen = model.encode(values, observed)
    assert torch.equal(seen, observed.any(-1))
    expected = filter_sequence(model.dynamics(), measurements, seen)
    result, smoothed = model.smooth(values, observed)
    close(result, expected)
    close(model(values, observed), expected)
    close(smoothed, smooth_sequence(model.dynamics(), expected))
    filtered, density = model.moments(values, observed)
    close(filtered, expected.filtered)
    close(density, expected.log_likelihood)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 23, 100])
@pytest.mark.parametrize("noise", ["constant", "input"])
def test_chunks_joined_are_one_pass(noise: str, chunk: int, missing: bool) -> None:
    model = filter_of(noise=noise)
    values, observed = data(missing)
    model.encoder.fit_missing(values[0], observed[0])
    whole = model(values, observed)
    measurements, seen = model.encode(values, observed)
    parts = list(model.filter_chunks(values, observed, chunk))

    def join(tensors: list[Tensor]) -> Tensor:
        batch = max(len(tensor) for tensor in tensors)
        return torch.cat([tensor.expand(batch, *tensor.shape[1:]) for tensor in tensors], dim=1)

    assert torch.equal(torch.cat([part[1] for part in parts], dim=1), seen)
    close(torch.cat([part[0].mean for part in parts], dim=1), measurements.mean)
    for i, name in enumerate(("predicted", "filtered", "projected")):
        for j in range(2):
            found = join([part[2][i][j] for part in parts])
            close(found.expand_as(getattr(whole, name)[j]), getattr(whole, name)[j].expand_as(found))
    close(join([part[2].log_likelihood for part in parts]), whole.log_likelihood)
    with pytest.raises(ValueError, match="chunk is 0"):
        list(model.filter_chunks(values, observed, 0))


@pytest.mark.parametrize("noise", ["constant", "input"])
def test_the_gauge_and_the_centre_do_not_change_what_the_filter_says(noise: str) -> None:
    model = filter_of(noise=noise)
    values, observed = data()
    model.encoder.fit_missing(values[0], observed[0])
    before = model(values, observed)
    seen = observed.any(-1)
    model.centre()
    centred = model(values, observed)
    close(centred.log_likelihood, before.log_likelihood)
    close(centred.filtered.cov, before.filtered.cov)
    shift = before.filtered.mean - centred.filtered.mean
    close(shift, shift[:1, :1].expand_as(shift))
    close(model.dynamics().transition_offset, torch.zeros(3).double())
    close(model.dynamics().observation_offset, torch.zeros(2).double())

    latents = model.encode(values, observed)[0].mean[seen]
    std, mean = latents.std(0), latents.mean(0)
    model.fix_gauge(mean, std)
    fixed = model(values, observed)
    latents = model.encode(values, observed)[0].mean[seen]
    close(latents.mean(0), torch.zeros(2).double())
    close(latents.std(0), torch.ones(2).double())
    close(fixed.filtered, centred.filtered)
    close(fixed.log_likelihood, torch.where(seen, centred.log_likelihood + std.log().sum(), 0.0))


@pytest.mark.parametrize("transition_cov", ["full", "diagonal"])
def test_the_canonical_form_does_not_change_what_the_filter_says(transition_cov: str) -> None:
    model = filter_of(n=4, transition_cov=transition_cov)
    values, observed = data()
    before = model(values, observed)
    transform = model.canonicalise()
    after = model(values, observed)
    close(after.log_likelihood, before.log_likelihood, 1e-8)
    close(after.projected, before.projected, 1e-8)
    close(after.filtered.mean, before.filtered.mean @ transform.mT, 1e-8)
    close(after.filtered.cov, transform @ before.filtered.cov @ transform.mT, 1e-8)
    ssm = model.dynamics()
    close(stationary(ssm.transition_matrix, ssm.transition_cov), torch.eye(4).double(), 1e-7)
    close(model.canonicalise(), torch.eye(4).double(), 1e-6)  # a second time changes nothing


def test_in_float32_the_steps_after_training_lose_no_more_than_rounding() -> None:
    model = filter_of(n=4).float()
    values, observed = data()
    values = values.float()
    before = model(values, observed).log_likelihood
    model.centre()
    model.fix_gauge(torch.zeros(2), torch.ones(2))
    model.canonicalise()
    close(model(values, observed).log_likelihood, before, 1e-4)


def test_a_slow_nearly_deterministic_model_keeps_its_time_scale_in_float32() -> None:
    """|eig| 0.9999 and Q of 1e-6: taking the matrices apart and together again in float32 must not move them."""
    model = LatentFilter(Encoder((3,), 2), LinearDynamics(4, 2, radius=0.9999, generator=rng()))
    with torch.no_grad():
        model.dynamics.contraction.copy_(torch.linalg.qr(torch.randn(4, 4, generator=rng()))[0])
        model.dynamics.cov_factor.copy_(torch.diag(torch.full((4,), -7.0)))
    before = torch.linalg.eigvals(model.dynamics.exact().transition_matrix.detach()).abs().sort().values
    model.canonicalise()
    after = torch.linalg.eigvals(model.dynamics().transition_matrix.detach().double()).abs().sort().values
    close(after, before, 1e-6)
    assert float(after.max()) < 1.0


def test_a_fixed_selector_refuses_a_change_of_basis() -> None:
    model = filter_of(observation="selector")
    values, observed = data()
    before = model(values, observed)
    with pytest.raises(ValueError, match='the gauge needs observation="learned"'):
        model.fix_gauge(torch.zeros(2).double(), torch.ones(2).double())
    with pytest.raises(ValueError, match='the canonical form needs observation="learned"'):
        model.canonicalise()
    close(model(values, observed).log_likelihood, before.log_likelihood)


def test_a_latent_without_spread_has_no_gauge() -> None:
    model = filter_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="expected positive finite numbers"):
        model.fix_gauge(torch.zeros(2).double(), torch.tensor([1.0, 0.0]).double())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="encoder gives 2 latents, dynamics expect 3"):
        LatentFilter(Encoder((3,), 2), LinearDynamics(3, 3))


@pytest.mark.parametrize("noise", ["constant", "input"])
@pytest.mark.parametrize("choices", [{}, {"transition_cov": "diagonal", "observation": "selector"}])
def test_every_parameter_learns(noise: str, choices: dict[str, str]) -> None:
    """From the start that training has: after a few steps no parameter is without a gradient, and none is where it was."""
    model = LatentFilter(Encoder((3,), 2, noise=noise), LinearDynamics(3, 2, generator=rng(), **choices))
    values, observed = (part.float() if part.is_floating_point() else part for part in data())
    flat = values.flatten(0, 1)
    model.encoder.fit_normalisation(flat, observed.flatten(0, 1), flat.mean(0), flat.std(0))
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        measurements, seen = model.encode(values, observed)
        Objective("conditional-log-det")(model.dynamics(), measurements, seen).loss.backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name
        assert not torch.equal(parameter, start[name]), name


@pytest.mark.parametrize("noise", ["constant", "input"])
def test_one_scale_for_every_covariance_moves_no_mean(noise: str) -> None:
    """Q, R and P_0 times c: the same gains, covariances times c, NIS divided by c, also where channels are missing."""
    model = filter_of(noise=noise)
    values, observed = data()
    model.encoder.fit_missing(values[0], observed[0])
    before = model(values, observed)
    assert model.scale_covariances(1.7)
    after = model(values, observed)
    for name in ("predicted", "filtered", "projected"):
        close(getattr(after, name).mean, getattr(before, name).mean, 1e-7)
        close(getattr(after, name).cov, 1.7 * getattr(before, name).cov, 1e-7)
    with pytest.raises(ValueError, match="factor is nan, expected a positive"):
        model.scale_covariances(float("nan"))
