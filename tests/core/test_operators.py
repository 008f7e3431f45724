"""The filter as an operator in traced programs: the same numbers, the same gradients, one node, and errors when it runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ldm_filter.core import native
from ldm_filter.core.backends import StepModel, run_step
from ldm_filter.core.kalman import filter_moments, filter_sequence
from ldm_filter.core.kernels import Arguments
from ldm_filter.types import Gaussian, StateSpace
from tests.core.problems import constant_ssm, random_measurements

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels are not installed: a C++ compiler and make install")


def leaves_of(varying: bool, grad: bool = True) -> list[Tensor]:
    ssm, measurements = constant_ssm(3, 2), random_measurements(5, 7, 2, varying=varying)
    return [x.clone().requires_grad_(grad) for x in (*ssm[:5], *ssm.initial, *measurements)]


def moments(*x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, ...]:
    filtered, density = filter_moments(StateSpace(*x[:5], Gaussian(*x[5:7])), Gaussian(*x[7:9]), observed)
    return *filtered, density


def everything(*x: Tensor, observed: Tensor) -> tuple[Tensor, ...]:
    result = filter_sequence(StateSpace(*x[:5], Gaussian(*x[5:7])), Gaussian(*x[7:9]), observed)
    return *result.predicted, *result.filtered, *result.projected, result.log_likelihood


class Moments(nn.Module):
    """The filter of fixed matrices, for export."""

    def __init__(self, x: list[Tensor]) -> None:
        super().__init__()
        for k, v in enumerate(x[:7]):
            self.register_buffer(f"x{k}", v.detach())

    def forward(self, z: Tensor, R: Tensor) -> tuple[Tensor, ...]:
        return moments(*(getattr(self, f"x{k}") for k in range(7)), z, R)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize(("filter_", "masked"), [(moments, False), (moments, True), (everything, True)])
def test_a_compiled_program_gives_the_same(filter_, masked: bool, varying: bool) -> None:
    observed = torch.rand(5, 7, 2, generator=torch.Generator().manual_seed(1)) > 0.3 if masked else None
    plain, traced = leaves_of(varying), leaves_of(varying)
    compiled = torch.compile(filter_, fullgraph=True, backend="aot_eager")
    expected, found = filter_(*plain, observed=observed), compiled(*traced, observed=observed)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-13, atol=1e-13)
    sums = (sum(y.square().sum() for y in out) for out in (found, expected))
    for left, right in zip(*(torch.autograd.grad(total, x) for total, x in zip(sums, (traced, plain), strict=True)), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_a_compiled_step_gives_the_same() -> None:
    A, a, Q, C, _, h0, P0, z, R = leaves_of(varying=True)
    given = (A, a, Q, C, R[:, 0], z[:, 0], h0.expand(5, -1), P0.expand(5, -1, -1))

    def step(*x: Tensor) -> tuple[Tensor, ...]:
        before, after, density = run_step(StepModel(*x[:5], 2), x[5], Gaussian(*x[6:]))
        return *before, *after, density

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [x.detach().clone().requires_grad_() for x in given]
        outputs = run(*leaves)
        results.append([*outputs, *torch.autograd.grad(sum(y.square().sum() for y in outputs), leaves)])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_an_exported_program_has_one_node_for_the_filter() -> None:
    x = leaves_of(varying=True, grad=False)
    program = torch.export.export(Moments(x), tuple(x[7:9]))
    assert sum("ldm_filter.filter" in str(node.target) for node in program.graph.nodes) == 1
    for left, right in zip(program.module()(*x[7:9]), moments(*x), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("varying", [False, True])
def test_torch_finds_no_fault_with_the_operator(varying: bool) -> None:
    A, a, Q, C, c, h0, P0, z, R = leaves_of(varying)
    fields = [
        A[None, None],
        a[None, None],
        Q[None, None],
        C[None, None],
        c[None, None],
        h0[None],
        P0[None],
        z,
        R if varying else R.reshape(1, 1, 2, 2),
    ]
    x = Arguments(*(v.detach().requires_grad_() for v in fields), None, False)
    torch.library.opcheck(torch.ops.ldm_filter.filter, (*x, True), test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def test_errors_come_when_the_program_runs() -> None:
    x = leaves_of(varying=True, grad=False)
    compiled = torch.compile(moments, fullgraph=True, backend="aot_eager")
    compiled(*x)
    x[7][2, 3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"measurements.mean is not finite at index \[2, 3, 1\]"):
        compiled(*x)
    x[7][2, 3, 1] = 0.0
    x[8][1, 4] = -torch.eye(2, dtype=torch.float64) * 1e3
    with pytest.raises(ValueError, match=r"measurements.cov has a negative variance|not positive definite at step 4 of series 1"):
        compiled(*x)


@pytest.mark.parametrize(("field", "name"), [(0, "ssm.transition_matrix"), (2, "ssm.transition_cov"), (5, "ssm.initial.mean")])
def test_a_model_that_is_not_finite_is_refused_when_the_program_runs(field: int, name: str) -> None:
    x = leaves_of(varying=True, grad=False)
    compiled = torch.compile(moments, fullgraph=True, backend="aot_eager")
    compiled(*x)
    x[field].view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=f"{name} is not finite at index"):
        compiled(*x)
