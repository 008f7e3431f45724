"""The compiled kernels against the loops that they replace: every output, every gradient, every shape that a problem comes in."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm_filter.core import kernels, native
from ldm_filter.core.backends import StepModel, backend, run_step
from ldm_filter.core.kalman import filter_moments, filter_sequence
from ldm_filter.core.linalg import NotPositiveDefiniteError
from ldm_filter.types import Gaussian, StateSpace
from tests.core.problems import constant_ssm, normal, observed_of, random_measurements, rng, varying_ssm

pytestmark = pytest.mark.skipif(not native._load(), reason="the compiled kernels are not installed: a C++ compiler and make install")

# (batch, time, n, m): odd, n > m, n = m, n < m, one step, one sequence, beyond one block of lanes, too large for lanes
SIZES = [(1, 1, 1, 1), (1, 12, 3, 2), (2, 7, 1, 3), (5, 6, 4, 4), (3, 1, 2, 2), (9, 8, 5, 3), (6, 4, 9, 2), (2, 3, 26, 3)]


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


def compare(run: Callable[..., list[Tensor]], leaves: list[Tensor], observed: Tensor | None, values: float, grads: float) -> None:
    with backend("native"):
        ours = values_and_gradients(run, leaves, observed)
    with backend("torch"):
        plain = values_and_gradients(run, leaves, observed)
    for tolerance, left, right in ((values, ours[0], plain[0]), (grads, ours[1], plain[1])):
        for x, y in zip(left, right, strict=True):
            assert_close(x, y, rtol=0.0, atol=tolerance * max(1.0, y.abs().max().item()))


@pytest.mark.parametrize("masked", ["", "own", "shared"])
@pytest.mark.parametrize("kind", ["constant", "time", "batch", "mixed", "all"])
@pytest.mark.parametrize("size", SIZES)
def test_filter_is_that_of_the_loop(size: tuple[int, int, int, int], kind: str, masked: str) -> None:
    batch, steps, _, m = size
    mask = observed_of(batch, steps, m)
    observed = {"": None, "own": mask, "shared": mask[:1]}[masked]
    measurements = random_measurements(batch, steps, m, varying=kind in ("mixed", "all"))
    compare(sequence, parts(model(kind, *size), measurements), observed, 1e-12, 1e-10)


@pytest.mark.parametrize("kind", ["constant", "time", "all"])
def test_moments_that_leave_out_the_prediction_are_those_of_the_loop(kind: str) -> None:
    size = (5, 6, 4, 2)
    measurements = random_measurements(5, 6, 2, varying=True)
    compare(moments, parts(model(kind, *size), measurements), observed_of(5, 6, 2)[..., 0], 1e-12, 1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_float32(masked: bool) -> None:
    leaves = [x.detach().float().requires_grad_() for x in parts(constant_ssm(4, 2), random_measurements(5, 6, 2))]
    compare(sequence, leaves, observed_of(5, 6, 2) if masked else None, 2e-6, 2e-5)


def test_only_the_symmetric_part_of_a_covariance_counts() -> None:
    leaves = parts(constant_ssm(3, 2), random_measurements(2, 4, 2))
    with torch.no_grad():
        for k in (2, 6, 8):
            leaves[k][0, 1] += 0.05
    compare(sequence, leaves, None, 1e-12, 1e-10)


@pytest.mark.parametrize("n, m", [(1, 1), (8, 8), (3, 5)])
def test_a_model_at_rest_is_as_if_it_ran_on(n: int, m: int) -> None:
    leaves = parts(constant_ssm(n, m), random_measurements(2, 90, m))
    filtered = moments(leaves, None)[1]
    assert torch.equal(filtered[0, 88], filtered[0, 89])
    compare(moments, leaves, None, 1e-12, 1e-10)


def test_a_slow_model_is_never_taken_to_be_at_rest() -> None:
    """A state that nothing observes creeps to its steady variance by 1e-9 of what is missing in each step."""
    one = torch.ones(1, 1, dtype=torch.float64)
    ssm = StateSpace((1.0 - 5e-10) * one, one[0] * 0.0, 1e-9 * one, 0.0 * one, one[0] * 0.0, Gaussian(one[0] * 0.0, (1.0 - 1e-6) * one))
    leaves = parts(ssm, Gaussian(normal(1, 1, 60, 1), one))
    covs = moments(leaves, None)[1]
    assert covs[0, 59, 0, 0] > covs[0, 30, 0, 0] > covs[0, 1, 0, 0]
    compare(moments, leaves, None, 1e-12, 1e-10)


def test_a_sequence_does_not_depend_on_its_batch() -> None:
    ssm, measurements = varying_ssm(7, 9, 4, 3), random_measurements(7, 9, 3, varying=True)
    together = moments(parts(ssm, measurements), None)
    for b in (0, 3, 6):
        leaves = [x[b : b + 1] for x in parts(ssm, measurements)]
        for x, y in zip(moments(leaves, None), together, strict=True):
            assert_close(x, y[b : b + 1], rtol=1e-12, atol=1e-12)


def arguments(kind: str, size: tuple[int, int, int, int], from_belief: bool = False, masked: bool = False) -> kernels.Arguments:
    """The kernels' own arguments, of a model that the batch shares ("time") or not ("all")."""
    batch, steps, _, m = size
    ssm, given = model(kind, *size), random_measurements(batch, steps, m, varying=True)
    R = given.cov[:1] if kind == "time" else given.cov
    h, P = ssm.initial.mean, ssm.initial.cov[:1] if kind == "time" else ssm.initial.cov
    mask = observed_of(batch, steps, m) if masked else None
    return kernels.Arguments(*ssm[:5], h, P, given.mean, R, mask if mask is None or kind != "time" else mask[:1], from_belief)


