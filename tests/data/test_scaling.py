"""Masked statistics against NumPy's nan-functions, and the corners where a division by zero waits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm_filter.data import parse, scaling
from ldm_filter.data.scaling import statistics


def holes(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    array = rng.normal(5.0, 3.0, size=shape)
    array[rng.random(shape) < 0.3] = np.nan
    return array


@pytest.mark.parametrize("chunk", [8, 1 << 22])
def test_vectors_per_channel(monkeypatch, chunk):
    monkeypatch.setattr(scaling, "_CHUNK", chunk)
    array = holes((4, 9, 3))
    mean, std = statistics(parse(array, dtype=torch.float64)[0])
    np.testing.assert_allclose(mean, np.nanmean(array, axis=(0, 1)), rtol=1e-13)
    np.testing.assert_allclose(std, np.nanstd(array, axis=(0, 1)), rtol=1e-13)
    assert mean.dtype == std.dtype == torch.float64


def test_padding_does_not_count():
    arrays = [holes((9, 2), 1), holes((4, 2), 2)]
    mean, std = statistics(parse(arrays, dtype=torch.float64)[0])
    joined = np.concatenate(arrays)
    np.testing.assert_allclose(mean, np.nanmean(joined, axis=0), rtol=1e-13)
    np.testing.assert_allclose(std, np.nanstd(joined, axis=0), rtol=1e-13)


@pytest.mark.parametrize("colours", [(), (3,)])
def test_frames_have_a_mean_per_pixel_and_one_scale(colours):
    array = holes((3, 20, 4, 5, *colours))
    mean, std = statistics(parse(array, dtype=torch.float64)[0])
    pixel_mean = np.nanmean(array, axis=(0, 1))
    np.testing.assert_allclose(mean, pixel_mean, rtol=1e-13)
    np.testing.assert_allclose(std, np.sqrt(np.nanmean((array - pixel_mean) ** 2, axis=(0, 1, 2, 3))), rtol=1e-13)
    assert std.shape == colours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e8])
def test_constant_channels_have_scale_one(dtype, value):
    array = np.stack([np.full(1001, value), np.arange(1001.0)], axis=1)
    mean, std = statistics(parse(array, dtype=dtype)[0])
    assert std[0] == 1.0
    assert std[1] == pytest.approx(np.arange(1001.0).std())
    assert mean[0] == pytest.approx(value, rel=1e-6)


def test_small_signals_are_no_constants():
    array = 1e-12 * np.arange(10.0)[:, None]
    assert statistics(parse(array)[0])[1][0] == pytest.approx(1e-12 * np.arange(10.0).std(), rel=1e-6)


def test_a_pixel_never_seen_is_finite():
    array = holes((1, 20, 2, 2))
    array[..., 0, 0] = np.nan
    mean, std = statistics(parse(array, dtype=torch.float64)[0])
    assert mean[0, 0] == pytest.approx(np.nanmean(array))
    assert bool(torch.isfinite(mean).all())
    assert bool(torch.isfinite(std))


def test_a_channel_never_seen_is_an_error():
    array = holes((1, 20, 2))
    array[..., 1] = np.nan
    with pytest.raises(ValueError, match=r"no observed entry in channel\(s\) \[1\]"):
        statistics(parse(array)[0])
