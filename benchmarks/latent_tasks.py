"""Identifiability as benchmark tasks: systems with known latents, the settings of a run, and how an estimate is judged.

    train     observations only                                   (the encoder; a tenth of them decides when training is best)
    read-out  other observations, with the true latents           (truth = W z + b + e, least squares; the other way round too)
    test      fresh observations of the same system               (every figure)

The system (its random network, its cells) is drawn anew for every seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from benchmarks.dot_tasks import Published, known
from benchmarks.latent_systems import System, find_system, split

__all__ = ["CONDITIONS", "PUBLISHED", "SETTINGS", "VARIANTS", "Bench", "Settings", "bench", "settings_of"]


@dataclass(frozen=True)
class Settings:
    """One task: model, training and data. The defaults are those of the ``cpu`` budget.

    Attributes:
        state_dim, latent_dim, dynamics, latent_model, mutual_information: of LDMFilter.
        judged: what is judged: ``"latent"``, the encoder's output, or ``"filtered"``, the state.
        components, hidden: the encoder: so many whitened principal components of the observation, and the widths of its network.
        epochs, batch_size, window, learning_rate, dynamics_rate: of its training. quadratic_epochs: of estimators that compare all pairs of samples.
            annealed_epochs: of those that begin with log-det.
        objectives: of the learned filters in the table, the first one the task's best.
        series, steps: of the training data. readout, test: series of the read-out's fit and of the test.
        baseline: states and principal components of the classical filter.
        wide: states and latents of ``ldm-<objective>+wide``, many more than there are true ones; None: it is not run. wide_epochs: of its training.
            wide_baseline: states and principal components of the classical filter beside it, as many as help it.
        supervised: also a ridge regression and a network from single observations to the truth; mlp: also a network as read-out.
        particles: of the oracle, 0 for none.
        device: of LDMFilter.
    """

    state_dim: int
    latent_dim: int
    dynamics: str = "linear"
    latent_model: str = "auto"
    mutual_information: bool = True
    judged: str = "latent"
    components: int = 0
    hidden: tuple[int, ...] = (128, 128)
    epochs: int = 10
    quadratic_epochs: int | None = None
    annealed_epochs: int | None = None
    batch_size: int = 32
    window: int | None = None
    learning_rate: float = 3e-3
    dynamics_rate: float = 10.0
    objectives: tuple[str, ...] = ("log-det",)
    series: int = 800
    steps: int = 100
    readout: int = 128
    test: int = 64
    baseline: tuple[int, int] = (4, 4)
    wide: tuple[int, int] | None = None
    wide_epochs: int = 20
    wide_baseline: tuple[int, int] | None = None
    supervised: bool = False
    mlp: bool = False
    particles: int = 0
    device: str = "cpu"


PLACE_CELLS = Settings(
    16, 8, judged="filtered", mutual_information=False, window=400, epochs=20, batch_size=8, series=200, steps=400, readout=128, test=32
)
# Pairs of neighbouring frames and a network as predictor: batches hold many pairs from many sequences, as estimators of entropy want them.
WOBBLY = Settings(
    4,
    2,
    latent_model="pair-predictor",
    components=20,
    window=2,
    batch_size=2048,
    epochs=100,
    quadratic_epochs=20,
    annealed_epochs=40,
    dynamics_rate=3.0,
    objectives=("annealed-knn", "knn", "log-det"),
)
# The regression of the batch as predictor: the log-determinant then looks for the latents that predict each other best.
SOURCES = Settings(
    2, 2, latent_model="pair-regression", hidden=(192, 192, 192), batch_size=1024, epochs=35, series=100_000, steps=2, readout=5000, test=2000
)
SETTINGS: dict[str, Settings] = {
    # Products of the true latents are about as predictable as these (the squared radius of the one rotation decays with .96 a step, the other
    # rotation with .95), and a log-determinant, which sees no more than covariances, may take them for latents: where there is room for all the
    # truth is among them.
    "linear-latent": Settings(
        4,
        4,
        judged="filtered",
        particles=10_000,
        test=32,
        wide=(64, 64),
        wide_baseline=(32, 24),
    ),
    "place-cells": replace(PLACE_CELLS, baseline=(16, 8), supervised=True, mlp=True, particles=2000),
    "wobbly": replace(WOBBLY, components=60, objectives=("annealed-knn", "knn", "log-det", "kde")),
    "wobbly-paper": WOBBLY,
    **{f"sources-{n}": replace(SOURCES, state_dim=n, latent_dim=n, components=n, baseline=(n, n)) for n in (2, 4, 6, 8, 10)},
}
# "" is the task as its card says; "mild" another system; "ekf" the filter with a learned nonlinear transition, fitted to the latents.
CONDITIONS: dict[str, tuple[str, ...]] = {"linear-latent": ("", "mild"), "wobbly": ("", "ekf")}
VARIANTS: dict[tuple[str, str], Settings] = {
    ("wobbly", "ekf"): replace(WOBBLY, state_dim=2, components=60, dynamics="ekf", judged="filtered", objectives=("annealed-knn", "knn")),
}


def settings_of(task: str, budget: str, condition: str = "") -> Settings:
    """Settings of a task and condition: ``smoke`` shows within seconds that all runs, ``cpu`` makes the figures, ``full`` takes twice the epochs.

    Raises:
        ValueError: an unknown task or budget.
    """
    chosen = VARIANTS.get((task, condition), known(SETTINGS, task, budget))
    if budget == "smoke":
        few = replace(
            chosen,
            steps=min(40, chosen.steps),
            epochs=1,
            quadratic_epochs=1,
            annealed_epochs=1,
            wide=None if chosen.wide is None else (12, 12),
            wide_epochs=1,
            batch_size=min(64, chosen.batch_size),
            particles=min(200, chosen.particles),
        )
        return replace(few, series=max(24, chosen.series // 50), readout=max(16, chosen.readout // 20), test=max(8, chosen.test // 20), hidden=(16,))
    if budget == "full":
        return replace(chosen, epochs=2 * chosen.epochs, device="auto")
    return chosen


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "place-cells": (
        Published("paper, on recordings (hc-11)", affine_r2=".88", mlp_r2=".98"),
        Published("paper, ridge and network on single bins of these", affine_r2=".57", mlp_r2=".88"),
    ),
    "wobbly-paper": (
        Published("paper, LSTM, kNN (all frames)", affine_r2=".94"),
        Published("paper's code re-run, log-det", affine_r2_in_range=".92-.98"),
        Published("paper's code re-run, KDE", affine_r2_in_range=".98"),
        Published("paper's code re-run, kNN", affine_r2_in_range=".72-.94"),
        Published("paper's code re-run, stop-gradient", affine_r2_in_range=".57-.76"),
    ),
    **{
        f"sources-{n}": (Published("paper, kNN, about", affine_r2=knn), Published("paper, log-det, about", affine_r2=log_det))
        for n, knn, log_det in ((2, "1.0", "0.6"), (6, "0.85", "0.8"), (10, "0.75", "0.8"))
    },
}


class Bench:
    """The data of one run: ``train`` observations alone, ``readout`` and ``test`` with the truth."""

    def __init__(self, task: str, condition: str, settings: Settings, seed: int) -> None:
        self.task, self.settings, self.seed = task, settings, seed
        self.system: System = find_system(task, condition, seed)
        self.train = self.system.draw(settings.series, settings.steps, split(seed, 0)).observations
        self.readout = self.system.draw(settings.readout, settings.steps, split(seed, 1))
        self.test = self.system.draw(settings.test, settings.steps, split(seed, 2))


@lru_cache(maxsize=1)
def bench(task: str, condition: str, budget: str, seed: int) -> Bench:
    """The data of a task, condition, budget and seed; the last is kept for the next method."""
    return Bench(task, condition, settings_of(task, budget, condition), seed)
