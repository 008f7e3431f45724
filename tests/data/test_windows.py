"""Windows cover every step, never mix series, and are the same for the same generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_filter.data import parse
from ldm_filter.data.windows import Windows, split
from ldm_filter.types import Sequences


def numbered(lengths: list[int]) -> Sequences:
    """Series s holds 1000 s + t + 1 at step t, so that every entry tells where it comes from (and none is 0, the padding)."""
    return parse([1000.0 * s + np.arange(1.0, steps + 1) for s, steps in enumerate(lengths)])[0]


def seen(batches: list[Sequences]) -> list[float]:
    return [float(value) for batch in batches for value in batch.values[batch.observed]]


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 20), share=st.floats(0, 0.99), shuffle=st.booleans(), seed=st.integers(0, 99))
def test_windows_cover_every_step_of_every_series(lengths, length, share, shuffle, seed):
    sequences = numbered(lengths)
    windows = Windows(sequences, length, overlap=int(share * length))
    batches = list(windows.batches(4, torch.Generator().manual_seed(seed), shuffle))
    assert set(seen(batches)) == set(sequences.values[sequences.observed].tolist())
    for batch in batches:
        assert batch.values.shape[1] == windows.length == min(length, max(lengths))
        for values, observed, steps in zip(*batch[:3], strict=True):
            assert bool(observed[:steps].all())
            assert not bool(observed[steps:].any())
            assert not bool(values[steps:].any())
            assert bool((values[:steps].diff(dim=0) == 1).all())  # consecutive steps of one series


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 20), batch_size=st.integers(1, 9))
def test_an_epoch_has_a_fixed_number_of_even_batches(lengths, length, batch_size):
    windows, generator = Windows(numbered(lengths), length), torch.Generator().manual_seed(0)
    sizes = [[len(index) for index in windows.epoch(batch_size, generator)] for _ in range(3)]
    assert sizes[0] == sizes[1] == sizes[2]
    assert max(sizes[0]) <= batch_size
    assert max(sizes[0]) - min(sizes[0]) <= 1


def test_order_and_offsets_come_from_the_generator():
    windows = Windows(numbered([50, 7]), 10)
    first, again, other = (windows.index(torch.Generator().manual_seed(seed), shuffle=True) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    epochs = [windows.index(generator, shuffle=True) for generator in [torch.Generator().manual_seed(2)] for _ in range(8)]
    assert len({tuple(sorted(start for series, start in epoch.tolist() if series == 0)) for epoch in epochs}) > 3


def test_plain_cover_is_in_order_and_aligned_to_the_end():
    assert Windows(numbered([10, 3, 8]), 4).index().tolist() == [[0, 0], [0, 4], [0, 6], [1, 0], [2, 0], [2, 4]]
    assert Windows(numbered([10]), 4, overlap=2).index().tolist() == [[0, 0], [0, 2], [0, 4], [0, 6]]
    assert Windows(numbered([10, 3])).index().tolist() == [[0, 0], [1, 0]]


def test_windows_of_another_length_are_of_the_same_series():
    pairs = Windows(numbered([10, 3, 8]), 2)
    long = pairs.recut(4)
    assert long.index().tolist() == Windows(numbered([10, 3, 8]), 4).index().tolist() and long.sequences is pairs.sequences
    assert (pairs.length, pairs.stride, long.recut(None).length) == (2, 2, 10)
    with pytest.raises(ValueError, match="`length` is 0"):
        pairs.recut(0)


def test_companions_are_cut_alike():
    sequences = numbered([10, 6])
    windows = Windows(sequences, 4)
    index = windows.index()
    torch.testing.assert_close(windows.gather(sequences.values * 2, index), windows.take(index).values * 2)


def test_frames_are_cut_alike():
    video = np.random.default_rng(0).normal(size=(2, 7, 3, 4))
    batch = next(Windows(parse(video, dtype=torch.float64)[0], 5).batches(8, shuffle=False))
    np.testing.assert_array_equal(batch.values.numpy(), np.concatenate([video[:1, :5], video[:1, 2:], video[1:, :5], video[1:, 2:]]))


def test_the_data_is_not_changed():
    sequences = numbered([10, 6])
    before = sequences.values.clone()
    for batch in Windows(sequences, 10).batches(2, torch.Generator().manual_seed(0)):
        batch.values.zero_()
    torch.testing.assert_close(sequences.values, before)


def test_bad_arguments():
    sequences = numbered([10])
    with pytest.raises(ValueError, match="`length` is 0"):
        Windows(sequences, 0)
    for overlap in (-1, 4):
        with pytest.raises(ValueError, match="`overlap`"):
            Windows(sequences, 4, overlap=overlap)
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        next(Windows(sequences, 4).batches(0))
    for fraction in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match="`fraction`"):
            split(sequences, fraction)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(4, 30), min_size=1, max_size=8), fraction=st.floats(0.05, 0.5), seed=st.integers(0, 9))
def test_split_keeps_every_step_once(lengths, fraction, seed):
    sequences = numbered(lengths)
    parts = split(sequences, fraction, torch.Generator().manual_seed(seed))
    assert sorted(seen(list(parts))) == sorted(sequences.values[sequences.observed].tolist())
    for part in parts:
        assert part.values.shape[1] == int(part.lengths.max())
        assert int(part.observed.sum()) == int(part.lengths.sum())
        assert not bool(part.values[~part.observed].any())


def test_split_by_series_is_random_and_by_time_is_the_end():
    many = numbered([10] * 20)
    chosen = [split(many, 0.2, torch.Generator().manual_seed(seed))[1].values[:, 0, 0].tolist() for seed in (0, 0, 1)]
    assert len(chosen[0]) == 4
    assert chosen[0] == chosen[1] != chosen[2]
    train, validation = split(numbered([10, 20]), 0.2)
    assert train.lengths.tolist() == [8, 16]
    assert validation.values[0, :2, 0].tolist() == [9.0, 10.0]
    assert validation.values[1, :, 0].tolist() == [1017.0, 1018.0, 1019.0, 1020.0]


def test_split_refuses_short_series():
    with pytest.raises(ValueError, match=r"a series of 3 steps.*`validation`"):
        split(numbered([3]), 0.2)
