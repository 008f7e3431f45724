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

from ldm_filter.core.native import Numbers, addresses, empty, field, kernel

__all__ = ["Arguments", "Outputs", "adjoin", "filter_batch", "laid_out", "link", "run", "run_links"]


class Arguments(NamedTuple):
    """What the kernels take, on the CPU; b is 1 or B and t is 1 or T for each by itself. Whoever calls has checked it.

    Attributes:
        A, Q: ``(b, t, n, n)``; a: ``(b, t, n)``; C: ``(b, t, m, n)``; c: ``(b, t, m)``; h0: ``(b, n)``; P0: ``(b, n, n)``, all float64.
        z: ``(B, T, m)``, float32 or float64, anything where it is not observed; R: ``(b, t, m, m)`` of that dtype.
        mask: bool ``(b, T, m)``, or None where everything is observed.
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

    @property
    def shared(self) -> bool:
        """Whether all sequences have the same covariances."""
        matrices = (self.A, self.Q, self.C, self.R, self.P0, *(() if self.mask is None else (self.mask,)))
        return (self.z.shape[0] > 1 and all(x.shape[0] == 1 for x in matrices)) or (self.z.shape[0] == 1 and self._constant)

    @property
    def _constant(self) -> bool:
        return self.mask is None and all(x.shape[1] == 1 for x in (self.A, self.Q, self.C, self.R))


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
        plan: K' ``(T, m, n)``, L^-1 ``(T, m, m)`` and the density's constant ``(T,)`` where covariances are shared, else nothing.
        distinct: the number of steps that differ.
    """

    outputs: Outputs
    plan: tuple[Tensor, ...]
    distinct: int


def filter_batch(x: Arguments, predicted: bool) -> Outputs:
    """Filter a batch; differentiable in all tensors but the mask."""
    if not (torch.is_grad_enabled() and any(v.requires_grad for v in x[:9])):
        return run(laid_out(x), predicted).outputs
    place: list[tuple[int, int]] = []
    mean, cov, density, before, before_cov = _Filter.apply(*x[:9], x, predicted, place)
    return Outputs(mean, cov, density, before, before_cov, place[0])


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


def run(x: Arguments, predicted: bool) -> Run:
    """The filter alone, of arguments that are laid out, without a trace of it for gradients."""
    (batch, steps, m), n, dtype, shared = x.z.shape, x.A.shape[-1], x.z.dtype, x.shared
    leading, kind = (1, torch.float64) if shared else (batch, dtype)
    mean, cov, density = empty((batch, steps, n), dtype), empty((leading, steps, n, n), kind), empty((batch, steps), dtype)
    before = empty((batch, steps, n), dtype) if predicted else None
    before_cov = empty((leading, steps, n, n), kind) if predicted else None
    plan: tuple[Tensor, ...] = ()
    threads = torch.get_num_threads()
    if shared:
        plan = (empty((steps, m, n), torch.float64), empty((steps, m, m), torch.float64), empty((steps,), torch.float64))
        outputs = addresses(mean, None, density, before, None)
        step, distinct = kernel("shared_forward", x.z)(_problem(x), addresses(cov, before_cov, *plan, 0), outputs, threads)
        place = step, 0
    else:
        place, distinct = kernel("lanes_forward", x.z)(_problem(x), addresses(mean, cov, density, before, before_cov), threads), steps
    return Run(Outputs(mean, cov, density, before, before_cov, place), plan, distinct)


