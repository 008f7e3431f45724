"""The Triton kernels, run by Triton's interpreter, against the loops that they replace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm_filter.core import kernels as cpu_kernels
from ldm_filter.core import native, recursion, triton_launch
from ldm_filter.core import triton as door
from ldm_filter.core.backends import backend
from ldm_filter.core.inputs import Problem, prepare
from ldm_filter.core.kalman import filter_moments
from ldm_filter.core.linalg import NotPositiveDefiniteError, round_cov
from ldm_filter.types import Gaussian, StateSpace
from tests.core.problems import constant_ssm, normal, observed_of, random_measurements, rng
from tests.core.test_native import model, parts
from tests.optional import needs

# Triton looks when it is imported, and when a kernel is defined, whether to interpret.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    triton = needs("triton")
    kernels_of_triton = triton_launch.kernels()

# (batch, time, n, m): one step, one sequence, n < m, n = m, n > m, more than one program
SIZES = [(1, 1, 1, 1), (1, 3, 2, 2), (2, 3, 1, 3), (3, 2, 3, 2), (2, 1, 4, 4), (35, 2, 2, 1)]
# The same on tiles: of covariances alone, and of means as well; padded and not.
LARGE = [(1, 3, 5, 3), (2, 3, 3, 7), (3, 2, 8, 8), (1, 3, 9, 4), (2, 3, 3, 11), (2, 1, 12, 9), (19, 2, 9, 1), (2, 2, 20, 5)]
KINDS = [("constant", ""), ("constant", "shared"), ("constant", "own"), ("time", ""), ("batch", "own"), ("mixed", ""), ("all", "own")]


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def kernels(problem: Problem, precise: bool = True) -> list[Tensor]:
    result = door.run(problem, predicted=True, precise=precise)
    assert result.predicted is not None
    return [*result.predicted, *result.filtered, result.log_likelihood]


def loops(problem: Problem) -> list[Tensor]:
    covs = recursion.covariance_loop(problem)
    means = recursion.mean_loop(problem, covs.gain)
    assert covs.predicted is not None
    whitened = recursion.whiten(covs.factor, means.innovation.double())
    density = recursion.log_density_of(means.innovation, whitened, covs.factor, problem.seen)
    dtype = problem.z.dtype
    return [means.predicted, round_cov(covs.predicted, dtype), means.filtered, round_cov(covs.filtered, dtype), density]


def problem_of(leaves: list[Tensor], observed: Tensor | None) -> Problem:
    A, a, Q, C, c, h, P, z, R = leaves
    return prepare(StateSpace(A, a, Q, C, c, Gaussian(h, P)), Gaussian(z, R), observed)


def results(run: Callable[[Problem], list[Tensor]], leaves: list[Tensor], observed: Tensor | None, alone: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs, and the gradients of their weighted sum and, where asked, of each alone."""
    outputs = run(problem_of(leaves, observed))
    weights = [torch.randn(y.shape, generator=rng(k), dtype=torch.float64).to(y.dtype) for k, y in enumerate(outputs)]
    sets = [(outputs, weights)] + [([y], [w]) for y, w in zip(outputs, weights, strict=True) if alone]
    gradients = [torch.autograd.grad(ys, leaves, ws, retain_graph=True, allow_unused=True) for ys, ws in sets]
    return outputs, [torch.zeros_like(x) if g is None else g for grads in gradients for x, g in zip(leaves, grads, strict=True)]


def compare(leaves: list[Tensor], observed: Tensor | None, values: float, grads: float, alone: bool = False) -> None:
    ours, plain = (results(run, leaves, observed, alone) for run in (kernels, loops))
    for tolerance, left, right in ((values, ours[0], plain[0]), (grads, ours[1], plain[1])):
        for x, y in zip(left, right, strict=True):
            assert_close(x, y, rtol=0.0, atol=tolerance * max(1.0, y.abs().max().item()))


