"""state_dim="auto" finds the size that made the data, and says what it tried."""

from __future__ import annotations

import numpy as np
import pytest

from ldm_filter import LDMFilter
from ldm_filter.estimator.selection import Size, compare_sizes, smallest_good


def waves(frequencies: int, seed: int = 0, steps: int = 600) -> np.ndarray:
    """Noisy rotations, two states each, mixed into six channels."""
    rng = np.random.default_rng(seed)
    h, out = np.zeros(2 * frequencies), []
    angle = np.array([0.25, 0.9])[:frequencies]
    for _ in range(steps):
        pairs = h.reshape(-1, 2)
        turned = np.stack([np.cos(angle) * pairs[:, 0] - np.sin(angle) * pairs[:, 1], np.sin(angle) * pairs[:, 0] + np.cos(angle) * pairs[:, 1]], 1)
        h = 0.99 * turned.ravel() + 0.14 * rng.normal(size=2 * frequencies)
        out.append(h)
    return np.array(out) @ rng.normal(size=(2 * frequencies, 6)) + 0.3 * rng.normal(size=(steps, 6))


@pytest.mark.parametrize(("frequencies", "sizes"), [(1, {2}), (2, {4, 6, 8})])
def test_auto_finds_the_size(frequencies: int, sizes: set[int]):
    """Two frequencies need four states; more do no harm that short trainings could tell."""
    model = LDMFilter("auto", readout="linear", window=60, latent_dim=None).fit(waves(frequencies), epochs=6, validation=0.3, progress=False)
    assert model.state_dim in sizes
    tried = {size.state_dim: size for size in model.sizes_}
    assert min(tried) == 2
    assert min(size.behind for size in tried.values()) == 0.0
    assert model.filter(waves(frequencies)[:20]).filtered_mean.shape == (20, model.state_dim)
    assert model.get_params()["state_dim"] == model.state_dim


def test_nothing_held_out_is_refused():
    with pytest.raises(ValueError, match="held out"):
        LDMFilter("auto").fit(waves(1)[:100], epochs=1, validation=None, progress=False)
    with pytest.raises(ValueError, match="'auto'"):
        LDMFilter("best").fit(waves(1)[:100])


def test_a_size_without_gain_is_not_taken():
    assert smallest_good([Size(2, -1.0, 0.3, 0.1), Size(4, -0.71, 0.01, 0.001), Size(6, -0.7, 0.0, 0.0)]) == 4


def test_the_estimator_itself_is_not_changed():
    model = LDMFilter("auto", readout="linear", window=60)
    fit = {"inputs": None, "validation": 0.3, "validation_inputs": None, "times": None, "epochs": 3, "batch_size": None}
    sizes = compare_sizes(model, waves(1, steps=200), candidates=(2, 4), **fit)
    assert [size.state_dim for size in sizes] == [2, 4]
    assert model.state_dim == "auto" and not hasattr(model, "model_")
