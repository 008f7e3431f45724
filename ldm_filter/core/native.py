"""The compiled extension: whether it is there, its memory, and what it says about numbers. Its filters are in :mod:`ldm_filter.core.kernels`."""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Numbers", "addresses", "all_finite", "available", "empty", "field", "kernel", "release_memory", "sound", "step_of"]

_EXTENSION = "ldm_filter.core._native"
_LARGE = 1 << 17  # bytes
_SUFFIXES = {torch.float32: "_float32", torch.float64: "_float64"}
Numbers = list[int]


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the compiled kernels can be used. The first time that they cannot, one RuntimeWarning says so and how to mend it."""
    return _load() is not None


def kernel(name: str, like: Tensor | None = None) -> Callable[..., Any]:
    """A function of the extension, of those that exist for each dtype the one for ``like``."""
    module = _load()
    if module is None:
        raise RuntimeError(f"{_EXTENSION} is not installed: install a C++ compiler and reinstall ldm-filter")
    found: Callable[..., Any] = getattr(module, name if like is None else name + _SUFFIXES[like.dtype])
    return found


def step_of(*model: np.ndarray) -> Callable[..., int]:
    """A filter step for A, a, Q, C and c, called with mean, cov, z, R and what it fills; all float64, all contiguous.

    It returns the first series whose innovation covariance has no Cholesky factor, or -1.
    """
    run: Callable[..., int] = kernel("Step")(*model).run
    return run


def all_finite(*tensors: Tensor) -> bool:
    """Whether no number in these contiguous tensors of one dtype is NaN or infinite."""
    return bool(kernel("all_finite", tensors[0])([n for x in tensors for n in (x.data_ptr(), x.numel())]))


def sound(covs: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether all these numbers are finite and no variance is negative, as far as this can be told at once; False: look again, slowly."""
    covs = [x.contiguous() for x in covs]
    everything = [*covs, *(x.contiguous() for x in others)]
    dtype = everything[0].dtype
    if dtype not in (torch.float32, torch.float64) or not all(x.is_cpu and x.dtype == dtype for x in everything):
        return False
    if not available() or not all_finite(*everything):
        return False
    diagonals = [n for x in covs for n in (x.data_ptr(), x.numel() // x.shape[-1] ** 2, x.shape[-1])]
    return bool(kernel("no_negative_variance", everything[0])(diagonals))


def release_memory() -> int:
    """Hand the memory that is kept for the next large results, up to a gigabyte, back to the system; the number of bytes."""
    return int(kernel("release_memory")()) if available() else 0


def field(x: Tensor | None, initial: bool = False) -> tuple[int, int, int]:
    """Address and strides over batch and time, 0 where it does not vary; what is initial has no time."""
    if x is None:
        return 0, 0, 0
    shape, stride = x.shape, x.stride()
    return x.data_ptr(), 0 if shape[0] == 1 else stride[0], 0 if initial or shape[1] == 1 else stride[1]


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory; large results get memory that is used again, as fresh pages would cost more than what fills them."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(kernel("buffer")(size)).view(dtype).view(shape)


def addresses(*arrays: Tensor | int | None) -> Numbers:
    return [x.data_ptr() if isinstance(x, Tensor) else x or 0 for x in arrays]


@functools.cache
def _load() -> ModuleType | None:
    try:
        module = importlib.import_module(_EXTENSION)
        if not hasattr(module, "no_negative_variance_float64"):
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