@pytest.mark.parametrize("kind, masked", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_filter_is_that_of_the_loop(size: tuple[int, int, int, int], kind: str, masked: str) -> None:
    batch, steps, _, m = size
    mask = observed_of(batch, steps, m)
    measurements = random_measurements(batch, steps, m, varying=kind in ("mixed", "all"))
    compare(parts(model(kind, *size), measurements), {"": None, "own": mask, "shared": mask[:1]}[masked], 1e-12, 1e-10)


# Kinds of problems whose covariances are their sequences' own.
OWN = [kind for kind in KINDS if kind[0] not in ("constant", "time") or kind[1] == "own"]
# In registers where there are many sequences, which the tests shorten: odd and even, more latents than states, several programs.
MANY = [(1, 3, 5, 3), (2, 3, 3, 7), (2, 1, 8, 8), (35, 2, 8, 4)]


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "_MANY", 1)


def test_many_sequences_go_to_threads() -> None:
    few, many = (triton_launch.own_layout(8, 8, batch, torch.float32, torch.float64) for batch in (3071, 3072))
    assert few.tiled and not many.tiled and triton_launch.own_layout(9, 1, 3072, torch.float64).tiled
    assert not triton_launch.own_layout(4, 4, 1, torch.float64).tiled
    assert few.constants["DTYPE"] == many.constants["INNER"] == triton.language.float64 != many.constants["DTYPE"]


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    "size, kind, masked", [pytest.param(size, *kind, marks=pytest.mark.slow if size[0] > 16 else ()) for size in MANY for kind in OWN]
)
def test_filter_of_many_sequences_is_that_of_the_loop(size: tuple[int, int, int, int], kind: str, masked: str) -> None:
    test_filter_is_that_of_the_loop(size, kind, masked)


# Means of more sequences than a tile has rows, which all share their covariances; where they do not, a program has one, and more show nothing.
ON_TILES = [pytest.param(size, *kind, marks=pytest.mark.slow if size[0] > 16 and kind in OWN else ()) for size in LARGE for kind in KINDS]


@pytest.mark.parametrize("size, kind, masked", ON_TILES)
def test_filter_on_tiles_is_that_of_the_loop(size: tuple[int, int, int, int], kind: str, masked: str) -> None:
    test_filter_is_that_of_the_loop(size, kind, masked)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("n, m", [(3, 2), (9, 2)])
def test_gradient_of_each_output_alone(n: int, m: int, varying: bool) -> None:
    compare(parts(constant_ssm(n, m), random_measurements(2, 2, m, varying=varying)), None, 1e-12, 1e-10, alone=True)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("kind", ["batch", "all"])
def test_float32_gradients_of_many_sequences(kind: str) -> None:
    """The adjoint is in float32, its gains in float64."""
    measurements = random_measurements(3, 12, 3, varying=True)
    leaves = [x.detach().float().requires_grad_() for x in parts(model(kind, 3, 12, 6, 3), measurements)]
    compare(leaves, None, 2e-6, 2e-5)


@pytest.mark.parametrize("many", [False, True])
def test_float32_gradients_of_precise_measurements(monkeypatch: pytest.MonkeyPatch, many: bool) -> None:
    """A measurement a hundred thousand times more certain than the state, against the exact gradient: 1e-4 of its largest entry."""
    monkeypatch.setattr(triton_launch, "_MANY", 1 if many else 1 << 30)
    ssm = constant_ssm(5, 3)._replace(initial=Gaussian(normal(1, 5), 100.0 * torch.eye(5, dtype=torch.float64)))
    measurements = random_measurements(2, 4, 3, varying=True)
    leaves = [x.detach().float().requires_grad_() for x in parts(ssm, measurements._replace(cov=1e-3 * measurements.cov))]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    ours, right = results(kernels, leaves, None, False)[1], results(loops, exact, None, False)[1]
    for x, y in zip(ours, right, strict=True):
        assert_close(x.double(), y, rtol=0.0, atol=1e-4 * y.abs().max().item())


