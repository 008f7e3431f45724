"""A pendulum's video thinned at random to half of its frames is filtered about as well as the whole."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.pendulum import Pendulum, Simulator, Task, generate
from ldm_filter import LDMFilter

STEP, STEPS, NOISE = 0.02, 80, 0.3


def videos(count: int, seed: int) -> tuple[np.ndarray, Pendulum]:
    """Frames in [0, 1] behind noise in every pixel, and the truth."""
    drawn = generate(Task(Simulator(dt=STEP), distractor=None, steps=STEPS), count, seed)
    noise = NOISE * np.random.default_rng(seed + 1000).normal(size=drawn.frames.shape)
    return (drawn.frames / 255.0 + noise).astype(np.float32), drawn


def errors(seed: int, count: int = 240, epochs: int = 12) -> tuple[float, float]:
    """Root mean squared error of (sin, cos) at the frames that are kept: filtered with all frames, and with those alone."""
    frames, truth = videos(count, 10 * seed)
    stamps = STEP * np.arange(STEPS)
    model = LDMFilter(state_dim=16, latent_dim=6, dynamics="continuous", encoder="mlp", seed=seed)
    model.fit(frames, times=stamps, epochs=epochs, progress=False).fit_readout(frames[:80], truth.target[:80], kind="mlp", times=stamps)
    frames, truth = videos(40, 10 * seed + 1)
    random = np.random.default_rng(seed)
    kept = np.stack([np.sort(random.permutation(STEPS)[: STEPS // 2]) for _ in frames])
    whole = model.filter(frames, times=stamps).target_mean.to_numpy()
    parts = model.filter([frame[rows] for frame, rows in zip(frames, kept, strict=True)], times=[stamps[rows] for rows in kept])
    wanted = np.take_along_axis(truth.target, kept[..., None], 1)
    thinned = np.stack([part.target_mean.to_numpy() for part in parts])
    full = np.take_along_axis(whole, kept[..., None], 1)
    return tuple(float(np.sqrt(np.mean((found - wanted) ** 2))) for found in (full, thinned))  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_half_of_the_frames_cost_at_most_a_quarter_of_the_error(seed: int) -> None:
    full, thinned = errors(seed)
    print(f"\nseed {seed}: (sin, cos) RMSE {full:.4f} with all frames, {thinned:.4f} with half of them: {thinned / full:.3f} times")
    assert full < 0.3
    assert thinned < 1.25 * full
