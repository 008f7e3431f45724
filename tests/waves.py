"""Oscillations in noisy channels, which a small filter learns within seconds."""

from __future__ import annotations

import numpy as np
import pandas as pd


def waves(steps: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Two oscillations mixed into noisy channels."""
    rng = np.random.default_rng(seed)
    t = np.arange(steps) + rng.integers(0, 100)
    sources = np.stack([np.sin(t / 5), np.cos(t / 5), np.sin(t / 2.3), np.cos(t / 2.3)], axis=1)
    mixing = np.random.default_rng(1).normal(size=(4, channels))
    return sources @ mixing + 0.2 * rng.normal(size=(steps, channels))


def frame(steps: int, seed: int = 0) -> pd.DataFrame:
    index = pd.date_range("2025-03-29", periods=steps, freq="1h", tz="Europe/Berlin", name="time")
    return pd.DataFrame(waves(steps, seed), index=index, columns=["a", "b", "c"])
