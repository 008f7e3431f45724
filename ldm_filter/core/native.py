"""The compiled CPU kernels behind the Kalman filter. Where the extension is missing the readable loop does the same work.

So far: the recursion of the means where the gains are shared by the batch, with its adjoint.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["available", "mean_recursion"]

_EXTENSION = "ldm_filter.core._native"


def available() -> bool:
    """Whether the compiled kernels can be used. The first time that they cannot, one RuntimeWarning says so and how to mend it."""
    return _load() is not None


def mean_recursion(A: Tensor, C: Tensor, K: Tensor, z: Tensor, a: Tensor, h0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kalman means under given gains: ``p_t = A_t f_{t-1} + a_t``, ``e_t = z_t - C_t p_t``, ``f_t = p_t + K_t e_t``, from ``p_0 = h0``.

    The state is carried in double precision and rounded where it is written, so that float32 does not drift with T. Each
    sequence is computed by itself: its result does not depend on the batch it is in. First derivatives only.

    Args:
        A: transition matrices ``(1 | T, n, n)``; index 0 is unused.
        C: observation matrices ``(1 | T, m, n)``.
        K: gains ``(T, n, m)``, shared by the batch.
        z: measurements less the observation offset ``(B, T, m)``.
        a: transition offsets ``(1 | B, 1 | T, n)``; index 0 in time is unused where T > 1.
        h0: predicted mean of the first step ``(B, n)``.

        All on the CPU. z, a and h0 of one dtype, float32 or float64; A, C and K of that dtype or float64.

    Returns:
        Predicted means p and filtered means f, ``(B, T, n)`` each, and innovations e, ``(B, T, m)``, in the dtype of z.

    Raises:
        TypeError: for anything but tensors of these dtypes.
        ValueError: for shapes that do not fit together, or tensors of another device.
        RuntimeError: where the extension is not installed; ask :func:`available` first.

    >>> one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    >>> if available():
    ...     predicted, filtered, innovation = mean_recursion(one, one, torch.full((3, 1, 1), 0.5), torch.ones(1, 3, 1), zero, zero[0])
    ...     print(filtered.flatten().tolist())
    [0.5, 0.75, 0.875]
    """
    _check_kinds({"A": A, "C": C, "K": K, "z": z, "a": a, "h0": h0})
    _check_shapes(A, C, K, z, a, h0)
    if not available():
        raise RuntimeError(f"{_EXTENSION} is not installed: install a C++ compiler and reinstall ldm-filter")
    return _MeanRecursion.apply(A, C, K, z, a, h0)


class _MeanRecursion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor, C: Tensor, K: Tensor, z: Tensor, a: Tensor, h0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        predicted = z.new_empty(*z.shape[:2], h0.shape[1])
        outputs = predicted, torch.empty_like(predicted), z.new_empty(z.shape)
        inputs = [_view(x.double()) for x in (A, C, K)] + [_view(x) for x in (z, a, h0)]
        _kernels().mean_forward(*inputs, *map(_view, outputs))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(A, C, K, *outputs)
        ctx.offset_shape = a.shape
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor, ...]:
        A, C, K, *outputs = ctx.saved_tensors
        predicted, _, innovation = outputs
        # What the batch shares is summed over it, and that in double.
        grad_A, grad_C, grad_K, grad_a = (torch.zeros(shape, dtype=torch.float64) for shape in (A.shape, C.shape, K.shape, ctx.offset_shape))
        grad_z, grad_h0 = torch.empty_like(innovation), predicted.new_empty(predicted.shape[0], predicted.shape[2])
        inputs = [_view(x.double()) for x in (A, C, K)] + [_view(x) for x in outputs] + [None if g is None else _view(g) for g in arriving]
        _kernels().mean_backward(*inputs, *map(_view, (grad_A, grad_C, grad_K, grad_z, grad_a, grad_h0)))
        return grad_A.to(A.dtype), grad_C.to(C.dtype), grad_K.to(K.dtype), grad_z, grad_a.to(grad_z.dtype), grad_h0


def _view(x: Tensor) -> Any:
    """A NumPy view for the kernel, of contiguous memory: handing over the tensor itself costs ten times as much."""
    return x.detach().contiguous().numpy()


def _check_kinds(arguments: dict[str, Tensor]) -> None:
    for name, x in arguments.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; expected a torch.Tensor: convert with torch.as_tensor")
        if x.device.type != "cpu" or x.layout != torch.strided:
            raise ValueError(f"{name} is {x.layout} on {x.device}; expected a dense tensor on the CPU: move it with .cpu()")
    dtype = arguments["z"].dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"z has dtype {dtype}; expected torch.float32 or torch.float64: convert with .to(torch.float32)")
    for name, x in arguments.items():
        if x.dtype != dtype and (name not in ("A", "C", "K") or x.dtype != torch.float64):
            raise TypeError(f"{name} has dtype {x.dtype}; expected {dtype} as z: convert with .to({dtype})")


def _check_shapes(A: Tensor, C: Tensor, K: Tensor, z: Tensor, a: Tensor, h0: Tensor) -> None:
    """The kernel trusts what it is given: everything that it reads or writes is checked here."""
    if z.dim() != 3 or 0 in z.shape[1:] or h0.dim() != 2 or h0.shape[1] == 0:
        raise ValueError(f"z has shape {tuple(z.shape)} and h0 {tuple(h0.shape)}; expected (batch, time, m) and (batch, n), sizes not 0")
    batch, steps, m = z.shape
    n = h0.shape[1]
    wanted: dict[str, tuple[Tensor, Sequence[tuple[int, ...]]]] = {
        "A": (A, [(1, steps), (n,), (n,)]),
        "C": (C, [(1, steps), (m,), (n,)]),
        "K": (K, [(steps,), (n,), (m,)]),
        "a": (a, [(1, batch), (1, steps), (n,)]),
        "h0": (h0, [(batch,), (n,)]),
    }
    for name, (x, sizes) in wanted.items():
        if x.dim() != len(sizes) or any(have not in allowed for have, allowed in zip(x.shape, sizes, strict=True)):
            text = ", ".join(" or ".join(map(str, allowed)) for allowed in sizes)
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected ({text}) beside z {tuple(z.shape)}: check the sizes or add a dimension")


def _kernels() -> ModuleType:
    module = _load()
    assert module is not None  # mean_recursion has looked
    return module


@functools.cache
def _load() -> ModuleType | None:
    try:
        return importlib.import_module(_EXTENSION)
    except ImportError as error:
        warnings.warn(
            f"ldm_filter runs without its compiled kernels ({error}): results are the same, but slower. "
            "Install a C++ compiler and reinstall ldm-filter to have them.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
