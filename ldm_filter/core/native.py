"""The compiled CPU kernels behind the Kalman filter. Where the extension is missing the readable loops do the same work.

Two kernels with their adjoints. Where covariances are shared by the batch their recursion runs once, and the means of all sequences
run through its gains; a model that is constant in time is at rest once no entry of P^- moves by more than 1e-14 of its scale
sqrt(P_ii P_jj) in two steps on end, if it came there from 1e-7 within 160 steps: the rest of the series repeats that step, which
moves no covariance by more than 1e-13 of its scale. Otherwise every sequence runs by itself, one in each SIMD lane. The arithmetic is
in double precision whatever the dtype. First derivatives only.

The adjoint keeps what came in and the filtered moments that went out, and computes predictions, factors and gains anew: beyond
its results it needs O(T (n^2 + m^2)) for shared covariances and O(n^2 + m^2) for others.
"""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Arguments", "Outputs", "all_finite", "available", "filter_batch", "link", "release_memory"]

_EXTENSION = "ldm_filter.core._native"
_LARGE = 1 << 20  # bytes
_Numbers = list[int]


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


def available() -> bool:
    """Whether the compiled kernels can be used. The first time that they cannot, one RuntimeWarning says so and how to mend it."""
    return _load() is not None


def filter_batch(x: Arguments, predicted: bool) -> Outputs:
    """Filter a batch; differentiable in all tensors but the mask."""
    if not available():
        raise RuntimeError(f"{_EXTENSION} is not installed: install a C++ compiler and reinstall ldm-filter")
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


def all_finite(*tensors: Tensor) -> bool:
    """Whether no number in these contiguous tensors of one dtype is NaN or infinite."""
    dtype = str(tensors[0].dtype).removeprefix("torch.")
    return bool(getattr(_kernels(), f"all_finite_{dtype}")([n for x in tensors for n in (x.data_ptr(), x.numel())]))


def release_memory() -> int:
    """Hand the memory that is kept for the next large results, up to a gigabyte, back to the system; the number of bytes."""
    return int(_kernels().release_memory()) if available() else 0


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor | None, ...]:
        *_, x, predicted, place = given
        x = _laid_out(x)
        batch, steps, m = x.z.shape
        n, like = x.A.shape[-1], x.z
        mean, density = _empty((batch, steps, n), like.dtype), _empty((batch, steps), like.dtype)
        before = _empty((batch, steps, n), like.dtype) if predicted else None
        cov, plan, run = None, [], f"lanes_forward_{_name(like)}"
        if x.shared:
            cov, before_cov = (_empty((1, steps, n, n), torch.float64) if want else None for want in (True, predicted))
            plan = [_empty((steps, *size), torch.float64) for size in ((m, n), (m, m), ())]
            found, distinct = getattr(_kernels(), f"shared_forward_{_name(like)}")(
                _problem(x), _addresses(cov, before_cov, *plan, 0), _addresses(mean, None, density, before, None), torch.get_num_threads()
            )
            place.append((found, 0))
        else:
            cov, before_cov = (_empty((batch, steps, n, n), like.dtype) if want else None for want in (True, predicted))
            outputs = _addresses(mean, cov, density, before, before_cov)
            place.append(getattr(_kernels(), run)(_problem(x), outputs, torch.get_num_threads()))
            distinct = steps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*x[:9], mean, cov, *plan)
        ctx.rest = (x.mask, x.from_belief, x.shared, distinct)
        return mean, cov, density, before, before_cov

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        *fields, mean, cov = ctx.saved_tensors[:11]
        mask, from_belief, shared, distinct = ctx.rest
        A, a, Q, C, c, h0, P0, z, R = fields
        x = Arguments(A, a, Q, C, c, h0, P0, z, R, mask, from_belief)
        grads, own_noise, wanted = _gradients(x, shared, ctx.needs_input_grad)
        at_mean, at_cov, at_density, at_before, at_before_cov = (None if g is None else g.contiguous() for g in arriving)
        fields_of = [n for name in ("A", "a", "Q", "C", "R", "h0", "P0") for n in _field(grads.get(name), name in ("h0", "P0"))]
        addresses = [*fields_of, *_addresses(grads["z"], own_noise)]
        kernel = getattr(_kernels(), f"{'shared' if shared else 'lanes'}_backward_{_name(x.z)}")
        if shared:
            covs = [None if g is None else _gathered(g[0], distinct) for g in (at_cov, at_before_cov)]
            plan = _addresses(cov, None, *ctx.saved_tensors[11:], distinct)
            arriving_addresses = _addresses(at_mean, None, at_density, at_before, None)
            kernel(
                _problem(x), plan, _addresses(mean, None, None, None, None), arriving_addresses, _addresses(*covs), addresses, torch.get_num_threads()
            )
        else:
            outputs, at = _addresses(mean, cov, None, None, None), _addresses(at_mean, at_cov, at_density, at_before, at_before_cov)
            kernel(_problem(x), outputs, at, addresses, torch.get_num_threads())
        if own_noise is not None:
            grads["R"] = own_noise
        return (*_returned(x, grads, wanted), None, None, None)


