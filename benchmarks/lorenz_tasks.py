"""Lorenz after KalmanNet as benchmark tasks: settings, data, what is known of the model, and how an estimate of the state is judged.

    train     noisy observations, 1000 series of 100 steps, from places on the attractor; the states beside them for supervised methods
    test      fresh series (every figure); `lorenz`: from (1, 1, 1), as published; `lorenz-decimation`: from places on the attractor
    validation  series like those of the test, a tenth as many or as many: by their NEES / d the scaled covariances are scaled

The published training series all start at (1, 1, 1). Where the noise is small they are then one and the same trajectory, which visits a part of
the attractor: enough for methods that are given the transition, no ground to learn it from. So training starts everywhere here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.calibration import calibration, consistency, variant
from benchmarks.dot_tasks import Published, known
from datasets.lorenz import STEP, TERMS, Lorenz, decimated, noisy_process
from ldm_filter import metrics
from ldm_filter.types import Gaussian

__all__ = ["CONDITIONS", "PUBLISHED", "SETTINGS", "Bench", "Estimate", "Settings", "bench", "evaluate", "settings_of", "true_transition"]

RATIO = 0.01  # q^2 / r^2: -20 dB


@dataclass(frozen=True)
class Settings:
    """One task. The defaults are those of the ``cpu`` budget.

    Attributes:
        epochs, window, batch_size, learning_rate, dynamics_rate: of LDMFilter's training.
        degree: of the polynomial dynamics.
        series, steps: of the training data. test, test_steps: of the test data. validation: series like those of the test, which say what the
            scaled covariances are scaled by.
        baseline: states of the linear filter by EM.
        device: of LDMFilter.
    """

    epochs: int = 12
    window: int = 50
    batch_size: int = 32
    learning_rate: float = 1e-5
    dynamics_rate: float = 3000.0
    degree: int = 3
    series: int = 1000
    steps: int = 100
    test: int = 200
    validation: int = 20
    test_steps: int = 2000
    baseline: int = 9
    device: str = "cpu"


SETTINGS: dict[str, Settings] = {"lorenz": Settings(), "lorenz-decimation": Settings(degree=4, test=10, validation=10, test_steps=3000)}
# 1 / r^2 in dB.
CONDITIONS: dict[str, tuple[str, ...]] = {"lorenz": ("0 dB", "10 dB", "20 dB", "30 dB"), "lorenz-decimation": ("",)}


def settings_of(task: str, budget: str) -> Settings:
    """Settings of a task: ``smoke`` shows within seconds that all runs, ``cpu`` makes the figures, ``full`` takes four times the epochs.

    Raises:
        ValueError: an unknown task or budget.
    """
    chosen = known(SETTINGS, task, budget)
    if budget == "smoke":
        return replace(chosen, series=40, steps=50, test=2, validation=2, test_steps=60, epochs=1, degree=3)
    return replace(chosen, epochs=4 * chosen.epochs, device="auto") if budget == "full" else chosen


def _of_kalmannet(name: str, figures: str) -> tuple[Published, ...]:
    each = zip(CONDITIONS["lorenz"], figures.split(), strict=True)
    return tuple(Published(name, db=figure, condition=condition, readout="none") for condition, figure in each)


# Revach et al., KalmanNet, IEEE Trans. Signal Process. 70 (2022), tables V and IX; RTSNet, IEEE Trans. Signal Process. 71 (2023), table VIII.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "lorenz": (
        *_of_kalmannet("EKF, true model (KalmanNet, table V)", "-10.45 -20.37 -30.40 -40.39"),
        *_of_kalmannet("UKF, true model (KalmanNet, table V)", "-5.62 -12.04 -20.45 -30.05"),
        *_of_kalmannet("particle filter, true model (KalmanNet, table V)", "-9.78 -18.13 -23.54 -30.16"),
        *_of_kalmannet("KalmanNet: knows the transition, trained with states", "-9.79 -19.75 -29.37 -39.68"),
    ),
    "lorenz-decimation": (
        Published("EKF, transition held over 0.02 s (KalmanNet, table IX)", db="-6.43", readout="none"),
        Published("KalmanNet: knows that transition, trained with states", db="-11.28", readout="none"),
        Published("recurrent network, trained with states (KalmanNet, table IX)", db="17.36", readout="none"),
        Published("EKS, transition held over 0.02 s (RTSNet, table VIII)", db_smoothed="-10.08", readout="none"),
        Published("RTSNet-2: knows that transition, trained with states", db_smoothed="-16.80", readout="none"),
    ),
}


class Bench:
    """The data of one run; ``noise_var`` r^2 and ``process_var`` q^2 are for methods that know the model."""

    def __init__(self, task: str, condition: str, settings: Settings, seed: int) -> None:
        if condition not in CONDITIONS[task]:
            raise ValueError(f"condition is {condition!r}, expected one of {', '.join(map(repr, CONDITIONS[task]))}")
        self.task, self.settings, self.seed = task, settings, seed
        self.noise_var = 10.0 ** (-float(condition.removesuffix(" dB")) / 10.0) if condition else 1.0
        self.process_var = RATIO * self.noise_var if task == "lorenz" else 0.0
        train, test, validation = (np.random.default_rng([seed, 2000 + number]) for number in range(3))
        self.train = self._draw(settings.series, settings.steps, train, None)
        self.test = self._draw(settings.test, settings.test_steps, test, np.ones(3))
        self.validation = self._draw(settings.validation, settings.test_steps, validation, np.ones(3))

    def _draw(self, series: int, steps: int, rng: np.random.Generator, start: NDArray | None) -> Lorenz:
        if self.task == "lorenz":
            return noisy_process(series, steps, self.noise_var, self.process_var, rng, start)
        return decimated(series, steps, self.noise_var, rng)


@lru_cache(maxsize=1)
def bench(task: str, condition: str, budget: str, seed: int) -> Bench:
    """The data of a task, condition, budget and seed; the last is kept for the next method."""
    return Bench(task, condition, settings_of(task, budget), seed)


def true_transition(variance: float, held: bool = True) -> Callable[[Tensor, int | slice], Gaussian]:
    """The generator's own transition with noise ``variance``, for torch: `datasets.lorenz.transition`, or the flow where not ``held``."""

    def taylor(x: Tensor) -> Tensor:
        term = total = x
        for j in range(1, TERMS + 1):
            a, b, c = term.unbind(-1)
            parts = (10.0 * (b - a), (28.0 - x[..., 2]) * a - b, x[..., 1] * a - 8.0 / 3.0 * c)
            term = torch.stack(parts, dim=-1) * (STEP / j)
            total = total + term
        return total

    def velocity(x: Tensor) -> Tensor:
        a, b, c = x.unbind(-1)
        return torch.stack([10.0 * (b - a), a * (28.0 - c) - b, a * b - 8.0 / 3.0 * c], dim=-1)

    def flow(x: Tensor, substeps: int = 5) -> Tensor:
        h = STEP / substeps
        for _ in range(substeps):
            k1 = velocity(x)
            k2 = velocity(x + 0.5 * h * k1)
            k3 = velocity(x + 0.5 * h * k2)
            k4 = velocity(x + h * k3)
            x = x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        return x

    def move(state: Tensor, step: int | slice) -> Gaussian:
        mean = taylor(state) if held else flow(state)
        return Gaussian(mean, variance * torch.eye(3, dtype=state.dtype, device=state.device))

    return move


