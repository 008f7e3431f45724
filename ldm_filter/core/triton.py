"""The Kalman filter of whole sequences inside GPU kernels, with its adjoint: the door to :mod:`ldm_filter.core.triton_own` and
:mod:`ldm_filter.core.triton_shared`.

Triton is optional. Where it is missing, or the sizes do not fit, the readable loops of :mod:`ldm_filter.core.recursion` do the
same work on the GPU, step by step. First derivatives only.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ldm_filter.core.inputs import Problem
from ldm_filter.core.linalg import round_cov
from ldm_filter.core.recursion import Filtered, raise_if_not_positive
from ldm_filter.types import Gaussian

__all__ = ["LARGEST", "available", "run", "supports"]

LARGEST = 8  # states and latents: a sequence's matrices are a thread's registers
_BLOCK = 32  # sequences for each program, which is one warp

_Field = tuple[Tensor | None, int | None, int | None]


def available() -> bool:
    """Whether kernels can run: Triton is installed, and there is a CUDA device or Triton's interpreter (``TRITON_INTERPRET=1``)."""
    return importlib.util.find_spec("triton") is not None and (_interpreted() or torch.cuda.is_available())


def supports(problem: Problem) -> bool:
    """Whether :func:`run` takes the problem: up to 8 states and 8 latents, float32 or float64, on a CUDA device (or interpreted)."""
    n, m = problem.A.shape[-1], problem.z.shape[-1]
    right_place = problem.z.device.type == "cuda" or _interpreted()
    return available() and right_place and max(n, m) <= LARGEST and problem.z.dtype in (torch.float32, torch.float64)


def run(problem: Problem, predicted: bool, precise: bool = True) -> Filtered:
    """Filter all sequences of a problem that :func:`supports` accepts.

    Covariances are computed in float64, with Cholesky factors and Joseph's form, the means with them or, where the batch shares
    its covariances, in the dtype of the measurements. Memory: the outputs and, backwards, the gradients; nothing else grows
    with T, but for the sums over 32 sequences of the gradients of a model that they share and that varies in time.

    Args:
        problem: as :func:`ldm_filter.core.inputs.prepare` makes it.
        predicted: whether the predictions are wanted.
        precise: False computes covariances that differ between sequences in the dtype of the measurements. In float32 that
            is faster, and right to about 1e-6 of the largest entry, but to 1e-3 where variances span ten decades.

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
            "float32 or float64, on a CUDA device with Triton installed: use the torch loops instead"
        )
    A, a, Q, C, R, z, (h0, P0), seen = problem
    if not isinstance(seen, Tensor):
        seen = torch.full((1, 1), float(seen), dtype=z.dtype, device=z.device)
    shared = z.shape[0] > 1 and all(x.shape[0] == 1 for x in (A, Q, C, R, P0))
    inputs = [x.contiguous() for x in (A, Q, C, R, P0, a, z, h0, seen)]
    p, Pp, f, P, density, failed = (_SharedCovariances if shared else _OwnCovariances).apply(*inputs, predicted, precise)
    if (failed < z.shape[1]).any():
        info = torch.arange(z.shape[1], device=z.device) == failed.unsqueeze(-1)
        raise_if_not_positive(info[0] if shared else info)
    return Filtered(Gaussian(p, Pp) if predicted else None, Gaussian(f, P), density)


class _OwnCovariances(torch.autograd.Function):
    """Covariances that differ between sequences: one kernel forward, one backward."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor | None, ...]:
        *inputs, seen, predicted, precise = arguments
        z, n = inputs[6], inputs[0].shape[-1]
        batch, steps, _ = z.shape
        f, P, density = z.new_empty(batch, steps, n), z.new_empty(batch, steps, n, n), z.new_empty(batch, steps)
        p, Pp = (torch.empty_like(f), torch.empty_like(P)) if predicted else (None, None)
        failed = torch.empty(batch, dtype=torch.int32, device=z.device)
        lift = 1.0 if z.dtype == torch.float64 else 1.0 + n * torch.finfo(z.dtype).eps
        fields = [*_fields(inputs), _field(seen), *map(_each, (p, Pp, f, P, density)), failed, batch, steps, 0]
        ctx.dtype = torch.float64 if precise else z.dtype
        _launch("filter_forward", _programs(z), fields, LIFT=lift, BLOCK=_BLOCK, **_sizes(inputs, ctx.dtype))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(failed)
        ctx.save_for_backward(*inputs, f, P)
        return p, Pp, f, P, density, failed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, f, P = ctx.saved_tensors
        z = inputs[6]
        grads = _gradients(inputs, ctx.needs_input_grad)
        fields = [*_fields(inputs), _each(f), _each(P), *map(_each, arriving[:5]), *_fields(inputs, grads), *z.shape[:2], 0]
        _launch("filter_backward", _programs(z), fields, BLOCK=_BLOCK, **_sizes(inputs, ctx.dtype))
        return (*map(_total, inputs, grads), None, None, None)


