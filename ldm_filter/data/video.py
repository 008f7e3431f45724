"""Video files through PyAV: frames at their real times, resized, grey or coloured; what was dropped or merely repeated is missing.

A clip is read frame by frame; only :func:`read_video` keeps frames. Folders too large for that: :mod:`ldm_filter.data.clips`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

__all__ = ["VIDEO_SUFFIXES", "Frame", "clips", "extent", "frame_step", "frames_from", "on_grid", "read_video", "video_frames"]

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".gif")


class Frame(NamedTuple):
    """One frame.

    Attributes:
        time: seconds since the start of the clip.
        values: ``(y, x)`` or ``(y, x, 3)`` float32 in [0, 1]; None where nothing new was seen: dropped, or the frame before again.
        original: ``(y, x, 3)`` uint8 as in the file, where it was asked for.
    """

    time: float
    values: np.ndarray | None
    original: np.ndarray | None = None


def clips(path: str | Path) -> list[Path]:
    """The video files of a folder, sorted by name, or the one file.

    Raises:
        FileNotFoundError: no such file or folder, or no video in it.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(item for item in path.iterdir() if item.suffix.lower() in VIDEO_SUFFIXES)
        if not found:
            raise FileNotFoundError(f"`path` {str(path)!r} holds no video; expected files {', '.join(VIDEO_SUFFIXES)}")
        return found
    if not path.is_file():
        raise FileNotFoundError(f"`path` {str(path)!r} is not a file; check the name.")
    return [path]


def video_frames(path: str | Path, size: tuple[int, int] | None = None, colour: bool = False, original: bool = False) -> Iterator[Frame]:
    """The frames of a clip as they are in the file, one at a time; packets that cannot be decoded are passed over.

    Args:
        path: of the file.
        size: (y, x) to resize to; None: as in the file.
        colour: RGB instead of grey.
        original: also give the frame as it is in the file.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        FileNotFoundError: no such file.
        ValueError: the file is no video, or a size that no frame can have.
    """
    check_size(size)
    with _opened(path) as container:
        yield from _frames(container, None, size, colour, original)


def frames_from(path: str | Path, origin: float, start: float, size: tuple[int, int] | None = None, colour: bool = False) -> Iterator[Frame]:
    """As :func:`video_frames`, from the key frame before ``start`` on, or from the beginning in a file where there is no way to one.

    Args:
        path, size, colour: as there. origin: the stamp of the first frame, as of :func:`extent`. start: seconds after it.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        container.seek(int((origin + start) / stream.time_base), stream=stream)
        frames = _frames(container, origin, size, colour, False)
        first = next(frames, None)
        if first is not None and first.time <= start:
            yield first
            yield from frames
            return
    yield from video_frames(path, size, colour)


def extent(path: str | Path) -> tuple[float, float, tuple[int, int]]:
    """Stamp of the first frame, seconds from it to the last, and (y, x), without decoding a frame.

    Raises:
        As :func:`video_frames`; ValueError: there is no frame in it.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        found = [packet.dts if packet.pts is None else packet.pts for packet in container.demux(stream) if not packet.is_discard]
        stamps = [stamp for stamp in found if stamp is not None]  # the last, empty packet has none
        if not stamps:
            raise ValueError(f"`path` {str(path)!r} holds no frame that can be read; check that it plays")
        return float(min(stamps) * stream.time_base), float((max(stamps) - min(stamps)) * stream.time_base), (stream.height, stream.width)


def check_size(size: tuple[int, int] | None) -> None:
    """Refuse a size that no frame can have.

    Raises:
        ValueError: anything but None or two positive whole numbers.
    """
    if size is not None and (len(size) != 2 or any(int(part) != part or part < 1 for part in size)):
        raise ValueError(f"size is {size}, expected (y, x), two positive whole numbers of pixels, or None for the file's own")


def _frames(container: Any, first: float | None, size: tuple[int, int] | None, colour: bool, original: bool) -> Iterator[Frame]:
    """What can be decoded from the container's present place on; the first stamp counts as 0 where none is given."""
    av, stream, last = _av(), container.streams.video[0], None
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except av.FFmpegError:
            continue  # dropped: the times of the others show the gap
        for frame in decoded:
            if frame.pts is None:
                continue
            stamp = float(frame.pts * stream.time_base)
            first = stamp if first is None else first
            height, width = size or (frame.height, frame.width)
            pixels = frame.reformat(width, height, "rgb24" if colour else "gray", interpolation="AREA").to_ndarray()
            again = last is not None and np.array_equal(pixels, last)
            last = pixels
            whole = frame.to_ndarray(format="rgb24") if original else None
            yield Frame(stamp - first, None if again else pixels.astype(np.float32) / 255.0, whole)


def frame_step(path: str | Path) -> float:
    """Seconds from frame to frame, as the file says.

    Raises:
        ValueError: it does not say.
    """
    with _opened(path) as container:
        rate = container.streams.video[0].average_rate or container.streams.video[0].guessed_rate
    if not rate:
        raise ValueError(f"`path` {str(path)!r} does not say its frame rate; convert it with a constant one")
    return float(1 / rate)


def on_grid(frames: Iterable[Frame], step: float) -> Iterator[Frame]:
    """The frames on a grid of ``step`` seconds: an empty one where there is none, one of those that fall on the same place.

    >>> [frame.time for frame in on_grid([Frame(0.0, None), Frame(0.21, None), Frame(0.22, None)], 0.1)]
    [0.0, 0.1, 0.2]
    """
    place = -1
    for frame in frames:
        wanted = round(frame.time / step)
        if wanted <= place:
            continue
        for gap in range(place + 1, wanted):
            yield Frame(gap * step, None)
        place = wanted
        yield frame._replace(time=place * step)


def read_video(path: str | Path, size: tuple[int, int] | None = None, colour: bool = False) -> xr.DataArray:
    """A clip as a DataArray ``(time, y, x[, colour])`` in [0, 1], NaN where a frame was dropped or repeats the one before.

    Args:
        path, size, colour: as for :func:`video_frames`.

    Returns:
        With the time in seconds since the first frame, on the file's own grid.

    Raises:
        As :func:`video_frames`; ValueError: no frame can be read.
    """
    frames = list(on_grid(video_frames(path, size, colour), frame_step(path)))
    return _stacked(frames, path)


def _stacked(frames: list[Frame], path: str | Path) -> xr.DataArray:
    seen = next((frame.values for frame in frames if frame.values is not None), None)
    if seen is None:
        raise ValueError(f"`path` {str(path)!r} holds no frame that can be read; check that it plays")
    values = np.full((len(frames), *seen.shape), np.nan, dtype=np.float32)
    for row, frame in zip(values, frames, strict=True):
        if frame.values is not None:
            row[...] = frame.values
    dims = ("time", "y", "x", "colour")[: values.ndim]
    return xr.DataArray(values, {"time": [frame.time for frame in frames]}, dims, attrs={"source": Path(path).name, "units": "share of white"})


def _opened(path: str | Path) -> Any:
    """A container with a video in it."""
    av = _av()
    if not Path(path).is_file():
        raise FileNotFoundError(f"`path` {str(path)!r} is not a file; check the name.")
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise ValueError(f"`path` {str(path)!r} could not be read as video: {error}") from error
    if not container.streams.video:
        container.close()
        raise ValueError(f"`path` {str(path)!r} could not be read as video: there is none in it")
    return container


def _av() -> Any:
    if find_spec("av") is None:
        raise ModuleNotFoundError("video files need the package av, which is not installed; install it with: pip install ldm-filter[video]")
    import av

    return av
