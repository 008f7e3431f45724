"""The compiled kernels against the loops that they replace: every output, every gradient, every shape that a problem comes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm_filter.core import native
from ldm_filter.core.kalman import filter_moments, filter_sequence
from ldm_filter.core.linalg import NotPositiveDefiniteError, whiten
from ldm_filter.types import Gaussian, StateSpace
from tests.core.problems import constant_ssm, normal, observed_of, random_cov, random_measurements, rng, stable, varying_ssm

pytestmark = pytest.mark.skipif(not native._load(), reason="the compiled kernels are not installed")

# (batch, time, n, m): odd, n > m, n = m, n < m, one step, one sequence, beyond one block of lanes, too large for lanes
SIZES = [(1, 1, 1, 1), (1, 12, 3, 2), (2, 7, 1, 3), (5, 6, 4, 4), (3, 1, 2, 2), (9, 8, 5, 3), (6, 4, 9, 2), (2, 3, 26, 3)]
MATRICES = ("A", "Q", "C", "R", "P0")


def model(kind: str, batch: int, steps: int, n: int, m: int) -> StateSpace:
    """Constant; varying in time; differing in the batch; both; one field of each sort."""
    if kind == "constant":
        return constant_ssm(n, m)
    full = varying_ssm(batch, steps, n, m)
    if kind == "time":
        return StateSpace(*(x[:1] for x in full[:5]), full.initial)
    if kind == "batch":
        return StateSpace(*(x[:, :1] for x in full[:5]), full.initial)
    if kind == "mixed":
        A, a, Q, C, c, (h, P) = full
        return StateSpace(A[:, :1], a[:1], Q[:1], C[:1, :1], c, Gaussian(h, P[:1]))
    return full


def parts(ssm: StateSpace, measurements: Gaussian) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in (*ssm[:5], *ssm.initial, *measurements)]


def sequence(leaves: list[Tensor], observed: Tensor | None) -> list[Tensor]:
    A, a, Q, C, c, h, P, z, R = leaves
    result = filter_sequence(StateSpace(A, a, Q, C, c, Gaussian(h, P)), Gaussian(z, R), observed)
    return [*result.predicted, *result.filtered, *result.projected, result.log_likelihood]


def moments(leaves: list[Tensor], observed: Tensor | None) -> list[Tensor]:
    A, a, Q, C, c, h, P, z, R = leaves
    filtered, log_likelihood = filter_moments(StateSpace(A, a, Q, C, c, Gaussian(h, P)), Gaussian(z, R), observed)
    return [*filtered, log_likelihood]


def values_and_gradients(run: Callable[..., list[Tensor]], leaves: list[Tensor], observed: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs, and the gradient of their weighted sum and, in a series of four steps, of each alone."""
    outputs = run(leaves, observed)
    weights = [torch.randn(y.shape, generator=rng(k), dtype=y.dtype) for k, y in enumerate(outputs)]
    sets = [(outputs, weights)]
    if outputs[0].shape[1] == 4:
        sets += [([y], [w]) for y, w in zip(outputs, weights, strict=True)]
    gradients = [torch.autograd.grad(ys, leaves, ws, retain_graph=True, allow_unused=True) for ys, ws in sets]
    flat = [torch.zeros_like(x) if g is None else g for grads in gradients for x, g in zip(leaves, grads, strict=True)]
    return outputs, flat


def compare(run: Callable[..., list[Tensor]], leaves: list[Tensor], observed: Tensor | None, monkeypatch: Any, values: float, grads: float) -> None:
    ours = values_and_gradients(run, leaves, observed)
    with monkeypatch.context() as patch:
        patch.setattr(native, "available", lambda: False)
        patch.setattr(native, "_load", None)  # calling it now would fail
        plain = values_and_gradients(run, leaves, observed)
    for tolerance, left, right in ((values, ours[0], plain[0]), (grads, ours[1], plain[1])):
        for x, y in zip(left, right, strict=True):
            assert_close(x, y, rtol=0.0, atol=tolerance * max(1.0, y.abs().max().item()))