@pytest.mark.parametrize("varying, precise", [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("n, m", [(3, 2), (5, 2), (9, 3)])
def test_float32(monkeypatch: pytest.MonkeyPatch, n: int, m: int, varying: bool, precise: bool) -> None:
    monkeypatch.setattr(f"{__name__}.kernels.__defaults__", (precise,))
    leaves = [x.detach().float().requires_grad_() for x in parts(constant_ssm(n, m), random_measurements(2, 3, m, varying=varying))]
    compare(leaves, None, 2e-6, 2e-5)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("n", [3, 8, 9])
def test_float32_with_precise_measurements_of_a_vague_state(n: int, varying: bool) -> None:
    """Measurement variance 1e-6, initial variance 1e4: what is left of it is right to 1e-4."""
    batch, steps, m = 2, 4, 2
    ssm = constant_ssm(n, m)._replace(initial=Gaussian(normal(1, n), 1e4 * torch.eye(n, dtype=torch.float64)))
    cov = 1e-6 * torch.eye(m, dtype=torch.float64).expand(*((batch, steps) if varying else (1, 1)), m, m).clone()
    exact = [x.float().double() for x in parts(ssm, Gaussian(normal(2, batch, steps, m), cov))]
    for x, y in zip(kernels(problem_of([x.float() for x in exact], None))[2:4], loops(problem_of(exact, None))[2:4], strict=True):
        assert_close(x.double(), y, rtol=0.0, atol=1e-4 * y.abs().max().item())
        assert (torch.linalg.eigvalsh(x.double()) > 0.0).all() if x.dim() == 4 else True


@pytest.mark.parametrize("noise", [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 2.0]], [[1e-6, 0.9e-3], [0.9e-3, 1.0]]])
@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.usefixtures("many")
def test_measurements_without_noise_of_their_own(n: int, noise: list[list[float]]) -> None:
    """Exact ones, two with the same noise, and scales far apart."""
    measurements = random_measurements(2, 3, 2, varying=True)
    cov = torch.tensor(noise, dtype=torch.float64).expand_as(measurements.cov).clone()
    compare(parts(constant_ssm(n, 2), measurements._replace(cov=cov)), None, 1e-9, 1e-8)


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_an_update_that_leaves_little_of_a_variance(angle: float) -> None:
    """1e-8 of 1e6 along a direction, of which float64 resolves no more than 1e-10 where numbers are subtracted; to 1e-5 all the same."""
    c = torch.tensor([[math.cos(angle), math.sin(angle), 0.0]], dtype=torch.float64)
    ssm = constant_ssm(3, 1)._replace(initial=Gaussian(normal(1, 3), 1e6 * torch.eye(3, dtype=torch.float64)), observation_matrix=c)
    measurements = Gaussian(normal(2, 2, 1, 1), torch.full((2, 1, 1, 1), 1e-8, dtype=torch.float64))
    found = kernels(problem_of(parts(ssm, measurements), None))[3].detach()
    right = 1e6 * (torch.eye(3, dtype=torch.float64) - c.mT @ c / (1.0 + 1e-14)).expand_as(found)
    assert_close(found, right, rtol=0.0, atol=1e-9)
    assert ((c @ found @ c.mT) > -1e-9).all()


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("n", [2, 9])
def test_only_the_symmetric_part_of_a_covariance_counts(n: int, varying: bool) -> None:
    leaves = parts(constant_ssm(n, 2), random_measurements(2, 3, 2, varying=varying))
    with torch.no_grad():
        for k in (2, 6, 8):
            leaves[k][..., 0, 1] += 0.05
    compare(leaves, None, 1e-12, 1e-10)


def test_what_is_not_asked_for_is_left_out() -> None:
    leaves = [x.detach() for x in parts(constant_ssm(2, 1), random_measurements(2, 3, 1, varying=True))]
    leaves[7].requires_grad_()
    result = door.run(problem_of(leaves, None), predicted=False)
    assert result.predicted is None
    every = parts(constant_ssm(2, 1), random_measurements(2, 3, 1, varying=True))
    alone = torch.autograd.grad(result.log_likelihood.sum(), leaves[7])[0]
    assert_close(alone, torch.autograd.grad(kernels(problem_of(every, None))[4].sum(), every[7])[0], rtol=0.0, atol=1e-14)


def quick_model(n: int, m: int, pace: float = 0.2) -> list[Tensor]:
    """A model that forgets its start within a few steps."""
    leaves = parts(constant_ssm(n, m), random_measurements(3, 18, m))
    with torch.no_grad():
        leaves[0].mul_(pace / torch.linalg.matrix_norm(leaves[0], 2))
    return leaves


