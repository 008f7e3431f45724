"""The compiled CPU kernels behind the Kalman filter, as differentiable functions of tensors.

Two kernels with their adjoints. Where covariances are shared by the batch their recursion runs once, and the means of all sequences
run through its gains; a model that is constant in time is at rest once no entry of P^- moves by more than 1e-14 of its scale
sqrt(P_ii P_jj) in two steps on end, if it came there from 1e-7 within 160 steps: the rest of the series repeats that step, which
moves no covariance by more than 1e-13 of its scale, and the means of one long series then run in chunks side by side. Otherwise every
sequence runs by itself, one in each SIMD lane. The arithmetic is in double precision whatever the dtype. First derivatives only.

The adjoint keeps what came in and the filtered moments that went out, and computes predictions, factors and gains anew: beyond
its results it needs O(T (n^2 + m^2)) for shared covariances and O(n^2 + m^2) for others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ldm_filter.core.native import kernel

__all__ = ["Arguments", "Outputs", "Run", "adjoin", "filter_batch", "filter_step", "filter_usual", "laid_out", "link", "run", "run_links"]


class Arguments(NamedTuple):
    """What the kernels take, on the CPU; b is 1 or B and t is 1 or T for each by itself, and all leading dimensions may be missing.

    Attributes:
        A, Q: ``(b, t, n, n)``; a: ``(b, t, n)``; C: ``(b, t, m, n)``; c: ``(b, t, m)``, b 1 where covariances are shared; h0: ``(b, n)``;
            P0: ``(b, n, n)``; all float64 or as z.
        z: ``(B, T, m)``, float32 or float64, anything where it is not observed; R: ``(b, t, m, m)`` of that dtype.
        mask: bool ``(b, T, m)`` or ``(b, T)``, or None where everything is observed.
        from_belief: whether (h0, P0) is the belief before the first step, and not its prediction.
    """

    A: Tensor
    a: Tensor
    Q: Tensor
    C: Tensor
    c: Tensor
    h0: Tensor
    P0: Tensor
    z: Tensor
    R: Tensor
    mask: Tensor | None
    from_belief: bool = False


class Outputs(NamedTuple):
    """What the kernels yield; predictions only where they were asked for. ``place``: (step, series) of a failed factor, or (-1, ...)."""

    mean: Tensor  # (B, T, n), in the dtype of z
    cov: Tensor  # (1, T, n, n) in float64 where it is shared, else (B, T, n, n) in the dtype of z
    log_likelihood: Tensor  # (B, T)
    predicted_mean: Tensor | None
    predicted_cov: Tensor | None
    place: tuple[int, int]


class Run(NamedTuple):
    """A run of the kernels, with what the adjoint needs of it.

    Attributes:
        outputs: what came of it.
        plan: K' ``(T, m, n)``, L^-1 ``(T, m, m)`` and the density's constant ``(T,)`` where covariances are shared and it is kept, else nothing.
        distinct: the number of steps that differ.
        open: whether a mask that shows everything counted as none.
    """

    outputs: Outputs
    plan: tuple[Tensor, ...]
    distinct: int
    open: bool = False


def filter_batch(x: Arguments, predicted: bool) -> Outputs:
    """Filter a batch whose arguments were checked; differentiable in all tensors but the mask.

    Raises:
        TypeError: naming one of another dtype than the kernels take.
        RuntimeError: one of them has no memory of its own on the CPU.
    """
    found = _filter(laid_out(x), predicted, check=False)
    if found is None:
        _refuse_dtypes(x)
        raise RuntimeError(
            "the compiled filter was called with a tensor that is not a plain torch.Tensor on the CPU (as within torch.func or a subclass); "
            'choose the loops in torch, which take any: ldm_filter.backend("torch")'
        )
    return found


def _refuse_dtypes(x: Arguments) -> None:
    for name, value in zip(x._fields[:9], x[:9], strict=True):
        taken = {x.z.dtype} | ({torch.float64} if name != "R" else set())
        if value.dtype not in taken:
            raise TypeError(f"{name} has dtype {value.dtype}; expected {x.z.dtype} as the measurements z: convert with .to({x.z.dtype})")


def filter_usual(x: Arguments) -> Outputs | None:
    """The same without predictions, checked as it goes; None where something is not as it nearly always is: look at each argument by itself."""
    return _filter(x, False, check=True)


def _filter(x: Arguments, predicted: bool, check: bool) -> Outputs | None:
    if not (torch.is_grad_enabled() and any(v.requires_grad for v in x[:9])):
        done = run(x, predicted, keep=False, check=check)
        return None if done is None else done.outputs
    place: list[tuple[int, int]] = []
    try:
        mean, cov, density, before, before_cov = _Filter.apply(*x[:9], x, predicted, check, place)
    except _Unusual:
        return None
    return Outputs(mean, cov, density, before, before_cov, place[0])


def filter_step(A: Tensor, a: Tensor, Q: Tensor, C: Tensor, R: Tensor, z: Tensor, mean: Tensor, cov: Tensor, seen: Tensor | None) -> Outputs | None:
    """One step of every sequence from a belief; differentiable in all but ``seen``.

    Args:
        A, a, Q, C, R, mean, cov: as A, a, Q, C, R, h0, P0 of :class:`Arguments`, without a time. z: ``(B, m)``, 0 where missing.
        seen: number of observed channels, float64 or int64, ``()`` or ``(1 | B,)``; None: all.

    Returns:
        The outputs without a time, or None where something is not as it nearly always is: :func:`filter_batch` looks at each argument by itself.
    """
    x = (A, a, Q, C, None, mean, cov, z, R, None, True)
    wanted = A.requires_grad or a.requires_grad or Q.requires_grad or C.requires_grad or R.requires_grad
    wanted = wanted or z.requires_grad or mean.requires_grad or cov.requires_grad
    series: list[int] = []
    try:
        outputs = _Step.apply(*x[:9], seen, series) if wanted and torch.is_grad_enabled() else _step(x, seen, series)
    except _Unusual:
        return None
    after, after_cov, density, before, before_cov = outputs
    return Outputs(after, after_cov, density, before, before_cov, (min(series[0], 0), series[0]))


def _step(x: tuple[Any, ...], seen: Tensor | None, series: list[int]) -> tuple[Tensor, ...]:
    """The five outputs; the failed series, or -1, goes into a list."""
    found = kernel("step")(x, seen, torch.get_num_threads())
    if found is None:
        raise _Unusual
    *outputs, failed = found
    series.append(failed)
    return tuple(outputs)


def link(G: Tensor, u: Tensor, back: bool = True) -> Tensor:
    """A recursion through the matrices G_t that link step t to t + 1; differentiable.

        back:     y_t = u_t + G_t y_{t+1},         for square u  Y_t = U_t + G_t Y_{t+1} G_t'
        forward:  y_{t+1} = u_{t+1} + G_t' y_t,                  Y_{t+1} = U_{t+1} + G_t' Y_t G_t

    Args:
        G: ``(1 | B, T - 1, n, n)``. u: ``(B, T, n)``, or symmetric ``(B, T, n, n)``. Both float64 on the CPU.

    Returns:
        y, shaped as u.
    """
    y: Tensor = _Link.apply(G, u, back)
    return y


def run(x: Arguments, predicted: bool, keep: bool = True, check: bool = False) -> Run | None:
    """The filter alone, without a trace of it for gradients.

    Args:
        x: its arguments; the measurements and their noise contiguous.
        predicted: whether predictions are wanted. keep: whether the plan is, for the adjoint.
        check: look at the numbers of the model before, and at the log-likelihood after; a mask that shows everything then counts as none.

    Returns:
        None where the kernels cannot take it, or where a check fails.
    """
    found = kernel("filter")(x, predicted, keep, check, torch.get_num_threads())
    if found is None:
        return None
    *outputs, plan, distinct, step, series = found
    mean, cov, density, before, before_cov = outputs
    return Run(Outputs(mean, cov, density, before, before_cov, (step, series)), plan or (), distinct, check)


def adjoin(x: Arguments, done: Run, arriving: tuple[Tensor | None, ...], needed: tuple[bool, ...]) -> list[Tensor | None]:
    """The gradients of the nine tensors of ``x``, where they are needed, from those that arrive at the five outputs of ``done``."""
    at = list(arriving)
    if done.plan:
        at[1], at[4] = (None if g is None else _gathered(g[0], done.distinct) for g in (at[1], at[4]))
    outputs, plan, threads = done.outputs, done.plan or None, torch.get_num_threads()
    grads: list[Tensor | None] = kernel("adjoin")(x, outputs.mean, outputs.cov, plan, done.distinct, done.open, tuple(at), tuple(needed), threads)
    return grads


class _Unusual(Exception):
    """The arguments are not what they nearly always are."""


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor | None, ...]:
        *_, x, predicted, check, place = given
        done = run(x, predicted, check=check)
        if done is None:
            raise _Unusual
        place.append(done.outputs.place)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*x[:9], *done.outputs[:2], *done.plan)
        ctx.rest = (x.mask, x.from_belief, done.distinct, done.open)
        return done.outputs[:5]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        A, a, Q, C, c, h0, P0, z, R, mean, cov, *plan = ctx.saved_tensors
        mask, from_belief, *rest = ctx.rest
        x = Arguments(A, a, Q, C, c, h0, P0, z, R, mask, from_belief)
        done = Run(Outputs(mean, cov, mean, None, None, (-1, 0)), tuple(plan), *rest)  # the density is not needed
        return (*adjoin(x, done, arriving, ctx.needs_input_grad[:9]), None, None, None, None)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        *fields, seen, series = given
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*fields)
        return _step((*fields, None, True), seen, series)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        x = (*ctx.saved_tensors, None, True)
        grads = kernel("adjoin")(x, None, None, None, 1, False, arriving, ctx.needs_input_grad, torch.get_num_threads())
        return (*grads, None, None)


class _Link(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, G: Tensor, u: Tensor, back: bool) -> Tensor:
        y = run_links(G, u, back)
        ctx.save_for_backward(G, y)
        ctx.back = back
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, at_y: Tensor) -> tuple[Tensor | None, ...]:
        """The adjoint of a recursion is the other one; G_t gets g_t y_{t+1}', or 2 g_t G_t Y_{t+1}, of the two ends that it links."""
        G, y = ctx.saved_tensors
        square = y.dim() == 4
        at_y = 0.5 * (at_y + at_y.mT) if square else at_y
        at_u = run_links(G, at_y, not ctx.back)
        left, right = (at_u, y) if ctx.back else (y, at_u)
        left, right = left[:, :-1], right[:, 1:]
        at_G = 2.0 * left @ G @ right if square else left.unsqueeze(-1) * right.unsqueeze(-2)
        return at_G.sum_to_size(G.shape), at_u, None


def run_links(G: Tensor, u: Tensor, back: bool) -> Tensor:
    """:func:`link` without a trace of it for gradients."""
    y: Tensor = kernel("links")(G.detach().contiguous(), u.detach().contiguous(), back, torch.get_num_threads())
    return y


def _gathered(arriving: Tensor, distinct: int) -> Tensor:
    """What arrives at the steps of a model at rest, ``(T, n, n)``, belongs to the last distinct one."""
    if distinct == arriving.shape[0]:
        return arriving
    gathered = arriving[:distinct].clone()
    gathered[-1] += arriving[distinct:].sum(0)
    return gathered


def laid_out(x: Arguments) -> Arguments:
    """The measurements and their noise contiguous, as the kernels need them; the model may be as it is."""
    return x if x.z.is_contiguous() and x.R.is_contiguous() else x._replace(z=x.z.contiguous(), R=x.R.contiguous())