def adjoin(x: Arguments, done: Run, arriving: tuple[Tensor | None, ...], needed: tuple[bool, ...]) -> list[Tensor | None]:
    """The gradients of the nine tensors of ``x``, where they are needed, from those that arrive at the five outputs of ``done``."""
    grads, own_noise, wanted = _gradients(x, needed)
    mean, cov = done.outputs.mean, done.outputs.cov
    at_mean, at_cov, at_density, at_before, at_before_cov = (None if g is None else g.contiguous() for g in arriving)
    into = [n for name in ("A", "a", "Q", "C", "R", "h0", "P0") for n in field(grads.get(name), name in ("h0", "P0"))]
    into += addresses(grads["z"], own_noise)
    threads = torch.get_num_threads()
    if x.shared:
        covs = [None if g is None else _gathered(g[0], done.distinct) for g in (at_cov, at_before_cov)]
        plan, outputs = addresses(cov, None, *done.plan, done.distinct), addresses(mean, None, None, None, None)
        arriving_at = addresses(at_mean, None, at_density, at_before, None)
        kernel("shared_backward", x.z)(_problem(x), plan, outputs, arriving_at, addresses(*covs), into, threads)
    else:
        outputs, arriving_at = addresses(mean, cov, None, None, None), addresses(at_mean, at_cov, at_density, at_before, at_before_cov)
        kernel("lanes_backward", x.z)(_problem(x), outputs, arriving_at, into, threads)
    if own_noise is not None:
        grads["R"] = own_noise
    return _returned(x, grads, wanted)


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor | None, ...]:
        *_, x, predicted, place = given
        x = laid_out(x)
        done = run(x, predicted)
        place.append(done.outputs.place)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*x[:9], *done.outputs[:2], *done.plan)
        ctx.rest = (x.mask, x.from_belief, done.distinct)
        return done.outputs[:5]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        A, a, Q, C, c, h0, P0, z, R, mean, cov, *plan = ctx.saved_tensors
        mask, from_belief, distinct = ctx.rest
        x = Arguments(A, a, Q, C, c, h0, P0, z, R, mask, from_belief)
        done = Run(Outputs(mean, cov, mean, None, None, (-1, 0)), tuple(plan), distinct)  # the density is not needed
        return (*adjoin(x, done, arriving, ctx.needs_input_grad[:9]), None, None, None)


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
    G, u = G.detach().contiguous(), u.detach().contiguous()
    y = empty(tuple(u.shape), torch.float64)
    sizes = [u.shape[0], u.shape[1], G.shape[-1], int(back), int(u.dim() == 4)]
    kernel("links")([*sizes, *field(G), *addresses(u, y)], torch.get_num_threads())
    return y


def _gradients(x: Arguments, needed: tuple[bool, ...]) -> tuple[dict[str, Tensor], Tensor | None, dict[str, bool]]:
    """Zeroed memory for the gradients that are wanted, that of z, and that of an R which every step has to itself."""
    wanted = dict(zip(Arguments._fields, needed, strict=False))
    grads = {name: torch.zeros(getattr(x, name).shape, dtype=torch.float64) for name in ("A", "a", "Q", "C", "h0", "P0") if wanted[name]}
    own_noise = None
    if wanted["R"] and not x.shared and x.R.shape[:2] == x.z.shape[:2]:
        own_noise = empty(tuple(x.R.shape), x.R.dtype)
    elif wanted["R"]:
        grads["R"] = torch.zeros(x.R.shape, dtype=torch.float64)
    grads["z"] = empty(tuple(x.z.shape), x.z.dtype)
    return grads, own_noise, wanted


def _returned(x: Arguments, grads: dict[str, Tensor], wanted: dict[str, bool]) -> list[Tensor | None]:
    """In the order and dtypes of the inputs; z enters as z - c."""
    if wanted["c"]:
        dims = [k for k in (0, 1) if x.c.shape[k] == 1 and x.z.shape[k] > 1]
        grads["c"] = -(grads["z"].double().sum(dims, keepdim=True) if dims else grads["z"])
    if not wanted["z"]:
        del grads["z"]
    return [None if grads.get(name) is None else grads[name].to(getattr(x, name).dtype) for name in Arguments._fields[:9]]


def _gathered(arriving: Tensor, distinct: int) -> Tensor:
    """What arrives at the steps of a model at rest, ``(T, n, n)``, belongs to the last distinct one."""
    if distinct == arriving.shape[0]:
        return arriving
    gathered = arriving[:distinct].clone()
    gathered[-1] += arriving[distinct:].sum(0)
    return gathered


def laid_out(x: Arguments) -> Arguments:
    """Each matrix and vector contiguous, the measurements and their noise over time as well."""
    fields = list(x[:9])
    for k, (v, dims) in enumerate(zip(fields, (2, 1, 2, 2, 1, 1, 2, 1, 2), strict=True)):
        # What is expanded over batch or time may stay so, where the kernels take a stride of 0.
        if not v.is_contiguous() and (k >= 7 or v.stride()[-dims:] != ((v.shape[-1], 1) if dims == 2 else (1,))):
            fields[k] = v.contiguous()
    A, a, Q, C, c, h0, P0, z, R = fields
    return Arguments(A, a, Q, C, c, h0, P0, z, R, x.mask, x.from_belief)


def _problem(x: Arguments) -> Numbers:
    """A problem as native/problem.hpp has it: sizes, then each field by its address and strides."""
    batch, steps, m = x.z.shape
    fields = [n for k, v in enumerate(x[:9]) for n in field(v, k in (5, 6))]
    if x.mask is None:
        mask = [0, 0, 0, 0]
    else:
        mask = [x.mask.data_ptr(), 0 if x.mask.shape[0] == 1 else x.mask.stride(0), x.mask.stride(1), x.mask.stride(2)]
    return [batch, steps, x.A.shape[-1], m, int(x.from_belief), *fields, *mask]
