"""What the classical filters share: how series come in, and one call of the core for many of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm_filter.core.kalman import filter_moments, filter_sequence
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.types import Gaussian, StateSpace

__all__ = ["Array", "Forecast", "Index", "Mask", "Series", "as_series", "check_fitted", "check_horizon", "run_filter"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.intp]

# Covariances of a run are kept below about this many bytes by filtering a few series at a time.
MEMORY = 2**28


class Forecast(NamedTuple):
    """A Gaussian for every entry, by its mean and standard deviation, in the units and the shape of the data.

    Attributes:
        mean: ``(time, channel)`` or ``(series, time, channel)``.
        std: the same shape.
    """

    mean: Array
    std: Array


class Series(NamedTuple):
    """Checked values ``(series, time, channel)`` with 0 where missing, what was observed, and whether it came as a single series."""

    values: Array
    observed: Mask
    single: bool

    def shaped(self, result: Array) -> Array:
        """A result ``(series, ...)`` in the caller's shape."""
        return result[0] if self.single else result


def as_series(values: Any, observed: Any = None, *, name: str = "values") -> Series:
    """Check ``(time, channel)`` or ``(series, time, channel)`` numbers; NaN, or False in ``observed``, is missing.

    Raises:
        TypeError: not real numbers, or a mask that is not boolean.
        ValueError: another number of axes, nothing in it, an infinite value, or a mask of another shape.
    """
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}; convert it to float first")
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; expected (time, channel) or (series, time, channel), e.g. {name}[:, None] for one channel")
    array = array.astype(np.float64)
    if np.isinf(array).any():
        raise ValueError(f"{name} has infinite entries, the first at {tuple(map(int, np.argwhere(np.isinf(array))[0]))}; set them to NaN if missing")
    mask = ~np.isnan(array)
    if observed is not None:
        given = np.asarray(observed)
        if given.dtype != np.bool_:
            raise TypeError(f"observed must be boolean (True = observed), got dtype {given.dtype}")
        if given.shape not in (array.shape, array.shape[:-1]):
            raise ValueError(f"observed has shape {given.shape}; expected {array.shape} or {array.shape[:-1]}")
        mask &= given if given.shape == array.shape else given[..., None]
    single = array.ndim == 2
    array = np.where(mask, array, 0.0)
    return Series(array[None], mask[None], True) if single else Series(array, mask, False)


def check_horizon(horizon: int) -> None:
    """ValueError unless at least one step is asked for."""
    if int(horizon) != horizon or horizon < 1:
        raise ValueError(f"horizon must be a whole number of steps, at least 1, got {horizon}")


def check_fitted(owner: Any, attribute: str, channels: int | None = None) -> None:
    """ValueError where ``fit`` has not run, or ran on another number of channels."""
    fitted = getattr(owner, attribute, None)
    if fitted is None:
        raise ValueError(f"{type(owner).__name__} is not fitted; call fit(training data) first")
    if channels is not None and len(fitted) != channels:
        raise ValueError(f"values has {channels} channels, {type(owner).__name__} was fitted on {len(fitted)}")


def run_filter(ssm: StateSpace, measurements: Gaussian, observed: Tensor | None, *, smooth: bool = False, predict: bool = False) -> Gaussian:
    """Filtered (or smoothed, or predicted) states of a batch, a few series at a time where each has covariances of its own."""
    batch, steps, _ = measurements.mean.shape
    fields = [*ssm[:5], measurements.cov, *([] if observed is None else [observed[..., None, None]])]
    shared = all(x.dim() < 3 or x.shape[0] == 1 for x in fields)
    per_series = 8 * steps * ssm.transition_matrix.shape[-1] ** 2 * (6 if smooth or predict else 2)
    size = batch if shared else max(1, MEMORY // per_series)
    parts = []
    for start in range(0, batch, size):
        rows = slice(start, min(start + size, batch))
        model = _rows(ssm, rows, batch)
        part = Gaussian(*(_row(x, rows, batch) for x in measurements))
        mask = observed if observed is None or len(observed) != batch else observed[rows]
        if predict:
            parts.append(filter_sequence(model, part, mask).predicted)
        elif smooth:
            parts.append(smooth_sequence(model, filter_sequence(model, part, mask)).smoothed)
        else:
            parts.append(filter_moments(model, part, mask)[0])
    if len(parts) == 1:
        return parts[0]
    return Gaussian(torch.cat([p.mean for p in parts]), torch.cat([p.cov.expand(len(p.mean), -1, -1, -1) for p in parts]))


def _row(x: Tensor, rows: slice, batch: int) -> Tensor:
    return x[rows] if x.dim() > 2 and x.shape[0] == batch else x


def _rows(ssm: StateSpace, rows: slice, batch: int) -> StateSpace:
    """The model of some series, for a model that is constant or has a batch of its own ``(B, 1, n, n)``."""
    if ssm.transition_matrix.dim() == 2 and ssm.initial.mean.dim() == 1 and ssm.transition_cov.dim() == 2:
        return ssm
    a, b, q, c, d = (_row(x, rows, batch) for x in ssm[:5])
    initial = Gaussian(*(x[rows] if x.dim() > event and x.shape[0] == batch else x for x, event in zip(ssm.initial, (1, 2), strict=True)))
    return StateSpace(a, b, q, c, d, initial)
