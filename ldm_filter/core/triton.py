"""The Kalman filter of whole sequences inside GPU kernels, with its adjoint.

Two ways, as on the CPU (:mod:`ldm_filter.core.kernels`). Covariances of each sequence's own: one sequence for each thread, its state in
registers, up to 4 states and latents, or 8 where there are thousands of sequences; beyond, one for each program, on tiles. Covariances that the batch
shares: their recursion runs once, on tiles, and is at rest where a constant model has converged; the means follow, one sequence for each thread up to
8 states and latents, beyond as tiles of sequences.

Triton is optional. Where it is missing, or the sizes do not fit, the readable loops of :mod:`ldm_filter.core.recursion` do the
same work on the GPU, step by step. First derivatives only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ldm_filter.core.inputs import Problem
from ldm_filter.core.linalg import round_cov
from ldm_filter.core.recursion import Filtered, not_positive, raise_if_not_positive
from ldm_filter.core.triton_launch import (
    Layout,
    available,
    covariance_layout,
    each,
    field,
    fields,
    gradients,
    interpreted,
    launch,
    mean_layout,
    of_means,
    own_layout,
    per_step,
    suits,
    total,
)
from ldm_filter.types import Gaussian

__all__ = ["LARGEST", "available", "run", "supports"]

LARGEST = 32  # states and latents: beyond, the tiles of a step exceed the registers and the shared memory of a program


def supports(problem: Problem) -> bool:
    """Whether :func:`run` takes the problem: up to 32 states and 32 latents, float32 or float64, on a device that fits (or interpreted)."""
    n, m = problem.A.shape[-1], problem.z.shape[-1]
    right_place = interpreted() or suits(problem.z.device, max(n, m))
    return available() and right_place and max(n, m) <= LARGEST and problem.z.dtype in (torch.float32, torch.float64)


def run(problem: Problem, predicted: bool, precise: bool = True) -> Filtered:
    """Filter all sequences of a problem that :func:`supports` accepts.

    Covariances are computed in float64, by Joseph's form or with its correction (:mod:`ldm_filter.core.triton_update`), the means with them or, where
    the batch shares its covariances and has at most 8 states and latents, in the dtype of the measurements. So are, one sequence for each thread, the
    gradients in all but the gains: in float32 right to about 1e-6 of the largest entry, 1e-5 where measurements are 1e5 times more certain than
    predictions. A model that is constant in time comes to rest as :mod:`ldm_filter.core.kernels` has it, which moves no covariance by more than 1e-13
    of its scale. Memory: the outputs and, backwards, the gradients; besides those only parts of the gradients of a model that the sequences share and
    that varies in time grow with T, one part for every 32 sequences with a thread each, 16 where covariances are shared, and 1 otherwise.

    Args:
        problem: as :func:`ldm_filter.core.inputs.prepare` makes it.
        predicted: whether the predictions are wanted.
        precise: False computes covariances that differ between sequences in the dtype of the measurements. In float32 that
            is faster where the device is slow in float64, and right to about 1e-6 of the largest entry, but to 1e-3 where variances
            span ten decades.

    Returns:
        The filtered states, the log-likelihood, and the predicted states or None.

    Raises:
        RuntimeError: where :func:`supports` is False.
        NotPositiveDefiniteError: (a ValueError) naming step and series where ``C P^- C' + R`` is not positive definite.
    """
    if not supports(problem):
        n, m = problem.A.shape[-1], problem.z.shape[-1]
        raise RuntimeError(
            f"the Triton kernels got {n} states, {m} latents, {problem.z.dtype} on {problem.z.device}; expected at most {LARGEST} of each, "
            "float32 or float64, on an NVIDIA device of compute capability 8.0 or more with Triton 3.6 or newer: use the torch loops instead"
        )
    A, a, Q, C, R, z, (h0, P0), seen = problem
    if not isinstance(seen, Tensor):
        seen = torch.full((1, 1), float(seen), dtype=z.dtype, device=z.device)
    constant = all(x.shape[1] == 1 for x in (A, Q, C, R))
    shared = all(x.shape[0] == 1 for x in (A, Q, C, R, P0)) and (z.shape[0] > 1 or constant)
    inputs = [x.contiguous() for x in (A, Q, C, R, P0, a, z, h0, seen)]
    if shared:
        p, Pp, f, P, density = _SharedCovariances.apply(*inputs, predicted, constant)
    else:
        p, Pp, f, P, density, failed = _OwnCovariances.apply(*inputs, predicted, precise)
        if (failed < z.shape[1]).any():
            raise_if_not_positive(torch.arange(z.shape[1], device=z.device) == failed.unsqueeze(-1))
    return Filtered(Gaussian(p, Pp) if predicted else None, Gaussian(f, P), density)


class _OwnCovariances(torch.autograd.Function):
    """Covariances that differ between sequences: one kernel forward, one backward."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor | None, ...]:
        *inputs, seen, predicted, precise = arguments
        z, n = inputs[6], inputs[0].shape[-1]
        batch, steps, m = z.shape
        f, P, density = z.new_empty(batch, steps, n), z.new_empty(batch, steps, n, n), z.new_empty(batch, steps)
        p, Pp = (torch.empty_like(f), torch.empty_like(P)) if predicted else (None, None)
        failed = torch.empty(batch, dtype=torch.int32, device=z.device)
        lift = 1.0 if z.dtype == torch.float64 else 1.0 + n * torch.finfo(z.dtype).eps
        wide = torch.float64 if precise else z.dtype
        layout = own_layout(n, m, batch, wide)
        given = [*fields(_prepared(inputs, wide, wide)), field(seen), *map(each, (p, Pp, f, P, density)), failed, *_numbers(layout, z)]
        launch(_name("filter_forward", layout), layout.programs(z), given, layout, LIFT=lift)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(failed)
        ctx.wide = wide
        ctx.save_for_backward(*inputs, f, P)
        return p, Pp, f, P, density, failed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, f, P = ctx.saved_tensors
        z = inputs[6]
        batch, _, m = z.shape
        layout = own_layout(inputs[0].shape[-1], m, batch, z.dtype, ctx.wide)
        grads = gradients(inputs, ctx.needs_input_grad, layout.programs(z))
        told = fields(_prepared(inputs, z.dtype, ctx.wide))
        given = [*told, each(f), each(P), *map(each, arriving[:5]), *fields(inputs, grads), *_numbers(layout, z)]
        launch(_name("filter_backward", layout), layout.programs(z), given, layout)
        return (*map(total, inputs, grads), None, None, None)