@pytest.mark.parametrize("masked", ["", "own", "shared"])
@pytest.mark.parametrize("kind", ["constant", "time", "batch", "mixed", "all"])
@pytest.mark.parametrize("size", SIZES)
def test_filter_is_that_of_the_loop(monkeypatch: Any, size: tuple[int, int, int, int], kind: str, masked: str) -> None:
    batch, steps, _, m = size
    mask = observed_of(batch, steps, m)
    observed = {"": None, "own": mask, "shared": mask[:1]}[masked]
    measurements = random_measurements(batch, steps, m, varying=kind in ("mixed", "all"))
    compare(sequence, parts(model(kind, *size), measurements), observed, monkeypatch, 1e-12, 1e-10)


@pytest.mark.parametrize("kind", ["constant", "time", "all"])
def test_moments_that_leave_out_the_prediction_are_those_of_the_loop(monkeypatch: Any, kind: str) -> None:
    size = (5, 6, 4, 2)
    measurements = random_measurements(5, 6, 2, varying=True)
    compare(moments, parts(model(kind, *size), measurements), observed_of(5, 6, 2)[..., 0], monkeypatch, 1e-12, 1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_float32(monkeypatch: Any, masked: bool) -> None:
    leaves = [x.detach().float().requires_grad_() for x in parts(constant_ssm(4, 2), random_measurements(5, 6, 2))]
    compare(sequence, leaves, observed_of(5, 6, 2) if masked else None, monkeypatch, 2e-6, 2e-5)


def test_only_the_symmetric_part_of_a_covariance_counts(monkeypatch: Any) -> None:
    leaves = parts(constant_ssm(3, 2), random_measurements(2, 4, 2))
    with torch.no_grad():
        for k in (2, 6, 8):
            leaves[k][0, 1] += 0.05
    compare(sequence, leaves, None, monkeypatch, 1e-12, 1e-10)


@pytest.mark.parametrize("n, m", [(1, 1), (8, 8), (3, 5)])
def test_a_model_at_rest_is_as_if_it_ran_on(monkeypatch: Any, n: int, m: int) -> None:
    leaves = parts(constant_ssm(n, m), random_measurements(2, 90, m))
    A, _, Q, C, _, _, P, _, R = (x.detach() for x in leaves)
    filtered = native.covariance_recursion(A[None, None], Q[None, None], C[None, None], R[None, None], P[None], 90)[1]
    assert torch.equal(filtered[0, 88], filtered[0, 89])
    compare(moments, leaves, None, monkeypatch, 1e-12, 1e-10)


def test_a_slow_model_is_never_taken_to_be_at_rest(monkeypatch: Any) -> None:
    """A state that nothing observes creeps to its steady variance by 1e-9 of what is missing in each step."""
    one = torch.ones(1, 1, dtype=torch.float64)
    ssm = StateSpace((1.0 - 5e-10) * one, one[0] * 0.0, 1e-9 * one, 0.0 * one, one[0] * 0.0, Gaussian(one[0] * 0.0, (1.0 - 1e-6) * one))
    leaves = parts(ssm, Gaussian(normal(1, 1, 60, 1), one))
    covs = moments(leaves, None)[1]
    assert covs[0, 59, 0, 0] > covs[0, 30, 0, 0] > covs[0, 1, 0, 0]
    compare(moments, leaves, None, monkeypatch, 1e-12, 1e-10)


def test_a_sequence_does_not_depend_on_its_batch() -> None:
    ssm, measurements = varying_ssm(7, 9, 4, 3), random_measurements(7, 9, 3, varying=True)
    together = moments(parts(ssm, measurements), None)
    for b in (0, 3, 6):
        leaves = [x[b : b + 1] for x in parts(ssm, measurements)]
        for x, y in zip(moments(leaves, None), together, strict=True):
            assert_close(x, y[b : b + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_log_density_and_gradient(shared: bool) -> None:
    factor = torch.linalg.cholesky(random_cov(1, 1 if shared else 19, 5, 3)).requires_grad_()
    innovation = normal(2, 19, 5, 3).requires_grad_()
    gauss = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), scale_tril=factor.expand(19, -1, -1, -1))
    weight = normal(3, 19, 5)
    plain = gauss.log_prob(innovation) + 1.5 * torch.log(torch.tensor(2.0 * torch.pi, dtype=torch.float64))
    ours = native.log_density(factor, innovation)
    assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    assert_close(-0.5 * whiten(factor, innovation).square().sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1), ours)
    at_factor, at_innovation = torch.autograd.grad(plain, (factor, innovation), weight)
    for x, y in zip(torch.autograd.grad(ours, (factor, innovation), weight), (at_factor.tril(), at_innovation), strict=True):
        assert_close(x, y, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("wanted", MATRICES)
def test_one_gradient_alone(wanted: str) -> None:
    """The gradient of one argument is the same whether the others are wanted or not."""
    inputs = dict(zip(MATRICES, matrices(), strict=True))
    every = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    alone = {**inputs, wanted: inputs[wanted].clone().requires_grad_()}
    sums = [sum(y.square().sum() for y in native.covariance_recursion(**x, steps=4)[:4]) for x in (every, alone)]
    full, only = (torch.autograd.grad(s, x[wanted])[0] for s, x in zip(sums, (every, alone), strict=True))
    assert torch.equal(full, only)
    assert only.abs().sum() > 0.0


def matrices() -> list[Tensor]:
    return [stable(1, 3, 4, 3), random_cov(2, 1, 4, 3), normal(3, 3, 1, 2, 3), random_cov(4, 3, 4, 2), random_cov(5, 1, 3)]


@pytest.mark.parametrize("predicted", [False, True])
def test_gradcheck_of_the_covariances(predicted: bool) -> None:
    A, Q, C, R, P0 = matrices()
    leaves = [A, torch.linalg.cholesky(Q), C, torch.linalg.cholesky(R), torch.linalg.cholesky(P0)]

    def run(A: Tensor, Q: Tensor, C: Tensor, R: Tensor, P0: Tensor) -> tuple[Tensor, ...]:
        before, *rest, _ = native.covariance_recursion(A, Q @ Q.mT, C, R @ R.mT, P0 @ P0.mT, 4, predicted)
        return (*rest, before) if before is not None else tuple(rest)

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in leaves])


