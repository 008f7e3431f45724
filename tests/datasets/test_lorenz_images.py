"""Lorenz images: what is drawn, and the noise."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.lorenz import transition
from datasets.lorenz_images import CAMERA_STD, PROCESS_VAR, SIZE, corrupt, generate, render


def test_place_and_size_of_the_spot_are_the_state() -> None:
    """Moments of the image: its centre and its spread, for spots that are well inside it."""
    states = np.array([[4.0, -5.0, 10.0], [-6.0, 3.0, 15.0]])
    images, pixels = render(states), np.arange(SIZE)
    assert images.shape == (2, SIZE, SIZE) and images.max() <= 1.0
    for image, (a, b, c) in zip(images, states, strict=True):
        across, down = image.sum(0) / image.sum(), image.sum(1) / image.sum()
        assert (across @ pixels, down @ pixels) == pytest.approx((13.5 + 0.45 * a, 13.5 + 0.4 * b), abs=1e-3)
        assert across @ (pixels - across @ pixels) ** 2 == pytest.approx((1.0 + 0.06 * c) ** 2, rel=2e-3)


def test_noise_is_of_the_shares_asked_for() -> None:
    rng = np.random.default_rng(0)
    grey = np.full((200, SIZE, SIZE), 0.5)
    seen = corrupt(grey, 0.3, rng)
    assert [(seen == level).mean() for level in (0, 255)] == pytest.approx([0.15, 0.15], abs=0.01)
    rest = seen[(seen > 0) & (seen < 255)] / 255
    assert (rest.mean(), rest.std()) == pytest.approx((0.5, CAMERA_STD), abs=2e-3)
    assert corrupt(np.zeros((1, SIZE, SIZE)), 0.0, rng).max() < 255


def test_series_follow_the_map_and_their_images_the_states() -> None:
    found = generate(6, 20, 0.0, np.random.default_rng(1))
    assert found.frames.shape == (6, 20, SIZE, SIZE) and found.frames.dtype == np.uint8
    assert np.var(found.states[:, 1:] - transition(found.states[:, :-1])) == pytest.approx(PROCESS_VAR, rel=0.3)
    assert np.abs(found.frames / 255 - render(found.states)).mean() < 0.1
    again = generate(6, 20, 0.0, np.random.default_rng(1))
    assert (again.frames == found.frames).all()


def test_a_share_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a share of pixels"):
        generate(1, 2, 1.0, np.random.default_rng(0))
