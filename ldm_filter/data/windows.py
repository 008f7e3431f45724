"""Fixed-length windows over series of any length, for training; and the split into training and validation."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from ldm_filter.types import Context, Sequences

__all__ = ["Windows", "split", "split_spans"]

MANY = 5  # series, of which whole ones are held out


class Windows:
    """An index of windows; the data is copied one batch at a time.

    A series longer than ``length`` is covered by windows that start every ``length - overlap`` steps; the last one is aligned to
    the series' end, so that no step is lost. A shorter series is one window, padded with ``observed=False``. When shuffled, the
    starts are moved by a random offset in each epoch (windows at the two ends stay inside), which still covers every step.

    Args:
        sequences: the series; kept by reference.
        length: steps of a window; None for the longest series.
        overlap: steps shared by neighbouring windows, below ``length``.

    Raises:
        ValueError: ``length`` or ``overlap`` out of range.

    >>> sequences = Sequences(torch.zeros(1, 10, 2), torch.ones(1, 10, 2, dtype=torch.bool), torch.tensor([10]))
    >>> Windows(sequences, length=4).index().tolist()
    [[0, 0], [0, 4], [0, 6]]
    """

    # Most steps that whoever looks at many windows at once may keep; None: as many as it likes, they are in memory anyway.
    room: int | None = None

    def __init__(self, sequences: Sequences, length: int | None = None, overlap: int = 0) -> None:
        self.sequences, self.lengths = sequences, sequences.lengths
        self._cut(length, overlap)

    def _cut(self, length: int | None, overlap: int = 0) -> None:
        longest = int(self.lengths.max())
        if length is not None and length < 1:
            raise ValueError(f"`length` is {length}, expected at least 1 step, or None for whole series.")
        self.length = longest if length is None else min(length, longest)
        if not overlap >= 0 or (length is not None and overlap >= length):
            raise ValueError(f"`overlap` is {overlap}, expected 0 to {(length or longest) - 1}, less than the windows' length.")
        self.stride = max(1, self.length - overlap)

    def recut(self, length: int | None) -> Self:
        """The same series in windows of another length, with no overlap.

        Raises:
            ValueError: ``length`` below one step.
        """
        other = copy.copy(self)
        other._cut(length)
        return other

    def index(self, generator: torch.Generator | None = None, shuffle: bool = False) -> Tensor:
        """Where the windows begin: ``(windows, 2)`` integers, series and first step; the same number in every epoch.

        Args:
            generator: source of the random offsets and order.
            shuffle: False gives the plain cover in order.
        """
        last = (self.lengths - self.length).clamp(min=0)
        counts = (last + self.stride - 1) // self.stride + 1
        if shuffle:
            counts = torch.where(counts > 2, counts + 1, counts)  # room for the offset; two windows already touch both ends
        series = torch.repeat_interleave(torch.arange(len(counts)), counts)
        number = torch.arange(len(series)) - (counts.cumsum(0) - counts)[series]
        starts = number * self.stride
        if shuffle:
            offsets = torch.randint(0, self.stride, (len(counts),), generator=generator)
            starts = starts - torch.where(counts > 2, offsets, 0)[series]
        index = torch.stack([series, torch.minimum(starts.clamp(min=0), last[series])], dim=1)
        return index[torch.randperm(len(index), generator=generator)] if shuffle else index

    def take(self, index: Tensor) -> Sequences:
        """The windows at ``index`` ``(b, 2)`` as a batch ``(b, length, *event)``."""
        lengths = (self.lengths[index[:, 0]] - index[:, 1]).clamp(max=self.length)
        values, observed, _, context = self.sequences
        parts = (None if part is None else self.gather(part.expand(len(values), *part.shape[1:]), index) for part in context)
        return Sequences(self.gather(values, index), self.gather(observed, index), lengths, Context(*parts))

    def gather(self, tensor: Tensor, index: Tensor) -> Tensor:
        """The same windows of a companion of the data, such as inputs ``(B, T, ...)``."""
        if self.length == tensor.shape[1]:
            return tensor[index[:, 0]]
        return tensor[index[:, :1], index[:, 1:] + torch.arange(self.length)]

    def epoch(self, batch_size: int, generator: torch.Generator | None = None, shuffle: bool = True) -> tuple[Tensor, ...]:
        """The index cut into batches of nearly equal size (an entropy estimate from a small remainder would be poor)."""
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}, expected at least 1.")
        index = self.index(generator, shuffle)
        return torch.tensor_split(index, math.ceil(len(index) / batch_size))

    def batches(self, batch_size: int, generator: torch.Generator | None = None, shuffle: bool = True) -> Iterator[Sequences]:
        """One epoch of batches.

        Args:
            batch_size: most windows in a batch.
            generator: source of the random order and offsets.
            shuffle: False gives every window of the plain cover in order.

        Yields:
            Sequences ``(b, length, *event)``.
        """
        for index in self.epoch(batch_size, generator, shuffle):
            yield self.take(index)


def split(sequences: Sequences, fraction: float = 0.1, generator: torch.Generator | None = None) -> tuple[Sequences, Sequences]:
    """Training and validation: whole series at random where there are at least five, else the last part of each series.

    Args:
        sequences: the data.
        fraction: share that goes to validation, in (0, 1).
        generator: source of the random choice of series.

    Returns:
        ``(train, validation)``.

    Raises:
        ValueError: ``fraction`` out of range, or series too short to leave two steps on either side.
    """
    train, held_out = split_spans(sequences.lengths, fraction, generator)
    if len(sequences.lengths) >= MANY:
        return _trimmed(sequences, train[:, 0]), _trimmed(sequences, held_out[:, 0])
    return _part(sequences, *train[:, 1:].unbind(1)), _part(sequences, *held_out[:, 1:].unbind(1))


def split_spans(lengths: Tensor, fraction: float = 0.1, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """What :func:`split` takes of series of these lengths: rows (series, first step, steps), ``(train, validation)``.

    >>> [part.tolist() for part in split_spans(torch.tensor([20, 40]), 0.1)]
    [[[0, 0, 18], [1, 0, 36]], [[0, 18, 2], [1, 36, 4]]]
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` is {fraction}, expected a share between 0 and 1.")
    count = len(lengths)
    series = torch.arange(count)
    if count >= MANY:
        order = torch.randperm(count, generator=generator)
        held_out = min(max(1, round(fraction * count)), count - 1)
        whole = torch.stack([series, torch.zeros_like(lengths), lengths], 1)
        return whole[order[held_out:].sort().values], whole[order[:held_out].sort().values]
    tails = (fraction * lengths).round().long().clamp(min=2)
    cuts = lengths - tails
    if int(cuts.min()) < 2:
        shortest = int(lengths.min())
        raise ValueError(f"`sequences` has a series of {shortest} steps, too short to split off {fraction:g} of it; pass `validation` data yourself.")
    return torch.stack([series, torch.zeros_like(cuts), cuts], 1), torch.stack([series, cuts, tails], 1)


def _trimmed(sequences: Sequences, series: Tensor) -> Sequences:
    """Some of the series, without padding that only the others needed."""
    longest = int(sequences.lengths[series].max())
    parts = (None if part is None else part[series if len(part) > 1 else slice(None), :longest] for part in sequences.context)
    return Sequences(sequences.values[series, :longest], sequences.observed[series, :longest], sequences.lengths[series], Context(*parts))


def _part(sequences: Sequences, starts: Tensor, lengths: Tensor) -> Sequences:
    """Steps ``starts`` to ``starts + lengths`` of every series, padded to the longest part."""
    steps = torch.arange(int(lengths.max()))
    inside = (steps < lengths[:, None]).reshape(len(lengths), -1, *[1] * (sequences.values.ndim - 2))
    places = (starts[:, None] + steps).clamp(max=sequences.values.shape[1] - 1)
    series = torch.arange(len(lengths))[:, None]
    parts = (None if part is None else part.expand(len(lengths), *part.shape[1:])[series, places] for part in sequences.context)
    return Sequences(sequences.values[series, places] * inside, sequences.observed[series, places] & inside, lengths, Context(*parts))
