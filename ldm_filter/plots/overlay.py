"""A clip drawn over with what the filter knows: position and ellipse where there is a read-out, else the reconstruction beside it."""

from __future__ import annotations

from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2

from ldm_filter.data.video import frame_step
from ldm_filter.estimator import LDMFilter
from ldm_filter.estimator.video import Seen, filtered_frames

__all__ = ["draw_position", "position_of", "write_overlay"]

LEVEL = 0.95
_MARK = np.array([213, 94, 0], dtype=np.uint8)  # vermillion


def write_overlay(model: LDMFilter, path: str | Path, out: str | Path, gate: Any = None) -> int:
    """Write a clip with the estimate drawn in; returns the number of frames.

    Where the model has a read-out of a position, targets called x and y (or any two) in pixels of the frames that it was fitted on: a cross
    at its mean and the 95 % ellipse of its covariance. Else the frame that the model reconstructs, beside the one in the file.

    Args:
        model: fitted on frames. path: of the clip. out: of the new file, such as ``out.mp4``. gate: as for ``LDMFilter.filter``.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        ValueError: a model of channels, a clip that cannot be read, or an ``out`` of unknown kind.
    """
    if find_spec("av") is None:
        raise ModuleNotFoundError("video files need the package av, which is not installed; install it with: pip install ldm-filter[video]")
    import av

    shape, count = model.labels_.attrs["event_shape"], 0
    try:
        container = av.open(str(out), "w")
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"`out` {str(out)!r} cannot be written as video: {error}") from error
    rate = Fraction(1 / (model.labels_.attrs.get("step") or frame_step(path))).limit_denominator(1001)
    with container:
        stream, picture = None, np.zeros((int(shape[0]), int(shape[1]), 3), dtype=np.uint8)
        for seen in filtered_frames(model, path, gate, original=True):
            picture = picture if seen.frame.original is None else seen.frame.original  # a dropped frame is the one before
            drawn = _drawn(model, seen, picture)
            if stream is None:
                stream = container.add_stream("libx264", rate=rate)
                stream.height, stream.width, stream.pix_fmt = drawn.shape[0], drawn.shape[1], "yuv420p"
            for packet in stream.encode(av.VideoFrame.from_ndarray(drawn, format="rgb24")):
                container.mux(packet)
            count += 1
        assert stream is not None  # a clip has a frame
        for packet in stream.encode():
            container.mux(packet)
    return count


def position_of(seen: Seen, names: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean (x, y) and covariance of the position, None without a read-out of at least two targets."""
    if seen.target is None or len(names) < 2:
        return None
    lower = [str(name).lower() for name in names]
    pick = [lower.index("x"), lower.index("y")] if {"x", "y"} <= set(lower) else [0, 1]
    mean, cov = seen.target.mean.double().numpy(), seen.target.cov.double().numpy()
    return mean[pick], cov[np.ix_(pick, pick)]


def _drawn(model: LDMFilter, seen: Seen, picture: np.ndarray) -> np.ndarray:
    """The picture with the estimate, of even height and width as the codecs want it."""
    found = position_of(seen, model.target_names_)
    if found is None:
        drawn = np.concatenate([picture, _reconstruction(model, seen, picture.shape[:2])], axis=1)
    else:
        drawn = picture.copy()
        size = model.labels_.attrs["event_shape"]
        scale = np.array([picture.shape[1] / size[1], picture.shape[0] / size[0]])
        draw_position(drawn, (found[0] + 0.5) * scale - 0.5, found[1] * np.outer(scale, scale))
    height, width = drawn.shape[:2]
    return np.ascontiguousarray(np.pad(drawn, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))


def _reconstruction(model: LDMFilter, seen: Seen, size: tuple[int, ...]) -> np.ndarray:
    mean, _ = model.decode(seen.result.mean)
    frame = np.clip(mean, 0.0, 1.0)
    frame = np.repeat(frame[..., None], 3, -1) if frame.ndim == 2 else frame
    rows, columns = (np.arange(have) * want // have for have, want in zip(size, frame.shape[:2], strict=True))
    return (255 * frame[rows][:, columns]).astype(np.uint8)


def draw_position(picture: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> None:
    """A cross at a mean (x, y) and the 95 % ellipse of its covariance, in place."""
    angle = np.linspace(0.0, 2.0 * np.pi, 720)
    values, vectors = np.linalg.eigh(cov)
    axes = vectors * np.sqrt(np.maximum(values, 0.0) * chi2.ppf(LEVEL, 2))
    arm = np.linspace(-4.0, 4.0, 33)
    zero = np.zeros_like(arm)
    points = np.concatenate(
        [mean + np.stack([np.cos(angle), np.sin(angle)], 1) @ axes.T, mean + np.stack([arm, zero], 1), mean + np.stack([zero, arm], 1)]
    )
    x, y = np.rint(points).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < picture.shape[1]) & (y < picture.shape[0])
    picture[y[inside], x[inside]] = _MARK
