"""The compiled CPU kernels behind the Kalman filter. Where the extension is missing the readable loops do the same work.

Three recursions with their adjoints, each sequence by itself in double precision: the covariances, the means under given
gains, and the log-density of the innovations. First derivatives only.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["available", "covariance_recursion", "log_density", "mean_recursion"]

_EXTENSION = "ldm_filter.core._native"
_MATRICES = ("A", "Q", "C", "R", "P0", "K", "factor")  # may be float64 beside float32 data


def available() -> bool:
    """Whether the compiled kernels can be used. The first time that they cannot, one RuntimeWarning says so and how to mend it."""
    return _load() is not None


def covariance_recursion(
    A: Tensor, Q: Tensor, C: Tensor, R: Tensor, P0: Tensor, steps: int, predicted: bool = True
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """Kalman covariances, ``P^-_t = A_t P_{t-1} A_t' + Q_t`` from P0, ``L L' = C P^- C' + R``, ``K = P^- C' (L L')^-1`` and Joseph's P_t.

    Only the symmetric part of Q, R and P0 counts. A model that is constant in time and shared by the batch is at rest once no
    entry of P^- moves by more than 1e-14 of its scale sqrt(P_ii P_jj) in two steps on end, if it came there from 1e-7 within
    160 steps; the rest of the series repeats that step, which moves no covariance by more than 1e-13 of its scale.

    Args:
        A: transition matrices ``(1 | B, 1 | T, n, n)``; index 0 in time is unused where T > 1.
        Q: transition covariances, the same shape.
        C: observation matrices ``(1 | B, 1 | T, m, n)``; a row of zeros where a channel is missing.
        R: measurement covariances ``(1 | B, 1 | T, m, m)``; those of the identity where a channel is missing.
        P0: predicted covariance of the first step ``(1 | B, n, n)``.
        steps: T.
        predicted: whether P^- is wanted. Where it is not, it takes no memory, and the adjoint computes it anew.

        All float64 on the CPU; b = B is the largest of the batch sizes.

    Returns:
        P^- ``(b, T, n, n)`` or None, P ``(b, T, n, n)``, K ``(b, T, n, m)``, L ``(b, T, m, m)``, and ``(b, T)`` with 1 where
        there is no L: nothing from there on is of use.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`mean_recursion`.

    >>> one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    >>> if available():
    ...     print(covariance_recursion(one, one / 2, one, one, one[0], steps=3)[1].flatten().tolist())
    [0.5, 0.5, 0.5]
    """
    fields = {"A": A, "Q": Q, "C": C, "R": R, "P0": P0}
    _check_kinds(fields, torch.float64)
    if C.dim() != 4 or 0 in C.shape or steps < 1:
        raise ValueError(f"C has shape {tuple(C.shape)} and steps is {steps}; expected (1 | batch, 1 | time, m, n) and at least 1")
    b, (m, n) = max(x.shape[0] for x in fields.values() if x.dim()), C.shape[2:]
    lead = [(1, b), (1, steps)]
    sizes = {"A": [*lead, (n,), (n,)], "Q": [*lead, (n,), (n,)], "C": [*lead, (m,), (n,)], "R": [*lead, (m,), (m,)], "P0": [(1, b), (n,), (n,)]}
    _check_shapes(fields, sizes, f"C {tuple(C.shape)} and {steps} steps")
    _check_available()
    out: tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor] = _CovarianceRecursion.apply(A, Q, C, R, P0.unsqueeze(1), b, steps, predicted)
    return out


def log_density(factor: Tensor, innovation: Tensor) -> Tensor:
    """``log N(e; 0, L L')`` less its constant ``-m log(2 pi) / 2``: ``-|L^-1 e|^2 / 2 - sum log L_ii``.

    Args:
        factor: L ``(1 | B, T, m, m)``, lower triangular with a positive diagonal.
        innovation: e ``(B, T, m)``.

        Both float64 on the CPU.

    Returns:
        ``(B, T)``.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`mean_recursion`.

    >>> if available():
    ...     print(log_density(torch.ones(1, 1, 1, 1).double(), torch.full((1, 1, 1), 2.0).double()).item())
    -2.0
    """
    fields = {"factor": factor, "innovation": innovation}
    _check_kinds(fields, torch.float64)
    if innovation.dim() != 3 or 0 in innovation.shape[1:]:
        raise ValueError(f"innovation has shape {tuple(innovation.shape)}; expected (batch, time, m), sizes not 0")
    batch, steps, m = innovation.shape
    _check_shapes({"factor": factor}, {"factor": [(1, batch), (steps,), (m,), (m,)]}, f"innovation {tuple(innovation.shape)}")
    _check_available()
    density: Tensor = _LogDensity.apply(factor, innovation)
    return density


def mean_recursion(A: Tensor, C: Tensor, K: Tensor, z: Tensor, a: Tensor, h0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kalman means under given gains: ``p_t = A_t f_{t-1} + a_t``, ``e_t = z_t - C_t p_t``, ``f_t = p_t + K_t e_t``, from ``p_0 = h0``.

    The state is carried in double precision and rounded where it is written, so that float32 does not drift with T. Each
    sequence is computed by itself: its result does not depend on the batch it is in.

    Args:
        A: transition matrices ``(1 | B, 1 | T, n, n)``; index 0 in time is unused where T > 1.
        C: observation matrices ``(1 | B, 1 | T, m, n)``.
        K: gains ``(1 | B, T, n, m)``.
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

    >>> one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1)
    >>> if available():
    ...     predicted, filtered, innovation = mean_recursion(one, one, torch.full((1, 3, 1, 1), 0.5), torch.ones(1, 3, 1), zero, zero[0])
    ...     print(filtered.flatten().tolist())
    [0.5, 0.75, 0.875]
    """
    fields = {"A": A, "C": C, "K": K, "z": z, "a": a, "h0": h0}
    _check_kinds(fields, z.dtype if isinstance(z, Tensor) else torch.float64)
    if z.dim() != 3 or 0 in z.shape[1:] or h0.dim() != 2 or h0.shape[1] == 0:
        raise ValueError(f"z has shape {tuple(z.shape)} and h0 {tuple(h0.shape)}; expected (batch, time, m) and (batch, n), sizes not 0")
    batch, steps, m = z.shape
    n = h0.shape[1]
    lead: list[tuple[int, ...]] = [(1, batch), (1, steps)]
    sizes: dict[str, Sequence[tuple[int, ...]]] = {
        "A": [*lead, (n,), (n,)],
        "C": [*lead, (m,), (n,)],
        "K": [(1, batch), (steps,), (n,), (m,)],
        "a": [*lead, (n,)],
        "h0": [(batch,), (n,)],
    }
    _check_shapes(fields, sizes, f"z {tuple(z.shape)}")
    _check_available()
    out: tuple[Tensor, Tensor, Tensor] = _MeanRecursion.apply(A, C, K, z, a, h0)
    return out


class _CovarianceRecursion(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, A: Tensor, Q: Tensor, C: Tensor, R: Tensor, P0: Tensor, batch: int, steps: int, predicted: bool
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
        m, n = C.shape[2:]
        filtered, gain, factor = (A.new_empty(batch, steps, *size) for size in ((n, n), (n, m), (m, m)))
        before = torch.empty_like(filtered) if predicted else None
        failed = torch.zeros(batch, steps, dtype=torch.uint8)
        _kernels().covariance_forward(*map(_view, (A, Q, C, R, P0, before, filtered, gain, factor, failed)))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(failed)
        ctx.save_for_backward(A, Q, C, R, P0, before, filtered, gain, factor)
        return before, filtered, gain, factor, failed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads = [torch.zeros(x.shape, dtype=torch.float64) if need else None for x, need in zip(saved, ctx.needs_input_grad[:5], strict=False)]
        _kernels().covariance_backward(*map(_view, (*saved, *arriving[:4], *grads)))
        return (*grads, None, None, None)


class _LogDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factor: Tensor, innovation: Tensor) -> Tensor:
        density = innovation.new_empty(innovation.shape[:2])
        _kernels().density_forward(*map(_view, (factor, innovation, density)))
        ctx.save_for_backward(factor, innovation)
        return density

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, at_density: Tensor) -> tuple[Tensor, Tensor]:
        factor, innovation = ctx.saved_tensors
        grads = torch.zeros(factor.shape, dtype=torch.float64), torch.empty(innovation.shape, dtype=torch.float64)
        _kernels().density_backward(*map(_view, (factor, innovation, at_density, *grads)))
        return grads


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
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        A, C, K, *outputs = ctx.saved_tensors
        predicted, _, innovation = outputs
        # What the batch shares is summed over it, and that in double.
        wanted = zip((A, C, K), ctx.needs_input_grad, strict=False)
        sums = [torch.zeros(x.shape, dtype=torch.float64) if need else None for x, need in wanted]
        grad_a = torch.zeros(ctx.offset_shape, dtype=torch.float64)
        grad_z, grad_h0 = torch.empty_like(innovation), predicted.new_empty(predicted.shape[0], predicted.shape[2])
        inputs = [_view(x.double()) for x in (A, C, K)]
        _kernels().mean_backward(*inputs, *map(_view, (*outputs, *arriving, *sums, grad_z, grad_a, grad_h0)))
        grads = (None if g is None else g.to(x.dtype) for g, x in zip(sums, (A, C, K), strict=True))
        return (*grads, grad_z, grad_a.to(grad_z.dtype), grad_h0)


def _view(x: Tensor | None) -> Any:
    """A NumPy view for the kernel, of contiguous memory: handing over the tensor itself costs ten times as much."""
    return None if x is None else x.detach().contiguous().numpy()


def _check_kinds(arguments: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Dense tensors on the CPU, of that dtype, float32 or float64; matrices may be float64 beside it."""
    for name, x in arguments.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; expected a torch.Tensor: convert with torch.as_tensor")
        if x.device.type != "cpu" or x.layout != torch.strided:
            raise ValueError(f"{name} is {x.layout} on {x.device}; expected a dense tensor on the CPU: move it with .cpu()")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"z has dtype {dtype}; expected torch.float32 or torch.float64: convert with .to(torch.float32)")
    for name, x in arguments.items():
        if x.dtype != dtype and (name not in _MATRICES or x.dtype != torch.float64):
            raise TypeError(f"{name} has dtype {x.dtype}; expected {dtype}: convert with .to({dtype})")


def _check_shapes(arguments: dict[str, Tensor], sizes: Mapping[str, Sequence[tuple[int, ...]]], beside: str) -> None:
    """The kernels trust what they are given: everything that they read is checked here."""
    for name, allowed in sizes.items():
        shape = tuple(arguments[name].shape)
        if len(shape) != len(allowed) or any(have not in choice for have, choice in zip(shape, allowed, strict=True)):
            text = ", ".join(" or ".join(map(str, dict.fromkeys(choice))) for choice in allowed)
            raise ValueError(f"{name} has shape {shape}; expected ({text}) beside {beside}: check the sizes or add a dimension")


def _check_available() -> None:
    if not available():
        raise RuntimeError(f"{_EXTENSION} is not installed: install a C++ compiler and reinstall ldm-filter")


def _kernels() -> ModuleType:
    module = _load()
    assert module is not None  # every caller has looked
    return module


@functools.cache
def _load() -> ModuleType | None:
    try:
        module = importlib.import_module(_EXTENSION)
        if not hasattr(module, "covariance_forward"):
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
