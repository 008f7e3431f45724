"""The compiled extension: whether it is there, its memory, and what it says about numbers. Its filters are in :mod:`ldm_filter.core.kernels`."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["available", "kernel", "release_memory", "sound", "step_of"]

_EXTENSION = "ldm_filter.core._native"


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the compiled kernels can be used. The first time that they cannot, one RuntimeWarning says so and how to mend it."""
    return _load() is not None


def kernel(name: str) -> Callable[..., Any]:
    """A function of the extension."""
    module = _load()
    if module is None:
        raise RuntimeError(f"{_EXTENSION} is not installed: install a C++ compiler and reinstall ldm-filter")
    found: Callable[..., Any] = getattr(module, name)
    return found


def step_of(*model: np.ndarray) -> Callable[..., int]:
    """A filter step for A, a, Q, C and c, called with mean, cov, z, R and what it fills; all float64, all contiguous.

    It returns the first series whose innovation covariance has no Cholesky factor, or -1.
    """
    run: Callable[..., int] = kernel("Step")(*model).run
    return run


def sound(covs: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether all these numbers are finite and no variance is negative, as far as this can be told at once; False: look again, slowly."""
    return available() and bool(kernel("sound")(list(covs), list(others)))


def release_memory() -> int:
    """Hand the memory that is kept for the next large results, up to a gigabyte, back to the system; the number of bytes."""
    return int(kernel("release_memory")()) if available() else 0


@functools.cache
def _load() -> ModuleType | None:
    try:
        module = importlib.import_module(_EXTENSION)
        if not hasattr(module, "step"):
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