@pytest.mark.parametrize("from_belief, masked", [(False, False), (True, True)])
@pytest.mark.parametrize("kind", ["time", "all"])
def test_gradcheck(kind: str, from_belief: bool, masked: bool) -> None:
    x = arguments(kind, (3, 3, 3, 2), from_belief, masked)
    roots = [torch.linalg.cholesky(v) if k in (2, 6, 8) else v for k, v in enumerate(x[:9])]

    def run(*leaves: Tensor) -> tuple[Tensor | None, ...]:
        fields = [v @ v.mT if k in (2, 6, 8) else v for k, v in enumerate(leaves)]
        return kernels.filter_batch(kernels.Arguments(*fields, x.mask, from_belief), predicted=True)[:5]

    assert torch.autograd.gradcheck(run, [v.detach().requires_grad_() for v in roots])


@pytest.mark.parametrize("wanted", kernels.Arguments._fields[:9])
@pytest.mark.parametrize("kind", ["time", "all"])
def test_one_gradient_alone(kind: str, wanted: str) -> None:
    """The gradient of one argument is the same whether the others are wanted or not."""
    x = arguments(kind, (3, 4, 3, 2))
    every = kernels.Arguments(*(v.detach().clone().requires_grad_() for v in x[:9]), x.mask)
    alone = x._replace(**{wanted: getattr(x, wanted).clone().requires_grad_()})
    sums = [sum(y.square().sum() for y in kernels.filter_batch(v, predicted=True)[:5] if y is not None) for v in (every, alone)]
    full, only = (torch.autograd.grad(s, getattr(v, wanted))[0] for s, v in zip(sums, (every, alone), strict=True))
    assert torch.equal(full, only)
    assert only.abs().sum() > 0.0


def test_from_a_belief_is_a_prediction_more() -> None:
    x = arguments("all", (5, 6, 3, 2))
    first = [v[:, :1] for v in (x.A, x.a, x.Q)]
    whole = kernels.filter_batch(x._replace(from_belief=True), predicted=True)
    h = (first[0][:, 0] @ x.h0[..., None])[..., 0] + first[1][:, 0]
    P = first[0][:, 0] @ x.P0 @ first[0][:, 0].mT + first[2][:, 0]
    for left, right in zip(whole[:5], kernels.filter_batch(x._replace(h0=h, P0=P), predicted=True)[:5], strict=True):
        assert_close(left, right, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["constant", "all"])
