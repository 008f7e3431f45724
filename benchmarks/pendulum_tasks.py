"""The pendulum images as benchmark tasks: settings by budget, the data of a run, and how an estimate of (sin, cos) is judged.

    train   2000 sequences of images, with targets where the method is supervised     (a twentieth of them decides when training is best)
    test    1000 fresh sequences, seen by nothing before                              (every figure)

Filtering: an estimate of step t has seen the images up to t alone. The oracle of ``benchmarks.pendulum_oracle`` knows the generator and w.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration import calibration
from benchmarks.dot_tasks import Published, known
from datasets.dots import split_seed
from datasets.pendulum import Pendulum, find_task, generate
from ldm_filter import metrics

__all__ = ["PUBLISHED", "SETTINGS", "Bench", "Settings", "bench", "judge", "settings_of", "unfolded"]


@dataclass(frozen=True)
class Settings:
    """One task: model, training and data. The defaults are those of the ``cpu`` budget.

    Attributes:
        data: name of the data set. supervised: whether targets take part in the training.
        state_dim, latent_dim, dynamics: of LDMFilter.
        warm_up, epochs, batch_size, learning_rate, dynamics_rate: of its training.
        rival_epochs: of the networks beside it: as many as the filter's, warm-up included.
        gapped, longest_gap: a self-supervised fit sees so many of its sequences with a run of images missing, of 4 to so many images: the
            dynamics then learn to predict across darkness.
        series, test: sequences. readout: training sequences whose targets a self-supervised filter's read-out is fitted on.
        baseline: states and principal components of the classical filter.
        particles: of the oracle.
        device: of the networks.
    """

    data: str = "pendulum"
    supervised: bool = True
    state_dim: int = 12
    latent_dim: int = 6
    dynamics: str = "locally-linear"
    warm_up: int = 25
    epochs: int = 90
    batch_size: int = 50
    gapped: float = 0.0
    longest_gap: int = 0
    learning_rate: float = 3e-3
    dynamics_rate: float = 3.0
    rival_epochs: int = 115
    series: int = 2000
    test: int = 1000
    readout: int = 500
    baseline: tuple[int, int] = (24, 16)
    particles: int = 200
    device: str = "cpu"


SETTINGS: dict[str, Settings] = {
    "pendulum": Settings(),
    "pendulum-irregular": Settings(data="pendulum-irregular", epochs=24, rival_epochs=50),
    "pendulum-self-supervised": Settings(supervised=False, state_dim=12, latent_dim=4, epochs=24, gapped=0.6, longest_gap=20),
}


def settings_of(task: str, budget: str) -> Settings:
    """Settings of a task: ``smoke`` shows within seconds that all of it runs, ``cpu`` makes the figures, ``full`` trains wider and longer on a GPU.

    Raises:
        ValueError: an unknown task or budget.
    """
    chosen = known(SETTINGS, task, budget)
    if budget == "smoke":
        few = {"series": 24, "test": 8, "readout": 16, "batch_size": 12, "warm_up": min(1, chosen.warm_up), "epochs": 1, "rival_epochs": 1}
        return replace(chosen, **few, state_dim=6, latent_dim=3, baseline=(4, 4), particles=50)  # type: ignore[arg-type]
    if budget == "full":
        return replace(chosen, state_dim=30, latent_dim=15, warm_up=50, epochs=500, rival_epochs=500, device="auto")
    return chosen


class Bench:
    """The data of one run: images from 0 to 1, ``train`` and ``test`` with all that is true about them."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.train: Pendulum = generate(settings.data, settings.series, split_seed("train", seed))
        self.test: Pendulum = generate(settings.data, settings.test, split_seed("test", seed))
        self.steps = find_task(settings.data).steps


@lru_cache(maxsize=1)
def bench(task: str, budget: str, seed: int) -> Bench:
    """The data of a task, budget and seed; the last is kept for the next method."""
    return Bench(settings_of(task, budget), seed)


def unfolded(drawn: Pendulum, steps: int, rows: slice = slice(None)) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images from 0 to 1 and targets on the whole grid of ``steps``, NaN where a frame was left out."""
    frames, target, stamps = drawn.frames[rows], drawn.target[rows], drawn.stamps[rows]
    if frames.shape[1] == steps:
        return (frames / 255).astype(np.float32), target
    images = np.full((len(frames), steps, *frames.shape[2:]), np.nan, dtype=np.float32)
    targets = np.full((len(frames), steps, 2), np.nan, dtype=np.float32)
    series = np.arange(len(frames))[:, None]
    images[series, stamps] = frames / 255
    targets[series, stamps] = target
    return images, targets


def with_gaps(images: NDArray[np.float32], settings: Settings, seed: int) -> NDArray[np.float32]:
    """The images with a run of them NaN in some of the sequences, as the settings say."""
    draw, images = np.random.default_rng([seed, 3100]), images.copy()
    for row in draw.choice(len(images), int(settings.gapped * len(images)), replace=False):
        length = draw.integers(4, settings.longest_gap + 1)
        start = draw.integers(4, images.shape[1] - length)
        images[row, start : start + length] = np.nan
    return images


def judge(mean: NDArray, cov: NDArray, target: NDArray) -> dict[str, float]:
    """All figures of a Gaussian estimate of (sin, cos), mean ``(series, steps, 2)`` and cov ``(series, steps, 2, 2)``.

    ``nll`` is that of the variances alone, as the published figures are; ``nll_full`` that of the whole covariance.
    """
    mean, cov, target = (np.asarray(part, dtype=float) for part in (mean, cov, target))
    figures = calibration(mean, cov, target)
    diagonal = np.eye(2) * np.diagonal(cov, axis1=-2, axis2=-1)[..., None]
    return figures | {"nll": metrics.nll(mean, diagonal, target), "nll_full": figures["nll"]}


# RKN: Becker et al., ICML 2019 (anonymous version), tables 1 and 2: 2000 / 1000 sequences, other draws of them; log-likelihoods of variances.
# CRU and below: test errors as collected by others from Schirmer et al., ICML 2022, Smith et al., ICLR 2023, and the RoMAE paper.
_RKN = "Becker et al. 2019"
_CRU = "collected from Schirmer et al. 2022 and later"
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "pendulum": (
        Published(f"RKN, {_RKN}", readout="supervised", nll="-6.248±0.17"),
        Published(f"GRU, {_RKN}", readout="supervised", nll="-6.051±0.15"),
        Published(f"LSTM, {_RKN}", readout="supervised", nll="-6.019±0.12"),
    ),
    "pendulum-irregular": tuple(
        Published(f"{name}, {_CRU}", readout="supervised", mse=figure)
        for name, figure in (
            ("RoMAE, sees the whole series", "3.3e-03"),
            ("S5", "3.4e-03"),
            ("CRU, re-run", "3.9e-03"),
            ("CRU", "4.6e-03"),
            ("RKN with time steps", "5.1e-03"),
            ("GRU with time steps", "5.4e-03"),
        )
    ),
}
