"""Location and scale of the observed entries, for the normalisation that lives inside the model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm_filter.types import Sequences

__all__ = ["statistics"]

# Entries converted to float64 at a time, so that a large video is never copied as a whole.
_CHUNK = 1 << 22


def statistics(sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what was observed; missing entries and padding do not count.

        mean = sum_i y_i / n,   std = sqrt(sum_i (y_i - mean)^2 / n)

    Vectors are scaled per channel. Frames have a mean per pixel and one standard deviation for all pixels (one per colour),
    so that the noise of a quiet pixel is not blown up. A constant channel has std 1.

    Args:
        sequences: the training data.

    Returns:
        ``(mean, std)`` in float64, mean ``(*event)``; std ``(channel,)`` for vectors, ``()`` for frames ``(y, x)``, ``(colour,)`` for
        frames ``(y, x, colour)``: both broadcast against ``(*event)``.

    Raises:
        ValueError: a channel (or all pixels) without a single observed entry.

    >>> values = torch.tensor([[[1.0, 5.0], [3.0, 5.0], [0.0, 5.0]]])
    >>> observed = torch.tensor([[[True, True], [True, True], [False, True]]])
    >>> [part.tolist() for part in statistics(Sequences(values, observed, torch.tensor([3])))]
    [[2.0, 5.0], [1.0, 1.0]]
    """
    event = sequences.values.shape[2:]
    # Entries of one std: a channel over time; all pixels of a frame, per colour where there is one.
    pooled = tuple(range(min(len(event), 2))) if len(event) > 1 else ()
    count = torch.zeros(event, dtype=torch.float64)
    total = torch.zeros(event, dtype=torch.float64)
    for values, observed in _chunks(sequences):
        count += observed.sum(0)
        total += (values * observed).sum(0)
    groups = _pool(count, pooled)
    if not bool((groups > 0).all()):
        raise ValueError(f"`sequences` has no observed entry in channel(s) {(groups == 0).nonzero().flatten().tolist()}; drop them before training.")
    # A pixel never seen takes the mean of the others: it must be finite, and is never used.
    mean = torch.where(count > 0, total / count.clamp(min=1), (_pool(total, pooled) / groups).expand(event))
    squares = torch.zeros(event, dtype=torch.float64)
    for values, observed in _chunks(sequences):
        squares += ((values - mean) * observed).square().sum(0)
    std = (_pool(squares, pooled) / groups).sqrt()
    # Rounding leaves a constant channel a std of about eps * mean, not 0.
    floor = 4 * torch.finfo(sequences.values.dtype).eps * (_pool(mean.abs() * count, pooled) / groups)
    return mean, torch.where(std > floor, std, 1.0)


def _pool(sums: Tensor, dims: tuple[int, ...]) -> Tensor:
    return sums.sum(dims) if dims else sums


def _chunks(sequences: Sequences) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows ``(steps, *event)`` of all series, values in float64."""
    event = sequences.values.shape[2:]
    values, observed = sequences.values.reshape(-1, *event), sequences.observed.reshape(-1, *event)
    rows = max(1, _CHUNK // max(1, event.numel()))
    for start in range(0, len(values), rows):
        yield values[start : start + rows].double().cpu(), observed[start : start + rows].cpu()
