"""Lorenz images behind salt-and-pepper noise as a benchmark task: settings, data, and how an estimate of the state is judged.

    train   videos, with the states beside them where the method is supervised     (a twentieth of them decides when training is best,
            and, with their states, says what scaled and turned covariances are to be)
    test    fresh videos (every figure)

The conditions are k, the share of pixels that are salt or pepper. Figures are of the filtered state in its own units, ``db`` its squared error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration import calibration
from benchmarks.dot_tasks import Published, known
from datasets.lorenz_images import LorenzImages, generate

__all__ = ["CONDITIONS", "PUBLISHED", "SETTINGS", "Bench", "Settings", "bench", "judge", "settings_of"]


@dataclass(frozen=True)
class Settings:
    """The task. The defaults are those of the ``cpu`` budget.

    Attributes:
        warm_up, epochs, batch_size, learning_rate, dynamics_rate, window: of LDMFilter's training with states.
        state_dim, latent_dim, free_epochs: of the one without. readout: series whose states its read-out is fitted on.
        series, test, steps: sizes. baseline: states and principal components of the classical filter.
        particles: of the oracle; ``first`` at the first step, of whose state nothing is known.
        device: of LDMFilter.
    """

    warm_up: int = 10
    epochs: int = 16
    batch_size: int = 32
    learning_rate: float = 3e-3
    dynamics_rate: float = 10.0
    window: int = 50
    state_dim: int = 64
    latent_dim: int = 24
    free_epochs: int = 20
    readout: int = 100
    series: int = 1000
    test: int = 50
    steps: int = 100
    baseline: tuple[int, int] = (64, 24)
    particles: int = 1000
    first: int = 20_000
    device: str = "cpu"


SETTINGS: dict[str, Settings] = {"lorenz-images": Settings()}
CONDITIONS: dict[str, tuple[str, ...]] = {"lorenz-images": ("k 0.5", "k 0.1", "k 0.01")}


def settings_of(task: str, budget: str) -> Settings:
    """Settings of the task: ``smoke`` shows within seconds that all runs, ``cpu`` makes the figures, ``full`` takes more data and epochs.

    Raises:
        ValueError: an unknown task or budget.
    """
    chosen = known(SETTINGS, task, budget)
    if budget == "smoke":
        few = {"series": 24, "test": 3, "steps": 20, "window": 20, "readout": 16, "batch_size": 8, "warm_up": 1, "epochs": 1}
        return replace(chosen, **few, free_epochs=1, state_dim=8, latent_dim=4, baseline=(4, 4), particles=200, first=2000)  # type: ignore[arg-type]
    if budget == "full":
        return replace(chosen, series=4000, warm_up=40, epochs=60, free_epochs=60, device="auto")
    return chosen


# Latent-KalmanNet: Buchnik et al., IEEE Trans. Signal Process. 72 (2024), as typed into a plotting script by others, so indicative; images of another
# renderer, without camera noise.
def _of_latent_kalmannet(name: str, figures: str) -> tuple[Published, ...]:
    each = zip(CONDITIONS["lorenz-images"], figures.split(), strict=True)
    return tuple(Published(f"{name}; other images, indicative", db=figure, condition=condition, readout="supervised") for condition, figure in each)


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "lorenz-images": (
        *_of_latent_kalmannet("Latent-KalmanNet: knows the equations", "-1.91 -4.92 -7.20"),
        *_of_latent_kalmannet("RKN", "-1.0 -4.2 -6.9"),
        *_of_latent_kalmannet("encoder, prior and EKF: knows the equations", "0.51 -3.0 -6.31"),
        *_of_latent_kalmannet("encoder alone", "5.8 -0.5 -3.7"),
    )
}


class Bench:
    """The data of one run; ``share`` k is for the method that knows the generator."""

    def __init__(self, task: str, condition: str, settings: Settings, seed: int) -> None:
        if condition not in CONDITIONS[task]:
            raise ValueError(f"condition is {condition!r}, expected one of {', '.join(map(repr, CONDITIONS[task]))}")
        self.settings, self.seed, self.share = settings, seed, float(condition.removeprefix("k "))
        train, test = (np.random.default_rng([seed, 3000 + number]) for number in (0, 1))
        self.train: LorenzImages = generate(settings.series, settings.steps, self.share, train)
        self.test: LorenzImages = generate(settings.test, settings.steps, self.share, test)


@lru_cache(maxsize=1)
def bench(task: str, condition: str, budget: str, seed: int) -> Bench:
    """The data of a task, condition, budget and seed; the last is kept for the next method."""
    return Bench(task, condition, settings_of(task, budget), seed)


def judge(mean: NDArray, cov: NDArray, truth: NDArray) -> dict[str, float]:
    """All figures of a Gaussian estimate of the state, mean ``(series, steps, 3)`` and cov ``(series, steps, 3, 3)``."""
    figures = calibration(mean, cov, truth)
    return figures | {"db": 10.0 * float(np.log10(figures["mse"]))}
