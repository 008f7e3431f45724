"""Video files: real times, what was dropped or repeated is missing, and states drawn into the picture."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ldm_filter import LDMFilter
from ldm_filter.cli import main
from ldm_filter.data import Clips
from ldm_filter.data.io import read
from ldm_filter.data.video import Frame, clips, extent, frame_step, frames_from, on_grid, read_video, video_frames
from ldm_filter.estimator import video as estimator_video
from ldm_filter.estimator.video import filter_video, filtered_frames
from ldm_filter.plots.overlay import draw_position, position_of, write_overlay
from tests.optional import needs

av = needs("av")
SIZE, RATE = 16, 25


def dot(steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Grey frames of a dot on a circle, and its position (x, y)."""
    angle = 0.3 * np.arange(steps) + seed
    position = 7.5 + 4.0 * np.stack([np.cos(angle), np.sin(angle)], 1)
    y, x = np.mgrid[:SIZE, :SIZE]
    square = (x - position[:, 0, None, None]) ** 2 + (y - position[:, 1, None, None]) ** 2
    noise = np.random.default_rng(seed).normal(size=(steps, SIZE, SIZE))
    return np.clip(255 * np.exp(-square / 6) + 8 * noise, 0, 255).astype(np.uint8), position


def write(
    path: Path, frames: np.ndarray, stamps: list[int] | None = None, scale: int = 1, codec: str = "ffv1", options: dict[str, str] | None = None
) -> Path:
    """A clip, lossless if nothing else is said; stamps are numbers of frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = SIZE * scale, SIZE * scale, "gray" if codec == "ffv1" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, RATE)
        for stamp, picture in zip(range(len(frames)) if stamps is None else stamps, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.repeat(scale, 0).repeat(scale, 1)), format="gray")
            frame.pts, frame.time_base = stamp, Fraction(1, RATE)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips")
    for seed in range(3):
        write(path / f"clip{seed}.mkv", dot(60, seed)[0])
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LDMFilter:
    data = [read_video(path) for path in clips(folder)]
    fitted = LDMFilter(4, readout="linear", window=30, encoder="mlp").fit(data, epochs=6, progress=False)
    targets = [xr.DataArray(dot(60, seed)[1], {"time": item.time, "channel": ["x", "y"]}, ("time", "channel")) for seed, item in enumerate(data)]
    return fitted.fit_readout(data, targets)


def test_frames_times_and_what_is_missing(tmp_path: Path):
    frames, _ = dot(10)
    frames[4] = frames[3]
    path = write(tmp_path / "gaps.mkv", frames, [0, 1, 2, 3, 4, 5, 9, 10, 11, 12])
    clip = read_video(path)
    assert clip.dims == ("time", "y", "x")
    np.testing.assert_allclose(clip.time, np.arange(13) / RATE, atol=1e-9)
    missing = np.isnan(clip.to_numpy()).all((1, 2))
    assert missing.nonzero()[0].tolist() == [4, 6, 7, 8]
    np.testing.assert_allclose(clip[3] * 255, frames[3], atol=1e-3)
    assert not np.isnan(clip[~missing]).any()
    xr.testing.assert_equal(read(path), clip)


def test_a_recording_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path):
    """As a camera leaves it whose program was killed: no end of the file, no length in its head."""
    whole = write(tmp_path / "whole.mkv", dot(60)[0])
    part = tmp_path / "part.mkv"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    clip = read_video(part)
    assert 20 < len(clip) < 60
    np.testing.assert_array_equal(clip[:20], read_video(whole)[:20])
    lazy = Clips(part)
    values, seen = lazy.read(0, 0, 20)
    np.testing.assert_array_equal(values, np.rint(clip[:20] * 255))
    assert seen.all()
    assert abs(int(lazy.lengths[0]) - len(clip)) <= 1


def test_resized_and_in_colour(tmp_path: Path):
    path = write(tmp_path / "large.mkv", dot(4)[0], scale=4)
    assert read_video(path).shape == (4, 64, 64)
    small = read_video(path, (16, 16))
    np.testing.assert_allclose(small * 255, dot(4)[0], atol=12)
    colour = read_video(path, (16, 16), colour=True)
    assert colour.dims == ("time", "y", "x", "colour")
    np.testing.assert_allclose(colour.mean("colour"), small, atol=0.03)
    assert next(iter(video_frames(path, (16, 16), original=True))).original.shape == (64, 64, 3)


def test_two_frames_at_one_place_are_one():
    values = np.zeros((2, 2), np.float32)
    placed = list(on_grid([Frame(0.0, values), Frame(0.001, None), Frame(0.1, values)], 0.04))
    assert [frame.time for frame in placed] == pytest.approx([0.0, 0.04, 0.08])
    assert [frame.values is None for frame in placed] == [False, True, False]


@pytest.mark.parametrize(("codec", "options"), [("ffv1", {}), ("mpeg4", {"g": "12", "bf": "2"})])
def test_frames_from_the_middle_are_those_of_the_whole(tmp_path: Path, codec: str, options: dict[str, str]):
    path = write(tmp_path / "long.mkv", dot(60)[0], codec=codec, options=options)
    whole = list(video_frames(path))
    origin, seconds, shape = extent(path)
    assert (round(seconds / frame_step(path)) + 1, shape) == (60, (16, 16))
    for start in (0, 1, 12, 31, 59):
        rest = {round(frame.time * RATE): frame for frame in frames_from(path, origin, start / RATE)}
        assert max(rest) == 59
        for place in range(start + 1, 60):
            np.testing.assert_array_equal(rest[place].values, whole[place].values, err_msg=str(place))


def test_a_stream_of_frames_equals_the_batch(model: LDMFilter, folder: Path, tmp_path: Path):
    path = write(tmp_path / "gap.mkv", dot(30, 1)[0], [*range(15), *range(20, 35)])
    found, want = filter_video(model, path), model.filter(read_video(path))
    assert found.sizes["time"] == 35
    np.testing.assert_array_equal(found.observed, want.observed)
    for name in ("filtered_mean", "filtered_cov", "target_mean", "target_cov"):
        np.testing.assert_allclose(found[name], want[name], rtol=2e-3, atol=2e-3, err_msg=name)
    truth = 7.5 + 4.0 * np.stack([np.cos(0.3 * np.arange(15) + 1), np.sin(0.3 * np.arange(15) + 1)], 1)
    assert np.abs(found.target_mean[:15] - truth).mean() < 1.0


def test_a_clip_is_filtered_while_it_is_read(model: LDMFilter, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """No frame is decoded before the estimate of the one before is out."""
    decoded = []
    monkeypatch.setattr(estimator_video, "video_frames", lambda *given: (decoded.append(frame.time) or frame for frame in video_frames(*given)))
    for count, _ in enumerate(filtered_frames(model, folder / "clip0.mkv"), 1):
        assert len(decoded) == count
    assert count == 60


def test_overlay_marks_the_position(model: LDMFilter, folder: Path, tmp_path: Path):
    large = write(tmp_path / "large.mkv", dot(30, 2)[0], scale=8)
    out = tmp_path / "out.mp4"
    assert write_overlay(model, large, out) == 30
    drawn = [frame.original for frame in video_frames(out, original=True)]
    assert drawn[0].shape == (128, 128, 3)
    for step, seen in enumerate(filtered_frames(model, large)):
        mean, _ = position_of(seen, model.target_names_)
        x, y = np.rint((mean + 0.5) * 8 - 0.5).astype(int)
        if step == 20:
            near = drawn[step][max(0, y - 4) : y + 5, max(0, x - 4) : x + 5].astype(int)
            assert (near[..., 0] - near[..., 2]).max() > 40  # the grey clip has no red of its own


def test_ellipse_lies_where_the_covariance_says():
    picture = np.zeros((100, 100, 3), np.uint8)
    draw_position(picture, np.array([50.0, 40.0]), np.diag([25.0, 4.0]))
    y, x = np.nonzero(picture.any(-1))
    radius = np.sqrt(5.991)
    assert x.max() - 50 == round(5 * radius)
    assert y.max() - 40 == round(2 * radius)


def test_without_a_readout_the_reconstruction_is_beside(folder: Path, tmp_path: Path):
    model = LDMFilter(4, readout="linear", window=30, encoder="mlp").fit([read_video(path) for path in clips(folder)], epochs=1, progress=False)
    write_overlay(model, folder / "clip0.mkv", tmp_path / "out.mp4")
    assert next(iter(video_frames(tmp_path / "out.mp4", original=True))).original.shape == (16, 32, 3)


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "model.safetensors"
    main(
        [
            "fit",
            str(folder),
            "--size",
            "12",
            "12",
            "--state-dim",
            "2",
            "--epochs",
            "1",
            "--window",
            "20",
            "--readout",
            "linear",
            "--out",
            str(file),
            "--quiet",
        ]
    )
    assert LDMFilter.load(file).labels_.attrs["event_shape"] == (12, 12)
    states, drawn = tmp_path / "states.nc", tmp_path / "drawn.mp4"
    main(["filter", str(folder / "clip1.mkv"), "--model", str(file), "--out", str(states), "--overlay", str(drawn)])
    assert read(states).filtered_mean.shape == (60, 2)
    assert f"wrote {drawn}: 60 frames" in capsys.readouterr().out
    main(["filter", str(folder), "--model", str(file), "--out", str(states)])
    assert sorted(item.name for item in tmp_path.glob("states-*")) == ["states-clip0.nc", "states-clip1.nc", "states-clip2.nc"]


def test_refusals(model: LDMFilter, tmp_path: Path):
    (tmp_path / "no.mp4").write_bytes(b"this is no video")
    with pytest.raises(ValueError, match="could not be read"):
        read_video(tmp_path / "no.mp4")
    with pytest.raises(FileNotFoundError):
        read_video(tmp_path / "none.mp4")
    with pytest.raises(FileNotFoundError, match="holds no video"):
        (tmp_path / "empty").mkdir()
        clips(tmp_path / "empty")
    vector = LDMFilter(2, readout="linear").fit(np.random.default_rng(0).normal(size=(60, 2)), epochs=1, progress=False)
    with pytest.raises(ValueError, match="channels, not of frames"):
        filter_video(vector, tmp_path / "no.mp4")