class _SharedCovariances(torch.autograd.Function):
    """Covariances that the batch shares: one kernel for them in float64 and one for the means, forward and backward."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor | None, ...]:
        *inputs, seen, predicted, constant = arguments
        z, n = inputs[6], inputs[0].shape[-1]
        batch, steps, m = z.shape
        Pp, P, K, W = (z.new_empty(1, steps, *size, dtype=torch.float64) for size in ((n, n), (n, n), (n, m), (m, m)))
        state = torch.empty(2, dtype=torch.int32, device=z.device)
        told, layout = fields(inputs), covariance_layout(n, m)
        covs = [*told[:5], *map(per_step, (Pp if predicted else None, P, K, W)), state, steps]
        launch("covariance_forward", 1, covs, layout, CONSTANT=constant)
        f, density = z.new_empty(batch, steps, n), z.new_empty(batch, steps)
        p = torch.empty_like(f) if predicted else None
        ctx.layout = layout = mean_layout(n, m, z.dtype)
        means = [*of_means(told), per_step(K), per_step(W), field(seen), *map(each, (p, f, density)), state, *_numbers(layout, z)]
        launch(_name("mean_forward", layout), layout.programs(z), means, layout)
        first, ctx.distinct = state.tolist()  # the host has not waited for the device before
        if first < steps:
            raise not_positive(first, None)
        for x in (P, Pp) if predicted else (P,):
            x[:, ctx.distinct :] = x[:, ctx.distinct - 1 : ctx.distinct]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, f, P, K, W, state)
        return p, round_cov(Pp, z.dtype) if predicted else None, f, round_cov(P, z.dtype), density

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, f, P, K, W, state = ctx.saved_tensors
        z, (n, m), distinct, layout = inputs[6], K.shape[-2:], ctx.distinct, ctx.layout
        to_p, to_Pp, to_f, to_P, to_density = arriving
        programs = layout.programs(z)
        of_data = gradients(inputs, [k not in (1, 3, 4) and need for k, need in enumerate(ctx.needs_input_grad)], programs)
        kind = torch.float64 if layout.tiled else z.dtype
        sums = [z.new_empty(programs, distinct, size, dtype=kind) for size in (n * m, m * m, 1)]
        told, grads = of_means(fields(inputs)), of_means(fields(inputs, of_data))
        saved = [per_step(K), per_step(W), *map(each, (f, to_p, to_f, to_density))]
        given = [*told, *saved, *grads, *map(per_step, sums), state, *_numbers(layout, z)]
        launch(_name("mean_backward", layout), programs, given, layout)
        of_covs = gradients(inputs, [*ctx.needs_input_grad[:5], False, False, False], programs, torch.float64)
        sums = [x.sum(0, keepdim=True, dtype=torch.float64) for x in sums]
        to_covs = (_gathered(x, distinct) for x in (to_Pp, to_P))
        covs = [*fields(inputs)[:5], *map(per_step, (P, *sums, *to_covs)), *fields(inputs, of_covs)[:5], distinct, z.shape[1]]
        launch("covariance_backward", 1, covs, covariance_layout(n, m))
        return (*map(total, inputs, of_data, of_covs), None, None, None)


def _prepared(inputs: list[Tensor], dtype: torch.dtype, of_C: torch.dtype) -> list[Tensor]:
    """What the sequences share in the dtype that a kernel computes in, with symmetric covariances, so that not every thread and step does that."""
    out = [x.to(of_C if k == 2 else dtype) if x.shape[0] == 1 and k < 6 else x for k, x in enumerate(inputs)]
    return [0.5 * (x + x.mT) if x.shape[0] == 1 and k in (1, 3, 4) else x for k, x in enumerate(out)]


def _gathered(arriving: Tensor | None, distinct: int) -> Tensor | None:
    """What arrives at the steps of a model at rest, ``(1, T, n, n)``, belongs to the last distinct one."""
    if arriving is None or distinct == arriving.shape[1]:
        return arriving
    gathered = arriving[:, :distinct].double()
    gathered[:, -1] += arriving[:, distinct:].sum(1, dtype=torch.float64)
    return gathered


def _name(kernel: str, layout: Layout) -> str:
    return f"tile_{kernel}" if layout.tiled else kernel


def _numbers(layout: Layout, z: Tensor) -> list[int]:
    """Batch and time, as far as a kernel asks for them, and the 0 that stands still (see :func:`ldm_filter.core.triton_memory.moved`)."""
    batch, steps, _ = z.shape
    if layout.tiled:
        return [steps] if layout.block == 1 else [batch, steps]
    return [batch, steps, 0]
