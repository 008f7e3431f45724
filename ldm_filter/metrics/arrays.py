"""The one place where metrics check what came in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Array", "Mask", "as_array", "as_covariance", "as_mask", "check_finite", "match", "whiten"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def as_array(name: str, value: Any) -> Array:
    """float64 copy-free view of an array, a number, a list or a (detached) tensor; TypeError for anything that is not real numbers."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}; convert it to float first")
    return array.astype(np.float64, copy=False)


def as_mask(mask: Any, shape: tuple[int, ...]) -> Mask:
    """Boolean mask of ``shape`` from None (all count), a mask per step ``shape[:-1]`` or per entry ``shape``."""
    if mask is None:
        return np.ones(shape, dtype=bool)
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.dtype != np.bool_:
        raise TypeError(f"mask must be boolean (True = counts), got dtype {array.dtype}")
    if array.ndim == len(shape) - 1:
        array = array[..., None]
    try:
        full = np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"mask has shape {np.shape(mask)}, expected {shape[:-1]} (per step) or {shape} (per entry)") from None
    if not full.any():
        raise ValueError("mask is False everywhere: nothing is left to measure")
    return full


def check_finite(name: str, value: Array, mask: Mask | None = None) -> None:
    """ValueError naming the first entry that counts and is NaN or infinite."""
    bad = ~np.isfinite(value) if mask is None else ~np.isfinite(value) & mask
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name} has {int(bad.sum())} entries that are NaN or infinite, the first at {index}; fill them or leave them out with mask")


def match(estimate: Any, truth: Any, mask: Any, names: tuple[str, str] = ("estimate", "truth")) -> tuple[Array, Array, Mask]:
    """Two arrays of one shape ``(..., d)`` and their mask, finite where it is True and 0 elsewhere; a vector ``(T,)`` is ``(T, 1)``."""
    x, y = as_array(names[0], estimate), as_array(names[1], truth)
    if x.shape != y.shape:
        raise ValueError(f"{names[0]} has shape {x.shape} and {names[1]} has shape {y.shape}; they must be equal")
    if x.size == 0 or x.ndim == 0:
        raise ValueError(f"{names[0]} has shape {x.shape}; expected (..., d) with at least one entry")
    if x.ndim == 1:
        x, y = x[:, None], y[:, None]
    counts = as_mask(mask, x.shape)
    check_finite(names[0], x, counts)
    check_finite(names[1], y, counts)
    return np.where(counts, x, 0.0), np.where(counts, y, 0.0), counts


def as_covariance(cov: Any, mask: Mask) -> Array:
    """Covariance ``(..., d, d)`` of the entries that count: the others get variance 1 and no correlation, so that they drop out."""
    array, d = as_array("cov", cov), mask.shape[-1]
    try:
        np.broadcast_shapes(array.shape, (*mask.shape, d))
        fits = array.ndim >= 2 and array.shape[-2:] == (d, d) and array.ndim <= mask.ndim + 1
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"cov has shape {array.shape}; expected {(*mask.shape, d)} or one that broadcasts to it")
    if mask.all():
        check_finite("cov", array)
        return array
    both = mask[..., :, None] & mask[..., None, :]
    array = np.broadcast_to(array, both.shape)
    check_finite("cov", array, both)
    return np.where(both, array, np.eye(d))


def whiten(error: Array, cov: Array) -> tuple[Array, Array]:
    """L^-1 e for cov = L L', and log det cov, ``(..., d)`` and broadcastable ``(...)``."""
    try:
        factor = np.linalg.cholesky(cov)
    except np.linalg.LinAlgError:
        smallest = np.linalg.eigvalsh(cov)[..., 0]
        index = tuple(int(i) for i in np.unravel_index(smallest.argmin(), smallest.shape))
        raise ValueError(f"cov is not positive definite: smallest eigenvalue {smallest.min():.3g} at step {index}") from None
    white = np.linalg.solve(np.broadcast_to(factor, (*error.shape, error.shape[-1])), error[..., None])[..., 0].astype(np.float64, copy=False)
    log_det: Array = 2.0 * np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)
    return white, log_det