class _SharedCovariances(torch.autograd.Function):
    """Covariances that the batch shares: one kernel for them in float64 and one for the means, forward and backward."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor | None, ...]:
        *inputs, seen, predicted, _ = arguments
        z, n = inputs[6], inputs[0].shape[-1]
        batch, steps, m = z.shape
        Pp, P, K, L = (z.new_empty(1, steps, *size, dtype=torch.float64) for size in ((n, n), (n, n), (n, m), (m * (m + 1) // 2,)))
        failed = torch.empty(1, dtype=torch.int32, device=z.device)
        fields = _fields(inputs)
        _launch("covariance_forward", 1, [*fields[:5], *map(_steps, (Pp, P, K, L)), failed, steps], **_sizes(inputs, torch.float64))
        f, density = z.new_empty(batch, steps, n), z.new_empty(batch, steps)
        p = torch.empty_like(f) if predicted else None
        means = [*_of_means(fields), _steps(K), _steps(L), _field(seen), *map(_each, (p, f, density)), batch, steps, 0]
        _launch("mean_forward", _programs(z), means, BLOCK=_BLOCK, **_sizes(inputs, z.dtype))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(failed)
        ctx.save_for_backward(*inputs, f, P, K, L)
        return p, round_cov(Pp, z.dtype) if predicted else None, f, round_cov(P, z.dtype), density, failed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, f, P, K, L = ctx.saved_tensors
        z, (n, m) = inputs[6], K.shape[-2:]
        to_p, to_Pp, to_f, to_P, to_density, _ = arriving
        of_means = _gradients(inputs, [k not in (1, 3, 4) and need for k, need in enumerate(ctx.needs_input_grad)])
        sums = [z.new_empty(_programs(z), z.shape[1], size) for size in (n * m, m * m, 1)]
        fields, grads = _fields(inputs), _fields(inputs, of_means)
        saved = [_steps(K), _steps(L), *map(_each, (f, to_p, to_f, to_density))]
        _launch(
            "mean_backward", _programs(z), [*_of_means(fields), *saved, *_of_means(grads), *map(_steps, sums), *z.shape[:2], 0],
            BLOCK=_BLOCK, **_sizes(inputs, z.dtype),
        )  # fmt: skip
        of_covs = _gradients(inputs, [*ctx.needs_input_grad[:5], False, False, False], torch.float64)
        sums = [x.sum(0, keepdim=True, dtype=torch.float64) for x in sums]
        covs = [*fields[:5], *map(_steps, (P, *sums, to_Pp, to_P)), *_fields(inputs, of_covs)[:5], z.shape[1]]
        _launch("covariance_backward", 1, covs, **_sizes(inputs, torch.float64))
        return (*map(_total, inputs, of_means, of_covs), None, None, None)


# What a kernel is told of a tensor: where it is, whether each sequence has its own rows (1 or None), and each step (1 or None).


def _field(x: Tensor | None, like: Tensor | None = None, steps: bool = True) -> _Field:
    """A tensor ``(1 | B, 1 | T, ...)``, or ``(1 | B, ...)`` without ``steps``; the gradient of ``like`` is as that."""
    shape = (x if like is None else like).shape  # type: ignore[union-attr]
    return x, 1 if shape[0] > 1 else None, 1 if steps and shape[1] > 1 else None


def _each(x: Tensor | None) -> _Field:
    """A row for each sequence and step."""
    return None if x is None else x.contiguous(), 1, 1


def _steps(x: Tensor | None) -> _Field:
    """A row for each step."""
    return None if x is None else x.contiguous(), None, 1


def _fields(inputs: Sequence[Tensor], values: Sequence[Tensor | None] | None = None) -> list[_Field]:
    """A, Q, C, R, P0, a, z, h0, or their gradients."""
    *model, z, h0 = inputs if values is None else values
    fields = [_field(x, like, steps=k != 4) for k, (x, like) in enumerate(zip(model, inputs, strict=False))]
    return [*fields, _each(z), (h0, 1, None)]


def _of_means(fields: Sequence[_Field]) -> list[_Field]:
    """A, C, a, z, h0."""
    return [fields[0], fields[2], *fields[5:]]


def _programs(z: Tensor) -> int:
    return -(-z.shape[0] // _BLOCK)


def _sizes(inputs: Sequence[Tensor], dtype: torch.dtype) -> dict[str, Any]:
    m, n = inputs[2].shape[-2:]
    return {"N": n, "M": m, "DTYPE": _kernels()["FLOATS"][str(dtype)]}


def _gradients(inputs: Sequence[Tensor], needed: Sequence[bool], dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """Room for the gradients that are needed: of what the sequences share a row for each program, or, in float64, for the only one."""
    z = inputs[6]
    sizes = [x.shape if k > 5 or x.shape[0] > 1 else (1 if dtype else _programs(z), *x.shape[1:]) for k, x in enumerate(inputs)]
    always = (k > 5 and dtype is None for k in range(8))
    return [z.new_empty(size, dtype=dtype) if need or must else None for size, need, must in zip(sizes, needed, always, strict=False)]


def _total(x: Tensor, *parts: Tensor | None) -> Tensor | None:
    """The gradient of x from its parts, summed over the programs in float64."""
    there = [g if g.shape == x.shape else g.sum(0, keepdim=True, dtype=torch.float64) for g in parts if g is not None]
    return sum(there).to(x.dtype) if there else None  # type: ignore[union-attr]


def _launch(name: str, programs: int, arguments: Sequence[Any], **constants: Any) -> None:
    where = next(x[0].device for x in arguments if isinstance(x, tuple) and x[0] is not None)
    with torch.cuda.device(where) if where.type == "cuda" else contextlib.nullcontext():
        _kernels()[name][(programs,)](*arguments, **constants, num_warps=1)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _kernels() -> dict[str, Any]:
    """The kernels, compiled when they are first called; imported late, since Triton may be missing and is slow to import."""
    modules = (importlib.import_module(f"ldm_filter.core.triton_{name}") for name in ("own", "shared", "step"))
    return {name: getattr(module, name) for module in modules for name in module.__all__}