class _Link(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, G: Tensor, u: Tensor, back: bool) -> Tensor:
        y = _run_links(G, u, back)
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
        at_u = _run_links(G, at_y, not ctx.back)
        left, right = (at_u, y) if ctx.back else (y, at_u)
        left, right = left[:, :-1], right[:, 1:]
        at_G = 2.0 * left @ G @ right if square else left.unsqueeze(-1) * right.unsqueeze(-2)
        return at_G.sum_to_size(G.shape), at_u, None


def _run_links(G: Tensor, u: Tensor, back: bool) -> Tensor:
    G, u = G.detach().contiguous(), u.detach().contiguous()
    y = _empty(tuple(u.shape), torch.float64)
    sizes = [u.shape[0], u.shape[1], G.shape[-1], int(back), int(u.dim() == 4)]
    _kernels().links([*sizes, *_field(G), *_addresses(u, y)], torch.get_num_threads())
    return y


def _gradients(x: Arguments, shared: bool, needed: tuple[bool, ...]) -> tuple[dict[str, Tensor], Tensor | None, dict[str, bool]]:
    """Zeroed memory for the gradients that are wanted, that of z, and that of an R which every step has to itself."""
    wanted = dict(zip(Arguments._fields, needed[:9], strict=False))
    grads = {name: torch.zeros(getattr(x, name).shape, dtype=torch.float64) for name in ("A", "a", "Q", "C", "h0", "P0") if wanted[name]}
    own_noise = None
    if wanted["R"] and not shared and x.R.shape[:2] == x.z.shape[:2]:
        own_noise = _empty(tuple(x.R.shape), x.R.dtype)
    elif wanted["R"]:
        grads["R"] = torch.zeros(x.R.shape, dtype=torch.float64)
    grads["z"] = _empty(tuple(x.z.shape), x.z.dtype)
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


def _laid_out(x: Arguments) -> Arguments:
    """Detached, each matrix and vector contiguous, the measurements and their noise over time as well."""
    fields = [v.detach() for v in x[:9]]
    event = (2, 1, 2, 2, 1, 1, 2, 1, 2)
    for k, (v, dims) in enumerate(zip(fields, event, strict=True)):
        # What is expanded over batch or time may stay so, where the kernels take a stride of 0.
        if k >= 7 or v.stride()[v.dim() - dims :] != _dense(v.shape[v.dim() - dims :]):
            fields[k] = v.contiguous()
    A, a, Q, C, c, h0, P0, z, R = fields
    return Arguments(A, a, Q, C, c, h0, P0, z, R, x.mask, x.from_belief)


def _dense(shape: torch.Size) -> tuple[int, ...]:
    return (shape[1], 1) if len(shape) == 2 else (1,)


def _problem(x: Arguments) -> _Numbers:
    """A problem as native/problem.hpp has it: sizes, then each field by its address and strides."""
    batch, steps, m = x.z.shape
    fields = [n for k, field in enumerate(x[:9]) for n in _field(field, k in (5, 6))]
    if x.mask is None:
        mask = [0, 0, 0, 0]
    else:
        mask = [x.mask.data_ptr(), 0 if x.mask.shape[0] == 1 else x.mask.stride(0), x.mask.stride(1), x.mask.stride(2)]
    return [batch, steps, x.A.shape[-1], m, int(x.from_belief), *fields, *mask]


def _field(x: Tensor | None, initial: bool = False) -> tuple[int, int, int]:
    """Address and strides over batch and time, 0 where it does not vary; what is initial has no time."""
    if x is None:
        return 0, 0, 0
    if initial:
        x = x.unsqueeze(1)
    return x.data_ptr(), 0 if x.shape[0] == 1 else x.stride(0), 0 if x.shape[1] == 1 else x.stride(1)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory; large results get memory that is used again, as fresh pages would cost more than what fills them."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(_kernels().buffer(size)).view(dtype).view(shape)


def _addresses(*arrays: Tensor | int | None) -> _Numbers:
    return [x.data_ptr() if isinstance(x, Tensor) else x or 0 for x in arrays]


def _name(x: Tensor) -> str:
    return "float32" if x.dtype == torch.float32 else "float64"


def _kernels() -> ModuleType:
    module = _load()
    assert module is not None  # every caller has looked
    return module


@functools.cache
def _load() -> ModuleType | None:
    try:
        module = importlib.import_module(_EXTENSION)
        if not hasattr(module, "shared_forward_float64"):
            raise ImportError(f"{_EXTENSION} was built from older sources")
        return module
    except ImportError as error:
        warnings.warn(
            f"ldm_filter runs without its compiled kernels ({error}): results are the same, but slower. "
            "Install a C++ compiler and reinstall ldm-filter to have them.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