@pytest.mark.parametrize("size", [(21, 9, 4, 2), (9, 7, 2, 2), (18, 5, 7, 5)])
def test_every_instruction_set_gives_the_same(size: tuple[int, int, int, int], kind: str) -> None:
    extension = native._load()
    assert extension is not None
    measurements = random_measurements(*size[:2], size[3], varying=kind == "all")
    leaves = parts(model(kind, *size), measurements)
    mask = observed_of(*size[:2], size[3])[:1]
    try:
        for name in extension.instruction_sets():
            extension.use_instruction_set(name)
            compare(sequence, leaves, mask, 1e-12, 1e-10)
            compare(sequence, [x.detach().float().requires_grad_() for x in leaves], mask, 5e-6, 1e-4)
    finally:
        extension.use_instruction_set(extension.instruction_sets()[-1])


@pytest.mark.parametrize("kind", ["constant", "all"])
def test_threads_change_nothing(kind: str) -> None:
    leaves = parts(model(kind, 300, 12, 4, 2), random_measurements(300, 12, 2, varying=kind == "all"))
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(values_and_gradients(sequence, leaves, None))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(x, y) for part, other in zip(run, runs[0], strict=True) for x, y in zip(part, other, strict=True))


def test_nearly_certain_measurements_of_an_uncertain_state() -> None:
    """P0 = 1e4 against R = 1e-6: where P^- - X' X would cancel, Joseph's form is used, in float32 as well."""
    n, m = 3, 3
    ssm = constant_ssm(n, m)._replace(initial=Gaussian(torch.zeros(n).double(), 1e4 * torch.eye(n).double()))
    for batch_own in (False, True):
        R = 1e-6 * torch.eye(m).double()
        measurements = Gaussian(10.0 * normal(1, 4, 30, m), R.expand(4, 30, m, m).clone() if batch_own else R)
        exact = moments(parts(ssm, measurements), None)
        with backend("torch"):
            loop = moments(parts(ssm, measurements), None)
        assert_close(exact[0], loop[0], rtol=1e-9, atol=1e-9)
        assert torch.linalg.eigvalsh(exact[1]).min() > 0.0
        single = moments([x.detach().float() for x in parts(ssm, measurements)], None)
        assert_close(single[0].double(), exact[0], rtol=0.0, atol=1e-4 * exact[0].abs().max().item())
        assert torch.linalg.eigvalsh(single[1].double()).min() > 0.0


def test_a_variance_of_zero_and_a_state_that_is_known() -> None:
    ssm = constant_ssm(3, 2)._replace(initial=Gaussian(torch.zeros(3).double(), torch.zeros(3, 3).double()))
    compare(sequence, parts(ssm, random_measurements(3, 5, 2)), None, 1e-12, 1e-10)
    compare(sequence, parts(ssm, random_measurements(3, 5, 2, varying=True)), None, 1e-12, 1e-10)


def test_views_and_expansions() -> None:
    x = arguments("all", (4, 5, 3, 2))
    shared = x._replace(A=x.A[:1, :1].expand(4, 5, 3, 3), C=x.C.mT.contiguous().mT, z=x.z.transpose(0, 1).contiguous().transpose(0, 1))
    plain = x._replace(A=shared.A.contiguous())
    leaves = [kernels.Arguments(*(v.detach().requires_grad_() for v in given[:9]), None) for given in (shared, plain)]
    outs = [kernels.filter_batch(given, predicted=True) for given in leaves]
    for left, right in zip(outs[0][:5], outs[1][:5], strict=True):
        assert torch.equal(left, right)
    grads = [torch.autograd.grad(out.log_likelihood.sum(), given[:9]) for out, given in zip(outs, leaves, strict=True)]
    for left, right in zip(*grads, strict=True):
        assert torch.equal(left, right)


def test_nothing_is_changed_and_a_nan_stays_in_its_sequence() -> None:
    x = arguments("all", (18, 8, 3, 2))
    before = [v.clone() for v in x[:9]]
    clean = kernels.filter_batch(x, predicted=False).mean
    assert all(torch.equal(v, old) for v, old in zip(x[:9], before, strict=True))
    x.z[17, 4, 0] = torch.nan
    dirty = kernels.filter_batch(x, predicted=False).mean
    assert torch.equal(dirty[:17], clean[:17])
    assert torch.equal(dirty[17, :4], clean[17, :4]) and dirty[17, 4:].isnan().all()


