"""Videos with known causes as benchmark tasks: a bouncing ball and moving digits with frames hidden, gymnasium's Pendulum and CartPole with actions.

    train     frames (and actions), complete                      (the filter; a tenth of them decides when training is best)
    read-out  other sequences, with the truth                     (truth = W h + b + e, least squares, on the steps that are judged)
    test      fresh sequences                                     (every figure)

Where frames are hidden, the steps without a frame are judged, and the estimate is the smoothed one; else all steps, and the filtered one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.neural_network import MLPRegressor

from benchmarks.calibration import affine_readout, calibration, consistency
from benchmarks.dot_tasks import known
from datasets import bouncing_ball, gym_scenes, moving_digits
from ldm_filter import metrics

__all__ = ["NAMES", "SETTINGS", "Bench", "Estimate", "Settings", "Split", "bench", "evaluate", "settings_of"]


@dataclass(frozen=True)
class Settings:
    """One task. The defaults are those of the ``cpu`` budget.

    Attributes:
        state_dim, latent_dim, dynamics, encoder, objective: of LDMFilter.
        epochs, window, batch_size, learning_rate, dynamics_rate, patience: of its training.
        gaps: share of its training sequences with a run of frames hidden, as long as that of the test.
        series, steps: of the training data. readout, test: sequences of the read-out's fit and of the test.
        baseline: states and principal components of the classical filter.
        hidden: frames without an image in the read-out's and the test's sequences; None: all are shown.
        device: of LDMFilter.
    """

    state_dim: int
    latent_dim: int
    dynamics: str = "linear"
    encoder: str = "auto"
    objective: str = "log-det"
    epochs: int = 10
    window: int | None = None
    batch_size: int = 32
    learning_rate: float = 3e-3
    dynamics_rate: float = 5.0
    patience: int | str | None = "auto"
    gaps: float = 0.0
    series: int = 400
    steps: int = 50
    readout: int = 100
    test: int = 100
    baseline: tuple[int, int] = (10, 10)
    hidden: slice | None = None
    device: str = "cpu"


SETTINGS: dict[str, Settings] = {
    "bouncing-ball": Settings(
        6,
        2,
        dynamics="ekf",
        encoder="linear",
        epochs=25,
        gaps=0.5,
        series=2000,
        steps=20,
        readout=500,
        test=500,
        baseline=(20, 12),
        hidden=bouncing_ball.HIDDEN,
    ),
    "gym-pendulum": Settings(3, 2, dynamics="ekf", encoder="linear", epochs=30, steps=75, series=300, baseline=(16, 12)),
    # Curved functions of the place of cart or digit can be predicted nearly as well as a second quantity, and are easier to see: with few
    # latents, or where training stops early, they take the place of the pole's angle and of the digit's y.
    "gym-cartpole": Settings(24, 16, epochs=600, patience=None, series=450, baseline=(24, 16)),
    "moving-digits": Settings(24, 16, epochs=20, gaps=0.5, series=800, readout=400, test=400, baseline=(16, 16), hidden=moving_digits.BLACKOUT),
}
# Training, read-out, test: digits of other people each, so that the read-out says what is to be expected of digits never seen.
DIGIT_SHARES = ((0.0, 0.6), (0.6, 0.8), (0.8, 1.0))
NAMES: dict[str, tuple[str, ...]] = {"bouncing-ball": ("x", "y"), "moving-digits": ("x", "y"), **gym_scenes.NAMES}


def settings_of(task: str, budget: str) -> Settings:
    """Settings of a task: ``smoke`` shows within seconds that all runs, ``cpu`` makes the figures, ``full`` has four times the data.

    Raises:
        ValueError: an unknown task or budget.
    """
    chosen = known(SETTINGS, task, budget)
    if budget == "smoke":
        return replace(chosen, series=24, readout=10, test=6, epochs=1, batch_size=8, baseline=(4, 4))
    if budget == "full":
        return replace(chosen, series=4 * chosen.series, readout=4 * chosen.readout, test=4 * chosen.test, epochs=2 * chosen.epochs, device="auto")
    return chosen


class Split(NamedTuple):
    """Sequences of one kind.

    Attributes:
        frames: ``(series, steps, y, x)``, NaN where hidden. truth: ``(series, steps, d)``. asked: ``(series, steps)``
            bool, the steps that are judged. actions: ``(series, steps, 1)``, None without any.
    """

    frames: NDArray[np.float32]
    truth: NDArray[np.float32]
    asked: NDArray[np.bool_]
    actions: NDArray[np.float32] | None = None


class Bench:
    """The data of one run."""

    def __init__(self, task: str, settings: Settings, seed: int) -> None:
        self.task, self.settings, self.seed = task, settings, seed
        self.train, self.readout, self.test = (self._draw(number) for number in range(3))

    def _draw(self, number: int) -> Split:
        """Split 0, 1, 2: training, read-out, test; frames are hidden in the last two."""
        chosen, rng = self.settings, np.random.default_rng([self.seed, 3000 + number])
        series, hidden = (chosen.series, chosen.readout, chosen.test)[number], chosen.hidden
        frames, truth, actions = _SCENES[self.task](series, chosen.steps, rng, number)
        asked = np.full(truth.shape[:2], hidden is None)
        if hidden is not None and number:
            frames = frames.copy()
            frames[:, hidden] = np.nan
            asked[:, hidden] = True
        return Split(frames, truth, asked, actions)


Scene = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]


def _ball(series: int, steps: int, rng: np.random.Generator, split: int) -> Scene:
    found = bouncing_ball.generate(series, steps, rng)
    return found.frames, found.states[..., :2], None


def _digits(series: int, steps: int, rng: np.random.Generator, split: int) -> Scene:
    found = moving_digits.generate(series, steps, rng, DIGIT_SHARES[split])
    return found.frames, found.states[..., :2], None


_SCENES: dict[str, Callable[[int, int, np.random.Generator, int], Scene]] = {
    "bouncing-ball": _ball,
    "moving-digits": _digits,
    "gym-pendulum": lambda series, steps, rng, _: gym_scenes.pendulum(series, steps, rng),
    "gym-cartpole": lambda series, steps, rng, _: gym_scenes.cartpole(series, steps, rng),
}


@lru_cache(maxsize=1)
def bench(task: str, budget: str, seed: int) -> Bench:
    """The data of a task, budget and seed; the last is kept for the next method."""
    return Bench(task, settings_of(task, budget), seed)


class Estimate(NamedTuple):
    """What a method says: a state ``(series, steps, n)`` and its covariance ``(..., n, n)``; ``nis``: NIS / m ``(series, steps)``,
    None without."""

    mean: NDArray
    cov: NDArray
    nis: NDArray | None = None


def evaluate(readout: Estimate, test: Estimate, data: Bench) -> dict[str, float]:
    """All figures, through an affine read-out with covariance fitted on the read-out's sequences; ``mlp_r2``: through a network.

    Those in ``_turned`` and ``_scaled`` are of the other covariances of `benchmarks.calibration.affine_readout`.
    """
    known, asked = data.readout, data.test.asked
    rows, truth = tuple(_asked(part, known.asked) for part in readout[:2]), _asked(known.truth, known.asked).astype(float)
    decoded = affine_readout((rows[0], rows[1]), truth, (_asked(test.mean, asked), _asked(test.cov, asked)))
    figures = _named(decoded.figures(_truth(data)), decoded.mean, data) | consistency(test.nis)
    flat = [part.reshape(-1, part.shape[-1]) for part in (rows[0], truth)]
    return figures | {"mlp_r2": _mlp_r2(flat[0], flat[1], test.mean[asked], data.test.truth[asked], data.seed)}


def _asked(values: NDArray, asked: NDArray[np.bool_]) -> NDArray:
    """The steps that are judged, the same of every sequence, ``(series, asked steps, ...)``."""
    return values[:, asked[0]]


def judge(mean: NDArray, cov: NDArray, data: Bench) -> dict[str, float]:
    """Accuracy and calibration of an estimate of the truth itself, ``(N, d)`` of the steps that are judged, sequence after sequence."""
    truth = _truth(data)
    return _named(calibration(mean.reshape(truth.shape), cov.reshape(*truth.shape, truth.shape[-1]), truth), mean.reshape(truth.shape), data)


def _truth(data: Bench) -> NDArray:
    return _asked(data.test.truth, data.test.asked).astype(float)


def _named(figures: dict[str, float], mean: NDArray, data: Bench) -> dict[str, float]:
    """Figures with R2 under the names of what is estimated."""
    each = np.atleast_1d(np.asarray(metrics.r2(mean, _truth(data), per_dim=True)))
    figures["affine_r2"] = figures.pop("r2")
    return figures | {f"r2_{name}": float(value) for name, value in zip(NAMES[data.task], each, strict=True)}


def _mlp_r2(x: NDArray, y: NDArray, test: NDArray, truth: NDArray, seed: int) -> float:
    centre, spread = x.mean(0), x.std(0) + 1e-12
    network = MLPRegressor(hidden_layer_sizes=(64, 64), learning_rate_init=3e-3, early_stopping=True, max_iter=2000, random_state=seed)
    scale = y.std(0)
    network.fit((x - centre) / spread, y / scale)
    return float(metrics.r2(network.predict((test - centre) / spread) * scale, truth))