def distinct_of(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> int:
    """The number of steps whose covariances differ, as the adjoint is told."""
    told: list[int] = []

    def spy(name: str, programs: int, arguments: list[Any], *rest: Any, **constants: Any) -> None:
        if name == "covariance_backward":
            told.append(arguments[-2])
        triton_launch.launch(name, programs, arguments, *rest, **constants)

    monkeypatch.setattr(door, "launch", spy)
    run()
    assert len(set(told)) == 1
    return told[0]


@pytest.mark.parametrize("n, m", [(2, 1), (5, 3), (9, 2)])
def test_a_constant_model_comes_to_rest(monkeypatch: pytest.MonkeyPatch, n: int, m: int) -> None:
    """At the step where the CPU kernels say so too, and nothing moves by more than their tolerance."""
    leaves = quick_model(n, m)
    distinct = distinct_of(monkeypatch, lambda: compare(leaves, None, 1e-12, 1e-10))
    assert 3 <= distinct < 18
    if native.available():
        A, a, Q, C, c, h, P, z, R = (x.detach() for x in leaves)
        over = [x[None, None] for x in (A, a, Q, C, c)]
        arguments = cpu_kernels.Arguments(*over, h.expand(1, n), P.expand(1, n, n), z, R[None, None], None)
        assert distinct == cpu_kernels.run(cpu_kernels.laid_out(arguments), False).distinct


def test_one_series_of_a_constant_model_comes_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = quick_model(2, 1)
    leaves[7] = leaves[7].detach()[:1].clone().requires_grad_()
    assert distinct_of(monkeypatch, lambda: compare(leaves, None, 1e-12, 1e-10)) < 18


def test_what_moves_never_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that varies in time, if only by name; one with gaps; one that starts where it would end and might drift unseen."""
    leaves = quick_model(2, 1)
    gaps = torch.ones(1, 18, 1, dtype=torch.bool)
    gaps[0, 15] = False
    assert distinct_of(monkeypatch, lambda: compare(leaves, gaps, 1e-12, 1e-10)) == 18
    varying = [leaves[0].detach().expand(1, 18, 2, 2).clone().requires_grad_(), *leaves[1:]]
    assert distinct_of(monkeypatch, lambda: compare(varying, None, 1e-12, 1e-10)) == 18
    with torch.no_grad():
        leaves[6].copy_(loops(problem_of(leaves, None))[1][0, -1])
    assert distinct_of(monkeypatch, lambda: compare(leaves, None, 1e-12, 1e-10)) == 18


@pytest.mark.parametrize("n", [3, 9])
def test_a_failure_is_named(n: int) -> None:
    measurements = random_measurements(4, 3, 2, varying=True)
    measurements.cov[2, 1] = torch.tensor([[1.0, 50.0], [50.0, 1.0]])
    measurements.cov[1, 2] = measurements.cov[2, 1]
    with pytest.raises(NotPositiveDefiniteError, match="at step 1 of series 2"):
        door.run(prepare(constant_ssm(n, 2), measurements, None), False)
    with pytest.raises(NotPositiveDefiniteError, match=r"at step 0 \(the covariance is shared"):
        door.run(prepare(constant_ssm(n, 2), measurements._replace(cov=measurements.cov[2, 1]), None), False)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    large = prepare(constant_ssm(33, 2), random_measurements(2, 3, 2), None)
    small = prepare(constant_ssm(2, 2), random_measurements(2, 3, 2), None)
    assert door.supports(small) and not door.supports(large)
    with pytest.raises(RuntimeError, match=r"got 33 states, 2 latents, .*; expected at most 32"):
        door.run(large, False)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not door.supports(small), "on the CPU only the interpreter runs kernels"


@pytest.mark.parametrize("n", [3, 9])
def test_a_forced_backend_comes_here(n: int) -> None:
    ssm, measurements = constant_ssm(n, 2), random_measurements(2, 3, 2)
    found, want = [], []
    for name, into in (("triton", found), ("torch", want)):
        with backend(name):
            filtered, density = filter_moments(ssm, measurements)
            into += [*filtered, density]
    for x, y in zip(found, want, strict=True):
        assert_close(x, y, rtol=0.0, atol=1e-12 * max(1.0, y.abs().max().item()))
