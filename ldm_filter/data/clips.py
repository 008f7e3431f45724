"""Folders of clips too large for memory: frames stay in their files until training wants them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm_filter.data.video import check_size, clips, extent, frame_step, frames_from
from ldm_filter.data.windows import Windows
from ldm_filter.types import Sequences

__all__ = ["ClipWindows", "Clips"]

PIECE = 128  # frames that are decoded and kept together, where there is room for as many
LEAST_PIECES = 4
HELD_BYTES = 5  # of an entry in a batch: a float32 and its mask


class Clips:
    """Video clips that stay in their files, to fit a model on: ``LDMFilter(...).fit(Clips("folder", size=(32, 32)))``.

    Frames are decoded piece by piece when a window needs them, and the pieces used last are kept, one byte per pixel. All clips are put on one
    grid of time, that of the median frame rate; what is dropped or repeated is missing.

    Args:
        paths: a folder, a file, or many of them.
        size: (y, x) to resize to; None: as in the files, which must then be of one size.
        colour: RGB instead of grey.
        memory: bytes for frames: a quarter for decoded pieces, the rest for the sample of windows that the fit starts from and measures its noise
            on; a batch of windows comes on top. Where there is room for everything (about eight bytes per pixel), every frame is decoded once, and
            the fit is that of the same clips in memory.

    Attributes:
        lengths: frames of every clip, missing ones among them, ``(clips,)``. step: seconds from frame to frame.
        event_shape: (y, x[, colour]). held: frames kept just now. most_held: the most that ever were. decoded: pieces decoded so far.

    Raises:
        FileNotFoundError, ModuleNotFoundError: as of `ldm_filter.data.video`.
        ValueError: files that are no video, frames of several sizes, a size that no frame can have, or a memory that does not hold 32 frames.
    """

    def __init__(
        self, paths: str | Path | Iterable[str | Path], size: tuple[int, int] | None = None, colour: bool = False, memory: int = 1 << 30
    ) -> None:
        check_size(size)
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        self.paths = [clip for path in given for clip in clips(path)]
        if not self.paths:
            raise ValueError("paths is empty, expected a folder or the names of clips")
        self.size, self.colour, self.memory = size, colour, int(memory)
        self.step = float(np.median([frame_step(path) for path in self.paths]))
        self.origins, durations, shapes = zip(*(extent(path) for path in self.paths), strict=True)
        if size is None and len(set(shapes)) > 1:
            raise ValueError(f"size is None, but the clips have frames of {len(set(shapes))} sizes, {sorted(set(shapes))}; pass a size for all")
        self.event_shape = (*(shapes[0] if size is None else size), *((3,) if colour else ()))
        self.lengths = torch.tensor([round(duration / self.step) + 1 for duration in durations])
        room = self.memory // 4 // int(np.prod(self.event_shape))
        self.piece = min(PIECE, room // LEAST_PIECES)
        if self.piece < 8:
            raise ValueError(
                f"memory is {self.memory} bytes, room for {room} frames of {self.event_shape}, expected at least 32; raise it or lower size"
            )
        self.most_pieces = room // self.piece
        self._kept: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self.held = self.most_held = self.decoded = 0

    def __len__(self) -> int:
        return len(self.paths)

    def pieces(self) -> Tensor:
        """The number of pieces of every clip, ``(clips,)``."""
        return (self.lengths + self.piece - 1) // self.piece

    def read(self, clip: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames ``start`` to ``stop`` of a clip, uint8, and which of them were seen."""
        first, last = start // self.piece, (stop - 1) // self.piece
        values, seen = zip(*(self._piece(clip, number) for number in range(first, last + 1)), strict=True)
        rows = slice(start - first * self.piece, stop - first * self.piece)
        return np.concatenate(values)[rows], np.concatenate(seen)[rows]

    def _piece(self, clip: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        key = clip, number
        if key not in self._kept:
            while len(self._kept) >= self.most_pieces:
                self.held -= len(self._kept.popitem(last=False)[1][1])
            begin = number * self.piece
            self._kept[key] = self._decode(clip, begin, min(begin + self.piece, int(self.lengths[clip])))
            self.held += len(self._kept[key][1])
            self.most_held, self.decoded = max(self.most_held, self.held), self.decoded + 1
        self._kept.move_to_end(key)
        return self._kept[key]

    def _decode(self, clip: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The grid's places ``start`` to ``stop``: of frames that fall on the same place the first counts, as everywhere."""
        values, seen, done = np.zeros((stop - start, *self.event_shape), np.uint8), np.zeros(stop - start, bool), -1
        before = max(0.0, (start - 0.75) * self.step)  # a frame earlier, to tell a repeated one
        for frame in frames_from(self.paths[clip], self.origins[clip], before, self.event_shape[:2], self.colour):
            place = round(frame.time / self.step)
            if place >= stop:
                break
            if place <= done:
                continue
            done = place
            if place >= start and frame.values is not None:
                values[place - start], seen[place - start] = np.rint(frame.values * 255.0), True
        return values, seen


class ClipWindows(Windows):
    """Windows over clips, decoded when a batch takes them.

    Where not all pieces can be kept, an epoch goes through the clips in blocks of half as many, clips in random order and windows in random order
    within a block, so that every piece is decoded about once.

    Args:
        clips: the files.
        spans: rows (clip, first frame, frames), as of :func:`~ldm_filter.data.windows.split_spans`.
        length: steps of a window; None for the longest span.
        share: of the clips' memory, for a sample of windows.
        dtype: of the values.

    Attributes:
        sequences: the spans as they are, where they fit into the share; else windows evenly spread over them. room: steps that fit.
    """

    def __init__(self, clips: Clips, spans: Tensor, length: int | None, share: float, dtype: torch.dtype = torch.float32) -> None:
        self.clips, self.spans, self.lengths, self.dtype = clips, spans, spans[:, 2], dtype
        size = HELD_BYTES + (4 if dtype == torch.float64 else 0)
        self.room = int(share * clips.memory) // (size * int(np.prod(clips.event_shape)))
        self._cut(length)
        index = self.index()
        if int(self.lengths.max()) * len(spans) <= self.room:
            self.sequences = self._read(torch.stack([torch.arange(len(spans)), torch.zeros_like(self.lengths)], 1), int(self.lengths.max()))
            return
        most = max(1, self.room // self.length)
        self.sequences = self.take(index[torch.linspace(0, len(index) - 1, min(most, len(index))).round().long()])

    def index(self, generator: torch.Generator | None = None, shuffle: bool = False) -> Tensor:
        """As of any windows; an epoch's order keeps those together whose pieces are decoded together."""
        index = super().index(generator, shuffle)
        counts = self.clips.pieces()[self.spans[:, 0]]
        if not shuffle or int(self.clips.pieces().sum()) <= self.clips.most_pieces:
            return index
        order = torch.randperm(len(counts), generator=generator)
        before = torch.zeros_like(counts)
        before[order] = counts[order].cumsum(0) - counts[order]
        place = before[index[:, 0]] + (self.spans[index[:, 0], 1] + index[:, 1]) // self.clips.piece
        return index[torch.argsort(place // max(1, self.clips.most_pieces // 2), stable=True)]

    def take(self, index: Tensor) -> Sequences:
        return self._read(index, self.length)

    def _read(self, index: Tensor, longest: int) -> Sequences:
        shape = (len(index), longest, *self.clips.event_shape)
        values, observed = torch.zeros(shape, dtype=self.dtype), torch.zeros(shape, dtype=torch.bool)
        lengths = (self.lengths[index[:, 0]] - index[:, 1]).clamp(max=longest)
        for row, (series, begin) in enumerate(index.tolist()):
            clip, first = self.spans[series, :2].tolist()
            pixels, seen = self.clips.read(clip, first + begin, first + begin + int(lengths[row]))
            there = torch.from_numpy(seen)
            values[row, : len(seen)] = torch.from_numpy(pixels.astype(np.float32) / 255.0)
            observed[row, : len(seen)] = there.reshape(-1, *[1] * len(self.clips.event_shape))
        return Sequences(values, observed, lengths)
