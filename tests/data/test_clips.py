"""Clips that stay in their files: the same windows, the same fit, and no more frames held than was said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_filter import LDMFilter
from ldm_filter.data import Clips, Windows, parse, read
from ldm_filter.data.clips import ClipWindows
from ldm_filter.data.video import clips, read_video
from ldm_filter.estimator.clips import drawn
from tests.optional import needs
from tests.test_video import SIZE, dot, write

needs("av")
LARGE = 1 << 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of 40 to 90 frames; of one some frames are dropped, of another two are repeated."""
    path = tmp_path_factory.mktemp("clips")
    for seed in range(6):
        frames = dot(40 + 10 * seed, seed)[0]
        frames[30:32] = frames[29] if seed == 2 else frames[30:32]
        stamps = [*range(20), *range(25, 75)] if seed == 3 else None
        write(path / f"clip{seed}.mkv", frames, stamps, codec="ffv1", options={"g": "10"})
    return path


def small(folder: Path, frames: int = 120) -> Clips:
    """Room for so many decoded frames."""
    return Clips(folder, memory=4 * frames * SIZE * SIZE)


def spans(found: Clips) -> torch.Tensor:
    return torch.stack([torch.arange(len(found)), torch.zeros_like(found.lengths), found.lengths], 1)


@pytest.mark.parametrize("memory", [LARGE, 4 * 120 * SIZE * SIZE])
def test_windows_are_those_of_the_clips_in_memory(folder: Path, memory: int) -> None:
    found, whole = Clips(folder, memory=memory), parse([read(path) for path in clips(folder)])[0]
    assert found.lengths.tolist() == whole.lengths.tolist() == [40, 50, 60, 75, 80, 90]
    lazy, held = ClipWindows(found, spans(found), 16, 0.6), Windows(whole, 16)
    for index in held.index(torch.Generator().manual_seed(1), shuffle=True).split(7):
        for mine, theirs in zip(lazy.take(index)[:3], held.take(index)[:3], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_an_epoch_in_blocks_takes_the_same_windows_and_decodes_each_piece_about_once(folder: Path) -> None:
    found = small(folder)
    lazy, held = ClipWindows(found, spans(found), 16, 0.6), Windows(parse([read(path) for path in clips(folder)])[0], 16)
    found.decoded = found.most_held = 0
    mine, theirs = lazy.index(torch.Generator().manual_seed(1), True), held.index(torch.Generator().manual_seed(1), True)
    assert mine.shape == theirs.shape
    steps = torch.zeros(len(found), 90, dtype=torch.bool)
    for series, start in mine.tolist():
        steps[series, start : start + 16] = True
    assert steps.sum(1).tolist() == found.lengths.tolist()
    assert len(list(lazy.batches(8, torch.Generator().manual_seed(1)))) == len(held.epoch(8, torch.Generator().manual_seed(1)))
    assert found.most_held <= 120
    assert int(found.pieces().sum()) <= found.decoded <= 1.6 * int(found.pieces().sum())


def fitted(data: object, **arguments: object) -> LDMFilter:
    return LDMFilter(4, latent_dim=2, readout="linear", window=16, encoder="mlp").fit(data, epochs=4, batch_size=8, progress=False, **arguments)  # type: ignore[arg-type]


def test_a_fit_with_room_for_all_is_that_in_memory(folder: Path) -> None:
    frames, found = [read(path) for path in clips(folder)], Clips(folder, memory=LARGE)
    mine, theirs = fitted(found), fitted(frames)
    for name, value in theirs.model_.state_dict().items():
        torch.testing.assert_close(mine.model_.state_dict()[name], value, rtol=1e-12, atol=0)
    assert found.decoded == int(found.pieces().sum())
    assert mine.labels_.attrs["step"] == pytest.approx(0.04)
    np.testing.assert_array_equal(mine.filter(frames[0]).reconstruction_mean, theirs.filter(frames[0]).reconstruction_mean)


def test_a_fit_with_little_room_holds_few_frames_and_is_as_good(folder: Path) -> None:
    frames, found = [read(path) for path in clips(folder)], small(folder, 200)
    lazily, at_once = fitted(found), fitted(frames)
    assert found.most_held <= 200 < int(found.lengths.sum())
    sample = drawn(found, 0.1, 16, 0, torch.float32).training.sequences.values
    assert sample.shape[0] * sample.shape[1] * SIZE * SIZE * 5 <= 0.6 * found.memory
    mine, theirs = (np.mean([float(abs(model.filter(clip).reconstruction_mean - clip).mean()) for clip in frames]) for model in (lazily, at_once))
    assert mine < 1.2 * theirs


def test_held_out_clips_may_be_files_too(folder: Path) -> None:
    found = Clips([folder / "clip0.mkv", folder / "clip1.mkv"])
    held = fitted(found, validation=Clips(folder / "clip2.mkv"))
    same = fitted(found, validation=read(folder / "clip2.mkv"))
    assert held.history_.epochs[0]["validation_loss"] == same.history_.epochs[0]["validation_loss"]
    assert fitted(found, validation=None).history_.epochs[0].keys().isdisjoint({"validation_loss"})


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="room for 31 frames"):
        small(folder, 31)
    with pytest.raises(ValueError, match="targets is given, but data is Clips"):
        LDMFilter(2).fit(Clips(folder), targets=np.zeros((40, 1)), progress=False)
    with pytest.raises(TypeError, match="one clip at a time"):
        fitted(Clips(folder)).filter(Clips(folder))
    write(folder.parent / "large.mkv", dot(10)[0], scale=2)
    with pytest.raises(ValueError, match="frames of 2 sizes"):
        Clips([folder, folder.parent / "large.mkv"])
    for size in ((0, 24), (24,), (1.5, 24)):
        with pytest.raises(ValueError, match="two positive whole numbers of pixels"):
            Clips(folder, size=size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two positive whole numbers of pixels"):
        read_video(folder.parent / "large.mkv", size=(0, 24))
    with pytest.raises(ValueError, match="paths is empty"):
        Clips([])