@pytest.mark.parametrize("varying", [False, True])
def test_numbers_that_are_not_finite_are_named(varying: bool) -> None:
    ssm, measurements = constant_ssm(3, 2), random_measurements(4, 6, 2, varying=varying)
    measurements.mean[2, 3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"measurements.mean is not finite at index \[2, 3, 1\]"):
        filter_moments(ssm, measurements)
    hidden = torch.ones(4, 6, 2, dtype=torch.bool)
    hidden[2, 3, 1] = False
    assert filter_moments(ssm, measurements, hidden)[1].isfinite().all()
    measurements.cov[..., 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"measurements.cov is not finite"):
        filter_moments(ssm, measurements, hidden)


def test_second_derivatives_are_refused() -> None:
    leaves = parts(constant_ssm(2, 1), random_measurements(2, 3, 1))
    (grad,) = torch.autograd.grad(moments(leaves, None)[0].square().sum(), leaves[7], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_large_results_use_their_memory_again() -> None:
    x = arguments("all", (64, 130, 4, 2))
    first = kernels.filter_batch(x, predicted=False).cov
    kept, address = first.clone(), first.data_ptr()
    del first
    second = kernels.filter_batch(x, predicted=False).cov
    assert second.data_ptr() == address and torch.equal(second, kept)
    third = kernels.filter_batch(x, predicted=False).cov
    assert third.data_ptr() != address and torch.equal(second, kept)
    del second, third
    assert native.release_memory() > 0 and native.release_memory() == 0


def test_a_forced_backend_says_what_it_cannot_take() -> None:
    ssm, measurements = constant_ssm(2, 1), random_measurements(2, 3, 1)
    half = [x.half() for x in parts(ssm, measurements)]
    with backend("native"), pytest.raises(ValueError, match='backend is "native", which takes float32 and float64'):
        moments(half, None)
    with backend("triton"), pytest.raises(RuntimeError, match="the Triton kernels got 33 states"):
        filter_moments(constant_ssm(33, 1), measurements)
    with pytest.raises(ValueError, match="backend is 'cuda', expected one of"):
        backend("cuda")


def test_a_failure_is_named_in_a_full_block() -> None:
    measurements = random_measurements(9, 5, 2, varying=True)
    measurements.cov[6, 3] = torch.tensor([[1.0, 50.0], [50.0, 1.0]])
    measurements.cov[2, 4] = measurements.cov[6, 3]
    with pytest.raises(NotPositiveDefiniteError, match="at step 3 of series 6"):
        filter_moments(constant_ssm(4, 2), measurements)


def test_a_step_for_a_loop_outside() -> None:
    """One step of every sequence, its transition its own: by the kernel as by the loops, with the same gradients."""
    batch, n, m = 9, 4, 2
    roots = [0.3 * normal(1, batch, n, n), normal(2, batch, n), normal(3, batch, n, n), normal(4, m, n), normal(5, batch, m, m), normal(6, batch, m)]
    roots += [normal(7, batch, n), normal(8, batch, n, n)]
    results = []
    for name in ("native", "torch"):
        A, a, Q, C, R, z, h, P = leaves = [x.clone().requires_grad_() for x in roots]
        ssm = StepModel(A, a, Q @ Q.mT + eye(n), C, R @ R.mT + eye(m), torch.tensor([2.0, 1.0, 0.0] * 3).double())
        with backend(name):
            before, after, density = run_step(ssm, z, Gaussian(h, P @ P.mT + eye(n)))
            with pytest.raises(NotPositiveDefiniteError, match="step 7 of series 0"):
                run_step(ssm._replace(R=-9.0 * eye(m), C=C * 0.0), z, Gaussian(h, eye(n)[None]), 7)
        sums = [*before, *after, density]
        results.append(sums + list(torch.autograd.grad(sum((y * normal(k, *y.shape)).sum() for k, y in enumerate(sums)), leaves)))
    for ours, plain in zip(*results, strict=True):
        assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def step_model(batch: int, n: int, m: int, own: bool) -> tuple[StepModel, Tensor, Gaussian]:
    """A step of which A, Q, R and the covariance before differ by sequence, or none of them."""
    lead = (batch,) if own else ()
    root = lambda seed, size: normal(seed, *lead, size, size)  # noqa: E731
    A, Q, R, P = 0.3 * root(1, n), root(3, n), root(5, m), root(8, n)
    ssm = StepModel(A, normal(2, *lead, n), Q @ Q.mT + eye(n), normal(4, m, n), R @ R.mT + eye(m), m)
    return ssm, normal(6, batch, m), Gaussian(normal(7, batch, n), (P @ P.mT + eye(n)).expand(batch, n, n) if own else P @ P.mT + eye(n))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("batch, n, m", [(1, 3, 2), (5, 4, 2), (19, 9, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_is_that_of_a_series_of_one(batch: int, n: int, m: int, own: bool, dtype: torch.dtype) -> None:
    """The step's own way through the kernels, and that of series of length 1, which takes any layout."""
    ssm, z, belief = step_model(batch, n, m, own)
    fields = [x.to(dtype) for x in (*ssm[:5], z, *belief)]
    loose = [*fields[:5], torch.stack([fields[5]] * 2, -1)[..., 0], *fields[6:]]  # what is measured does not lie side by side
    results = []
    for given in (fields, loose):
        leaves = [x.detach().requires_grad_() for x in given]
        before, after, density = run_step(StepModel(*leaves[:5], m), leaves[5], Gaussian(*leaves[6:]))
        assert before.cov.shape == after.cov.shape == (batch, n, n) and after.mean.dtype == density.dtype == dtype
        results.append([*before, *after, density])
        # gradients that are expanded, turned over, and of some outputs only
        for loss in (before.mean.sum() + density.mean(), (after.cov.mT * normal(9, batch, n, n)).sum() + after.mean.sum(0).square().sum()):
            results[-1] += torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
    for ours, plain in zip(*results, strict=True):
        tolerance = 1e-12 if dtype == torch.float64 else 2e-5
        assert_close(ours, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("wanted", range(8))
def test_one_gradient_of_a_step_alone(wanted: int) -> None:
    ssm, z, belief = step_model(9, 4, 2, own=True)
    fields = [x.detach() for x in (*ssm[:5], z, *belief)]

    def run(*leaves: Tensor) -> list[Tensor]:
        before, after, density = run_step(StepModel(*leaves[:5], 2), leaves[5], Gaussian(*leaves[6:]))
        return [*before, *after, density]

    every = [x.clone().requires_grad_() for x in fields]
    alone = [x.clone().requires_grad_(k == wanted) for k, x in enumerate(fields)]
    losses = [sum((y * normal(k, *y.shape)).sum() for k, y in enumerate(run(*leaves))) for leaves in (every, alone)]
    expected = torch.autograd.grad(losses[0], every)[wanted]
    assert torch.equal(torch.autograd.grad(losses[1], alone[wanted])[0], expected)
    assert torch.equal(run(*fields)[2], run(*alone)[2])  # without a trace for gradients


@pytest.mark.parametrize("seen", [1, torch.tensor(1), torch.tensor([1.0] * 4 + [2.0] * 5).double(), torch.tensor([1, 2, 0] * 3), torch.ones(9)])
def test_channels_of_a_step_that_are_missing_are_not_counted(seen: Tensor | int) -> None:
    ssm, z, belief = step_model(9, 4, 2, own=True)
    given = run_step(ssm, z, belief).log_likelihood
    missing = 2 - torch.as_tensor(seen).double()
    assert_close(run_step(ssm._replace(seen=seen), z, belief).log_likelihood, given + 0.5 * math.log(2 * math.pi) * missing)


def test_second_derivatives_of_a_step_are_refused() -> None:
    ssm, z, belief = step_model(3, 2, 1, own=True)
    A = ssm.A.clone().requires_grad_()
    (grad,) = torch.autograd.grad(run_step(ssm._replace(A=A), z, belief).log_likelihood.square().sum(), A, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)
