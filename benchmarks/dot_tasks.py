"""The dot videos as benchmark tasks: every setting that may be tuned, and the data of a run (judged in ``benchmarks.dot_judge``).

    train     frames only                                          (the filter; a tenth of them decides when training is best)
    read-out  other training sequences, with positions             (position = W h + b + e, least squares)
    test      fresh sequences, seen by nothing before              (every figure)

The same three for every method; the exact Bayes filter of ``benchmarks.oracles`` sees the test sequences alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.oracles import bayes_filter
from datasets.dots import Dots, generate, split_seed

__all__ = [
    "BUDGETS",
    "PUBLISHED",
    "SETTINGS",
    "VARIANTS",
    "Bench",
    "Published",
    "Settings",
    "bench",
    "known",
    "settings_of",
]


@dataclass(frozen=True)
class Settings:
    """One task: model, training and data. The defaults are those of the ``cpu`` budget.

    Attributes:
        state_dim, latent_dim, noise, dynamics, encoder: of LDMFilter.
        settle_within: of LDMFilter, with ``noise="jump"``.
        epochs, batch_size, learning_rate, dynamics_rate: of its training.
        series: training sequences. steps: frames in each sequence.
        readout, test: sequences of the read-out's fit and of the test.
        baseline: states and principal components of the classical filter; the best of those tried on validation sequences.
        mlp: also a non-linear read-out.
        timed: also the R2 after 60 s of training.
        device: of LDMFilter.
    """

    state_dim: int
    latent_dim: int
    noise: str = "constant"
    dynamics: str = "linear"
    encoder: str = "auto"
    settle_within: int | None = None
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 3e-3
    dynamics_rate: float = 10.0
    series: int = 800
    steps: int = 100
    readout: int = 128
    test: int = 64
    baseline: tuple[int, int] = (10, 10)
    mlp: bool = False
    timed: bool = False
    device: str = "cpu"


SETTINGS: dict[str, Settings] = {
    "figure8": Settings(10, 5, timed=True),
    "square": Settings(10, 10, baseline=(12, 12)),
    # More latents than coordinates: the encoder then gives harmonics of the angle, in which a linear-Gaussian state can hold a circle.
    "circular-input-noise": Settings(6, 6, noise="input", epochs=8, dynamics_rate=5.0, series=1600, baseline=(4, 4), mlp=True),
    "circular-constant-noise": Settings(4, 2, baseline=(4, 4)),
    "jump": Settings(2, 2, noise="jump", settle_within=10, epochs=8, dynamics_rate=5.0, baseline=(4, 4), mlp=True),
    # The noise level tells of the position as much as the dot does where both are weak; harmonics of the angle as above.
    "state-noise": Settings(6, 6, encoder="mlp-noise", epochs=12, dynamics_rate=5.0, series=6400, baseline=(4, 4), mlp=True),
    "figure8-small": Settings(10, 5, encoder="mlp", baseline=(16, 16)),
}

# What ``ldm-<objective>+<variant>`` changes.
VARIANTS: dict[str, dict[str, str | None]] = {
    "constant": {"noise": "constant", "settle_within": None},
    "adaptive": {"noise": "adaptive", "settle_within": None},
    "free": {"settle_within": None},
    "state": {"noise": "state"},
    "dot": {"encoder": "mlp"},
    "ekf": {"dynamics": "ekf"},
}
BUDGETS = ("smoke", "cpu", "full")
T = TypeVar("T")


def known(settings: Mapping[str, T], task: str, budget: str) -> T:
    """The settings of a task of any family, where it and the budget exist.

    Raises:
        ValueError: an unknown task or budget.
    """
    if task not in settings:
        raise ValueError(f"task is {task!r}, expected one of {', '.join(settings)}")
    if budget not in BUDGETS:
        raise ValueError(f"budget is {budget!r}, expected one of {', '.join(BUDGETS)}")
    return settings[task]


def settings_of(task: str, budget: str) -> Settings:
    """Settings of a task: ``smoke`` shows within seconds that all of it runs, ``cpu`` makes the figures, ``full`` takes four times the data.

    Raises:
        ValueError: an unknown task or budget.
    """
    chosen = known(SETTINGS, task, budget)
    if budget == "smoke":
        return replace(chosen, series=24, steps=40, readout=16, test=8, epochs=1, batch_size=8)
    if budget == "full":
        return replace(chosen, series=4 * chosen.series, readout=512, test=256, epochs=2 * chosen.epochs, device="auto")
    return chosen


class Published(NamedTuple):
    """A figure that others report; not run here."""

    name: str
    r2: str = ""
    mlp_r2: str = ""
    coverage95: str = ""
    nis: str = ""
    affine_r2: str = ""
    affine_r2_in_range: str = ""
    mse: str = ""
    nll: str = ""
    db: str = ""
    db_smoothed: str = ""
    condition: str | None = None  # of the task; None: all of them
    readout: str = "affine"


# Paper: Mikulasch and Zenke, arXiv 2605.03517. Re-run: its code repaired, random phases, three seeds, read-out and test as here.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "figure8": (
        Published("paper, stop-gradient", ".990"),
        Published("paper, kNN", ".991"),
        Published("paper's code re-run, stop-gradient", ".998", coverage95=".99", nis=".98-.99"),
    ),
    "square": (
        Published("paper", ".967"),
        Published("paper's code re-run, stop-gradient", ".970", coverage95=".53-.69", nis=".95-.98"),
    ),
    "circular-input-noise": (
        Published("paper", ".959"),
        Published("paper's code re-run", ".943-.950", coverage95=".70-.80", nis=".98-1.02"),
    ),
    "jump": (
        Published("paper's code re-run, as published", ".940-.945", coverage95=".41-.71", nis=".97"),
        Published("paper's code re-run, Q from past errors only", ".957-.959", coverage95=".97-.98", nis=".96-1.03"),
    ),
}


class Oracle(NamedTuple):
    """Exact filtered positions ``(series, steps, 2)``, the covariances before each frame, and the wall time they took."""

    mean: NDArray[np.float64]
    predicted_cov: NDArray[np.float64]
    seconds: float


class Bench:
    """The data of one run. ``train`` are frames alone: nothing that learns to filter ever sees a position."""

    def __init__(self, task: str, settings: Settings, seed: int) -> None:
        drawn = generate(task, settings.series + settings.readout, settings.steps, split_seed("train", seed))
        self.task, self.settings, self.seed = task, settings, seed
        self.train: NDArray[np.float32] = drawn.frames[: settings.series]
        self.readout = Dots._make(part[settings.series :] for part in drawn)
        self.test = generate(task, settings.test, settings.steps, split_seed("test", seed))

    @cached_property
    def oracle(self) -> Oracle:
        """The exact Bayes filter on the test sequences."""
        started = time.perf_counter()
        exact = bayes_filter(self.task, self.test)
        return Oracle(exact.mean, exact.predicted_cov, time.perf_counter() - started)


@lru_cache(maxsize=1)
def bench(task: str, budget: str, seed: int) -> Bench:
    """The data of a task, budget and seed; the last is kept for the next method."""
    return Bench(task, settings_of(task, budget), seed)
