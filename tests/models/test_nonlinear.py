"""Learned nonlinear dynamics: they start as the linear filter, keep their bounds, and step by step equal the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacfwd, vmap
from torch.testing import assert_close

from ldm_filter.core.linearisation import extended
from ldm_filter.models.base import NO_CONTEXT
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.jumps import JumpDynamics
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.noise import AdaptiveProcessNoise, StateNoise
from ldm_filter.models.nonlinear import LocallyLinearDynamics, NonlinearDynamics, Residual
from ldm_filter.models.polynomial import PolynomialDynamics
from ldm_filter.models.stepwise import StepwiseDynamics
from ldm_filter.types import FilterResult, Gaussian, StateSpace

N, M, B, T = 3, 2, 4, 9


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start() -> StateSpace:
    """A slow rotation and a decay, at the stationary scale."""
    turn = torch.tensor([[0.95, -0.3, 0.0], [0.3, 0.95, 0.1], [0.0, 0.0, 0.7]], dtype=torch.float64) * 0.97
    observation = torch.randn(M, N, generator=rng(1), dtype=torch.float64)
    zeros = torch.zeros(N, dtype=torch.float64)
    return StateSpace(turn, 0.1 + zeros, 0.1 * torch.eye(N).double(), observation, zeros[:M], Gaussian(zeros, 2.0 * torch.eye(N).double()))


def linear(started: bool = True) -> LinearDynamics:
    dynamics = LinearDynamics(N, M, generator=rng(0)).double()
    if started:
        dynamics.start_from(start())
    return dynamics


KINDS: dict[str, Callable[[], StepwiseDynamics]] = {
    "linear": lambda: StepwiseDynamics(linear(False)),
    "locally-linear": lambda: LocallyLinearDynamics(linear(False), bases=5, generator=rng(2)),
    "ekf": lambda: NonlinearDynamics(linear(False), "ekf", hidden=(16, 8), generator=rng(2)),
    "ukf": lambda: NonlinearDynamics(linear(False), "ukf", hidden=(16, 8), generator=rng(2)),
    "polynomial": lambda: PolynomialDynamics(linear(False)),
    "adaptive": lambda: StepwiseDynamics(linear(False), adaptive=AdaptiveProcessNoise(N)),
    "state": lambda: StepwiseDynamics(linear(False), state_noise=StateNoise(N, M)),
    "jump": lambda: JumpDynamics(linear(False)),
    "all": lambda: NonlinearDynamics(
        linear(False), "ekf", hidden=(16, 8), adaptive=AdaptiveProcessNoise(N), state_noise=StateNoise(N, M), generator=rng(2)
    ),
}
ADAPTIVE = ("adaptive", "all")


def make(kind: str, trained: bool = False) -> StepwiseDynamics:
    """Dynamics as training finds them, or with every parameter moved."""
    dynamics = KINDS[kind]().double()
    dynamics.start_from(start())
    if trained:
        with torch.no_grad():
            for name, parameter in dynamics.named_parameters():
                size = 0.05 if name.startswith("base") else 0.03 if kind == "polynomial" else 0.3
                parameter.add_(size * torch.randn(parameter.shape, generator=rng(len(name))).to(parameter))
    return dynamics


def measurements(seed: int = 0, steps: int = T) -> Gaussian:
    return Gaussian(torch.randn(B, steps, M, generator=rng(seed)).double(), 0.2 * torch.eye(M).double())


def everything(result: FilterResult) -> tuple[Tensor, ...]:
    return (*result.predicted, *result.filtered, *result.projected, result.log_likelihood)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*ADAPTIVE, "jump")])
def test_training_starts_at_the_linear_filter(kind: str) -> None:
    dynamics, base = make(kind), linear()
    result, expected = dynamics.filter(measurements()), base.filter(measurements())
    for one, other in zip(everything(result), everything(expected), strict=True):
        assert_close(one, other.expand_as(one), rtol=0.0, atol=1e-10)
    assert_close(dynamics.smooth(result).smoothed.mean, base.smooth(expected).smoothed.mean, rtol=0.0, atol=1e-9)
    belief = Gaussian(result.filtered.mean[:, -1], result.filtered.cov[:, -1])
    assert_close(dynamics.forecast(belief, 5), base.forecast(belief, 5), rtol=0.0, atol=1e-9)
    assert_close(dynamics.prior_paths(4, rng(0), 3), base.prior_paths(4, rng(0), 3), rtol=0.0, atol=1e-9)


def test_adaptive_noise_is_nearly_calm_at_the_start() -> None:
    base = linear()
    paths = base.prior_paths(200, rng(0), B)[:, 0].detach()
    z = Gaussian(paths @ base.observation.detach().mT + 0.2**0.5 * torch.randn(B, 200, M, generator=rng(1)).double(), measurements().cov)
    calm, usual = (dynamics.filter(z).predicted.cov.detach() for dynamics in (make("adaptive"), base))
    assert torch.linalg.eigvalsh(calm - usual).min() > -1e-12
    assert float((calm - usual).diagonal(dim1=-2, dim2=-1).mean() / usual.diagonal(dim1=-2, dim2=-1).mean()) < 0.3


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("masked", [False, True])
def test_one_step_at_a_time_equals_the_whole(kind: str, masked: bool) -> None:
    dynamics, z = make(kind, trained=True), measurements()
    observed = torch.ones(B, T, M, dtype=torch.bool)
    if masked:
        observed[:, 3] = False
        observed[1, 5, 0] = False
    whole = dynamics.filter(z, observed)
    belief = Gaussian(*(part.expand(B, *part.shape).double() for part in dynamics.initial()))
    memory: tuple[Tensor, ...] = ()
    for t in range(T):
        predicted = belief if t == 0 else dynamics.predict(belief, NO_CONTEXT, *memory)
        now, seen = Gaussian(z.mean[:, t], z.cov), observed[:, t]
        assert_close(predicted, Gaussian(whole.predicted.mean[:, t], whole.predicted.cov[:, t]), rtol=0.0, atol=1e-9)
        projected = dynamics.project(predicted, z.cov)
        assert_close(projected, Gaussian(whole.projected.mean[:, t], whole.projected.cov[:, t]), rtol=0.0, atol=1e-9)
        belief, density = dynamics.update(predicted, now, seen, NO_CONTEXT, *(memory if dynamics.recalls else ()))
        assert_close(density, whole.log_likelihood[:, t], rtol=0.0, atol=1e-9)
        step = FilterResult(*(Gaussian(x.mean[:, None], x.cov[:, None]) for x in (predicted, belief, projected)), density[:, None])
        after = dynamics.remember(Gaussian(now.mean[:, None], now.cov), seen[:, None], step, *memory)
        assert (after is None) == (kind not in (*ADAPTIVE, "jump"))
        memory = () if after is None else (after[:, -1],)


@pytest.mark.parametrize("kind", list(KINDS))
def test_chunks_equal_one_pass(kind: str) -> None:
    encoder = Encoder((4,), M).double()
    model = LatentFilter(encoder, make(kind, trained=True))
    values, observed = torch.randn(B, 20, 4, generator=rng(3)).double(), torch.rand(B, 20, 4, generator=rng(4)) > 0.1
    with torch.no_grad():
        whole = model(values, observed)
        pieces = [result for _, _, result in model.filter_chunks(values, observed, 7)]
    for index, one in enumerate(everything(whole)):
        assert_close(one, torch.cat([everything(piece)[index] for piece in pieces], dim=1), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    dynamics = make(kind, trained=True)
    _, density = dynamics.moments(measurements(steps=30))
    density.sum().backward()
    for name, parameter in dynamics.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0.0, name


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_first_gradient_moves_what_is_new(kind: str) -> None:
    dynamics = make(kind)
    dynamics.moments(measurements(steps=30))[1].sum().backward()
    new = [parameter for name, parameter in dynamics.named_parameters() if not name.startswith("base")]
    assert not new or any(parameter.grad is not None and parameter.grad.abs().sum() > 0.0 for parameter in new)
    assert all(torch.isfinite(parameter.grad).all() for parameter in dynamics.parameters() if parameter.grad is not None)


def test_state_dict_round_trip() -> None:
    for kind in KINDS:
        one, other = make(kind, trained=True), KINDS[kind]().double()
        other.load_state_dict(one.state_dict())
        assert_close(everything(other.filter(measurements())), everything(one.filter(measurements())), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("kind", ["ekf", "polynomial", "all"])
def test_written_out_tangents_are_those_of_forward_mode(kind: str) -> None:
    dynamics = make(kind, trained=True)
    model = dynamics.state_space()
    belief = Gaussian(torch.randn(B, N, generator=rng(7)).double(), torch.eye(N).double().expand(B, N, N))
    assert_close(model.linearise(belief, 1)[:2], extended(model.transition)(belief, 1)[:2], rtol=0.0, atol=1e-12)


def residual(last: float = 5.0) -> Residual:
    made = Residual(N, 0, (32, 16), bound=0.7, lipschitz=2.0, generator=rng(0)).double()
    with torch.no_grad():
        for layer in made.layers:
            layer.weight.copy_(last * torch.randn(layer.weight.shape, generator=rng(1)))
    made.set_scale(torch.diag(torch.tensor([4.0, 1.0, 0.25])).double())
    return made


def test_the_residual_keeps_its_bounds_whatever_its_weights() -> None:
    made, states = residual(), 10.0 * torch.randn(500, N, generator=rng(2)).double()
    value = made.normalised().value(states)
    assert bool((value.abs() <= 0.7 * made.spread + 1e-12).all())
    assert float(value.detach().abs().max()) > 0.3
    near = torch.cat([states, 0.1 * states])
    slopes = vmap(jacfwd(made.normalised().value))(near) / made.spread[:, None] * made.spread
    assert float(torch.linalg.matrix_norm(slopes.detach(), 2).max()) <= 2.0 + 1e-9
    assert_close(made.normalised().tangent(near)[1], slopes * made.spread[:, None] / made.spread)


def test_every_mixture_is_a_contraction_in_one_basis() -> None:
    dynamics = make("locally-linear", trained=True)
    with torch.no_grad():
        dynamics.contraction_change.mul_(20.0)
        matrices, _ = dynamics.matrices()
        basis = dynamics.base.basis.double()
        for matrix in [*matrices, *(torch.rand(40, 5, generator=rng(0)).double().softmax(-1) @ matrices.flatten(1)).unflatten(-1, (N, N))]:
            assert float(torch.linalg.matrix_norm(basis @ matrix @ torch.linalg.inv(basis), 2)) < 1.0
        paths = dynamics.prior_paths(3000, rng(0), 2)
    assert torch.isfinite(paths).all()
    assert float(paths.abs().max()) < 1e3
    assert 0.0 < dynamics.health()["radius"] < 1.0


@pytest.mark.parametrize("kind", ["ekf", "ukf"])
def test_paths_stay_bounded_and_covariances_positive_without_data(kind: str) -> None:
    dynamics = make(kind, trained=True)
    with torch.no_grad():
        for layer in dynamics.residual.layers:
            layer.weight.mul_(10.0)
        assert float(dynamics.prior_paths(2000, rng(0), 2).abs().max()) < 1e3
        ahead = dynamics.forecast(Gaussian(torch.zeros(1, N).double(), torch.eye(N).double()[None]), 30)
    assert torch.linalg.eigvalsh(ahead.cov).min() > 0.0


def test_adaptive_noise_opens_up_after_a_jump_and_closes_again() -> None:
    dynamics = make("adaptive")
    z = measurements(steps=60)
    z.mean.mul_(0.1)
    z.mean[:, 30:] += 8.0
    z.mean[:, 31:] -= 8.0
    size = dynamics.filter(z).predicted.cov.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert bool((size[:, 31] > 3.0 * size[:, 30]).all())
    assert_close(size[:, 30], size[:, 29], rtol=0.05, atol=0.0)
    assert bool((size[:, 41] < 1.3 * size[:, 29]).all())


def test_noise_of_the_state_is_one_factor_for_all_latents_but_in_files_of_before() -> None:
    noise, states = StateNoise(N, 3, generator=rng(0)), torch.randn(7, N, generator=rng(1))
    nn.init.normal_(noise.network[4].weight, generator=rng(2))  # type: ignore[arg-type]
    factors = noise.scales()(states)
    assert factors.shape == (7, 3) and factors[:, 0].std() > 0.1
    torch.testing.assert_close(factors, factors[:, :1].expand(7, 3), rtol=0, atol=0)
    before = noise.state_dict() | {"network.4.weight": torch.randn(3, 32, generator=rng(3)), "network.4.bias": torch.zeros(3)}
    old = nn.ModuleDict({"noise": StateNoise(N, 3)})
    old.load_state_dict({f"noise.{name}": tensor for name, tensor in before.items()})
    raw = noise.network[:4](states) @ before["network.4.weight"].mT  # type: ignore[index]
    torch.testing.assert_close(old["noise"].scales()(states), (3.0 * torch.tanh(raw / 3.0)).exp())  # type: ignore[operator]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="method is 'enkf'"):
        NonlinearDynamics(linear(), "enkf")
    with pytest.raises(ValueError, match="bases is 0"):
        LocallyLinearDynamics(linear(), bases=0)
    with pytest.raises(ValueError, match="lipschitz is 0"):
        NonlinearDynamics(linear(), lipschitz=0.0)
    with pytest.raises(ValueError, match="adaptive is for 5 states"):
        StepwiseDynamics(linear(), adaptive=AdaptiveProcessNoise(5))
    with pytest.raises(ValueError, match="state_noise is for"):
        StepwiseDynamics(linear(), state_noise=StateNoise(N, N))


def test_latents_are_rescaled_without_changing_the_states() -> None:
    dynamics, z = make("all", trained=True), measurements()
    before = dynamics.filter(z)
    mean, std = torch.tensor([0.3, -1.0]).double(), torch.tensor([2.0, 0.5]).double()
    with torch.no_grad():
        dynamics.rescale_latents(mean, std)
    after = dynamics.filter(Gaussian((z.mean - mean) / std, z.cov / std[:, None] / std))
    assert_close(after.filtered, before.filtered, rtol=0.0, atol=1e-9)
    assert_close(after.log_likelihood, before.log_likelihood + std.log().sum(), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*ADAPTIVE, "jump", "ukf")])
def test_one_scale_for_all_covariances_moves_no_mean_of_trained_dynamics(kind: str) -> None:
    """Q, P_0 and R times c: the same motion and gains, whatever else lives in the basis of the linear part."""
    dynamics, z = make(kind, trained=True), measurements()
    before = dynamics.filter(z)
    assert dynamics.scale_covariances(1.7)
    after = dynamics.filter(Gaussian(z.mean, 1.7 * z.cov))
    for name in ("predicted", "filtered", "projected"):
        assert_close(getattr(after, name).mean, getattr(before, name).mean, rtol=0.0, atol=1e-9)
        assert_close(getattr(after, name).cov, 1.7 * getattr(before, name).cov, rtol=0.0, atol=1e-9)


def test_dynamics_whose_weights_follow_covariances_refuse_a_scale() -> None:
    assert not any(make(kind, trained=True).scale_covariances(1.7) for kind in (*ADAPTIVE, "jump", "ukf"))
