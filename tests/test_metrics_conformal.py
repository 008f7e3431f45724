"""Conformal widths: the rank by hand, the level on new data of a heavy-tailed kind, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from ldm_filter import metrics


def test_the_level_holds_on_new_errors_that_are_no_gaussian() -> None:
    random = np.random.default_rng(0)
    mean, std = random.normal(size=(2000, 3, 2)), random.uniform(0.5, 2.0, size=(2000, 3, 2))
    truth = mean + std * random.standard_t(2, size=mean.shape)
    for level in (0.5, 0.8, 0.95):
        width = metrics.conformal_widths(mean[:1000], std[:1000], truth[:1000], level)
        assert width.shape == (3, 2)
        inside = np.abs(truth[1000:] - mean[1000:]) <= width * std[1000:]
        assert inside.mean() == pytest.approx(level, abs=0.02)


def test_unknown_truths_do_not_count() -> None:
    truth = np.array([[1.0, 1.0], [np.nan, 2.0], [3.0, 3.0], [2.0, np.nan]])
    np.testing.assert_array_equal(metrics.conformal_widths(np.zeros((4, 2)), np.full((4, 2), 0.5), truth, 0.5), [4.0, 4.0])
    np.testing.assert_array_equal(metrics.conformal_widths(np.zeros((4, 2)), np.ones((4, 2)), truth, 0.99), [3.0, 3.0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.zeros(3), np.ones(3), np.zeros(2), 0.5), "shapes"),
        ((np.zeros(3), np.ones(3), np.zeros(3), 1.0), "level is 1.0"),
        ((np.zeros(3), np.zeros(3), np.zeros(3), 0.5), "std positive"),
        ((np.zeros((2, 1)), np.ones((2, 1)), np.full((2, 1), np.nan), 0.5), "NaN in all"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        metrics.conformal_widths(*arguments)