def test_a_failure_is_named_in_a_full_block() -> None:
    measurements = random_measurements(9, 5, 2, varying=True)
    measurements.cov[6, 3] = torch.tensor([[1.0, 50.0], [50.0, 1.0]])
    measurements.cov[2, 4] = measurements.cov[6, 3]
    with pytest.raises(NotPositiveDefiniteError, match="at step 3 of series 6"):
        filter_moments(constant_ssm(4, 2), measurements)


@pytest.mark.parametrize("name", MATRICES)
def test_bad_arguments_are_named(name: str) -> None:
    inputs: dict[str, Any] = dict(zip(MATRICES, matrices(), strict=True))
    with pytest.raises(TypeError, match=rf"^{name} is a ndarray"):
        native.covariance_recursion(**{**inputs, name: inputs[name].numpy()}, steps=4)
    with pytest.raises(TypeError, match=rf"^{name} has dtype torch.float32; expected torch.float64"):
        native.covariance_recursion(**{**inputs, name: inputs[name].float()}, steps=4)
    with pytest.raises(ValueError, match=rf"^{name} is .* on the CPU"):
        native.covariance_recursion(**{**inputs, name: inputs[name].to("meta")}, steps=4)
    for wrong in (inputs[name][0], inputs[name][..., :-1], inputs[name].repeat(2, *[1] * (inputs[name].dim() - 1))):
        with pytest.raises(ValueError, match="has shape"):
            native.covariance_recursion(**{**inputs, name: wrong}, steps=4)


def test_bad_densities_are_named() -> None:
    factor, innovation = torch.eye(2, dtype=torch.float64).expand(1, 5, 2, 2), normal(1, 3, 5, 2)
    with pytest.raises(ValueError, match=r"^factor has shape \(1, 4, 2, 2\); expected \(1 or 3, 5, 2, 2\)"):
        native.log_density(factor[:, :4], innovation)
    with pytest.raises(ValueError, match=r"^innovation has shape \(3, 2\)"):
        native.log_density(factor, innovation[:, 0])
    with pytest.raises(TypeError, match=r"^innovation has dtype torch.float32"):
        native.log_density(factor, innovation.float())