class Estimate(NamedTuple):
    """Of the state, ``(series, steps, 3)`` and ``(..., 3, 3)``; ``smoothed`` given all of a series; NIS / m
    of the observations ``(series, steps)``, None without."""

    mean: NDArray
    cov: NDArray
    nis: NDArray | None = None
    smoothed: tuple[NDArray, NDArray] | None = None


def evaluate(estimate: Estimate, held: Estimate, data: Bench) -> dict[str, float]:
    """Mean squared error over coordinates, steps and series, in dB as well; calibration; the same of the smoother as ``db_smoothed`` ...

    ``_scaled``: with the covariance times NEES / d of the estimate of the validation series, ``held``.
    """
    truth = data.test.states.astype(float)
    figures = calibration(estimate.mean, estimate.cov, truth) | consistency(estimate.nis)
    factor = metrics.variance_scale(held.mean, held.cov, data.validation.states.astype(float))
    figures |= variant(calibration(estimate.mean, factor * estimate.cov, truth), "scaled")
    figures["db"] = 10.0 * float(np.log10(figures["mse"]))
    if estimate.smoothed is not None:
        after = metrics.scores(*estimate.smoothed, truth)
        figures |= {"db_smoothed": 10.0 * float(np.log10(after["mse"])), "coverage95_smoothed": after["coverage95"]}
    return figures
