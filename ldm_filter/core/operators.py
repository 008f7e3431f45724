"""The compiled filter as one operator of torch, ``torch.ops.ldm_filter.filter``, for programs that ``torch.compile`` and ``torch.export`` trace.

Run eagerly the kernels are called without it, as it costs more than they do on small problems. In a traced program the numbers cannot be looked
at when it is traced: the operator looks at them when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm_filter.core import kernels, native
from ldm_filter.core.inputs import Given, check_measurements, check_numbers
from ldm_filter.core.kernels import Arguments, Outputs
from ldm_filter.core.recursion import not_positive
from ldm_filter.types import Gaussian

__all__ = ["filter_traced", "refuse_failed"]


def filter_traced(x: Arguments, predicted: bool) -> Outputs:
    """:func:`ldm_filter.core.kernels.filter_batch` as one node of a graph; where it fails, it fails as the graph runs."""
    mean, cov, density, before, before_cov, *_ = _filter(*x, predicted)
    return Outputs(mean, cov, density, before if predicted else None, before_cov if predicted else None, (-1, 0))


@torch.library.custom_op("ldm_filter::filter", mutates_args=())
def _filter(
    A: Tensor, a: Tensor, Q: Tensor, C: Tensor, c: Tensor, h0: Tensor, P0: Tensor, z: Tensor, R: Tensor, mask: Tensor | None, from_belief: bool,
    predicted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The five outputs, those that were not asked for empty; then the plan, and the number of distinct steps."""
    others = {
        "ssm.transition_matrix": A,
        "ssm.transition_offset": a,
        "ssm.observation_matrix": C,
        "ssm.observation_offset": c,
        "ssm.initial.mean": h0,
    }
    check_numbers({"ssm.transition_cov": Q, "ssm.initial.cov": P0}, others)
    x = kernels.laid_out(Arguments(A, a, Q, C, c, h0, P0, z, R, mask, from_belief))
    done = kernels.run(x, predicted)
    assert done is not None  # it was checked
    outputs, plan, distinct, _ = done
    refuse_failed(x, outputs)
    mean, cov, density, before, before_cov = (z.new_empty(0) if y is None else y for y in outputs[:5])
    gain, whitening, constant = plan or (z.new_empty(0, dtype=torch.float64) for _ in range(3))
    return mean, cov, density, before, before_cov, gain, whitening, constant, torch.tensor(distinct)


def refuse_failed(x: Arguments, out: Outputs) -> None:
    """Raise where a factor failed or a number was not finite: that shows in the log-likelihood."""
    if out.place[0] < 0 and native.sound((), (out.log_likelihood,)):
        return
    check_measurements(Given(x.A, x.a, x.Q, x.C, x.c, x.R, x.z, Gaussian(x.h0, x.P0), x.mask))
    if out.place[0] >= 0:
        raise not_positive(out.place[0], out.place[1] if out.cov.shape[0] > 1 else None)


def _shared(x: Arguments) -> bool:
    """Whether all sequences have the same covariances, as the kernels see it."""
    matrices = (x.A, x.Q, x.C, x.R, x.P0, *(() if x.mask is None else (x.mask,)))
    if x.z.shape[0] > 1:
        return all(v.shape[0] == 1 for v in matrices)
    return x.mask is None and all(v.shape[1] == 1 for v in matrices[:4])


@_filter.register_fake
def _(A, a, Q, C, c, h0, P0, z, R, mask, from_belief, predicted):
    x = Arguments(A, a, Q, C, c, h0, P0, z, R, mask, from_belief)
    (batch, steps, m), n, shared = z.shape, A.shape[-1], _shared(x)
    cov = z.new_empty(1 if shared else batch, steps, n, n, dtype=torch.float64 if shared else z.dtype)
    mean, none = z.new_empty(batch, steps, n), z.new_empty(0)
    plan = [z.new_empty(size if shared else (0,), dtype=torch.float64) for size in ((steps, m, n), (steps, m, m), (steps,))]
    before = (torch.empty_like(mean), torch.empty_like(cov)) if predicted else (none, z.new_empty(0))
    return mean, cov, z.new_empty(batch, steps), *before, *plan, torch.empty((), dtype=torch.int64)


@torch.library.custom_op("ldm_filter::filter_adjoint", mutates_args=())
def _adjoint(
    fields: Sequence[Tensor],
    mask: Tensor | None,
    from_belief: bool,
    done: Sequence[Tensor],
    arriving: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the nine tensors, empty where they are not needed."""
    A, a, Q, C, c, h0, P0, z, R = fields
    x = kernels.laid_out(Arguments(A, a, Q, C, c, h0, P0, z, R, mask, from_belief))
    mean, cov, *plan, distinct = done
    run = kernels.Run(Outputs(mean, cov, mean, None, None, (-1, 0)), tuple(plan) if plan[0].numel() else (), int(distinct))
    grads = kernels.adjoin(x, run, tuple(arriving), tuple(needed))
    return [v.new_empty(0) if g is None else g for g, v in zip(grads, fields, strict=True)]


@_adjoint.register_fake
def _(fields, mask, from_belief, done, arriving, needed):
    return [v.new_empty(v.shape if wanted else 0) for v, wanted in zip(fields, needed, strict=True)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *fields, mask, from_belief, predicted = inputs
    mean, cov, *rest = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*fields, mean, cov, *rest[3:], *(() if mask is None else (mask,)))
    ctx.rest = (from_belief, predicted)


def _backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    saved, (from_belief, predicted) = ctx.saved_tensors, ctx.rest
    fields, done, mask = saved[:9], saved[9:15], saved[15] if len(saved) > 15 else None
    needed = list(ctx.needs_input_grad[:9])
    at = [*arriving[:3], *(arriving[3:5] if predicted else (None, None))]
    grads = _adjoint(list(fields), mask, from_belief, list(done), at, needed)
    return (*(g if wanted else None for g, wanted in zip(grads, needed, strict=True)), None, None, None)


_filter.register_autograd(_backward, setup_context=_keep)
