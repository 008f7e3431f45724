"""The dot videos as benchmark tasks: every setting that may be tuned, the data of a run, and how an estimate is judged.

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
from scipy.stats import chi2
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPRegressor

from benchmarks.oracles import bayes_filter
from datasets.dots import Dots, generate, split_seed
from ldm_filter import metrics

__all__ = [
    "BUDGETS",
    "PUBLISHED",
    "SETTINGS",
    "VARIANTS",
    "Bench",
    "Estimate",
    "Published",
    "Settings",
    "bench",
    "evaluate",
    "evaluate_oracle",
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


class Estimate(NamedTuple):
    """What a filter says about frames.

    Attributes:
        mean: ``(series, steps, n)`` of the state. cov: ``(series, steps, n, n)``.
        nis: mean NIS / m, None for what predicts nothing.
        noise_cov: R, ``(series, steps, m, m)``, None where it does not vary.
        predicted_cov: ``(series, steps, n, n)`` before each frame, None where it does not vary.
    """

    mean: NDArray
    cov: NDArray
    nis: float | None = None
    noise_cov: NDArray | None = None
    predicted_cov: NDArray | None = None


def evaluate(readout: Estimate, test: Estimate, data: Bench) -> dict[str, float]:
    """All figures of a filter: affine read-out of the position with covariance, fitted on read-out sequences, judged on test sequences.

    Those that end in ``_scaled`` are with the covariance times one factor, measured on held-out read-out sequences. Those in ``_turned`` are of
    the covariance that depends on the position (`ldm_filter.metrics.covariance_regression`).
    """
    fit = metrics.affine_fit(readout.mean, data.readout.position)
    mean, known = fit.apply(test.mean), fit.apply(readout.mean)
    cov, known_cov = (metrics.decoded_covariance(fit.matrix, part.cov, fit.residual_cov, reference=readout.cov) for part in (test, readout))
    turned = metrics.covariance_regression(known, data.readout.position - known, known_cov).apply(mean, cov)
    figures = _accuracy(mean, data) | metrics.scores(mean, cov, data.test.position)
    of_turned = metrics.scores(mean, turned, data.test.position)
    figures |= {f"{name}_turned": of_turned[name] for name in ("nll", "nees", "coverage50", "coverage80", "coverage95")}
    of_scaled = metrics.scores(mean, _held_out_scale(readout, data) * cov, data.test.position)
    figures |= {f"{name}_scaled": of_scaled[name] for name in ("nll", "nees", "coverage95")}
    figures |= _noise_levels(mean, turned, data) | _jumps(test.predicted_cov, data)
    if data.settings.mlp:
        figures |= _mlp(readout.mean, test.mean, data)
    if test.nis is not None:
        figures["nis"] = test.nis
    if test.noise_cov is not None:
        figures["noise_corr"] = metrics.noise_corr(test.noise_cov, data.test.noise_var)
    return figures


def _held_out_scale(readout: Estimate, data: Bench) -> float:
    """The factor of post-hoc variance scaling: the read-out fitted on three quarters of its sequences, NEES / d on the last quarter."""
    cut = 3 * len(readout.mean) // 4
    fit = metrics.affine_fit(readout.mean[:cut], data.readout.position[:cut])
    cov = metrics.decoded_covariance(fit.matrix, readout.cov[cut:], fit.residual_cov, reference=readout.cov[:cut])
    return metrics.variance_scale(fit.apply(readout.mean[cut:]), cov, data.readout.position[cut:])


def evaluate_oracle(data: Bench) -> dict[str, float]:
    """Accuracy of the exact filter, and what jumps do to its covariance. Its belief lies on a curve, which the ellipse of a Gaussian does not
    describe: no calibration is given."""
    return _accuracy(data.oracle.mean, data) | _jumps(data.oracle.predicted_cov, data)


def _accuracy(mean: NDArray, data: Bench) -> dict[str, float]:
    truth = data.test.position
    r2_x, r2_y = np.asarray(metrics.r2(mean, truth, per_dim=True))
    error = metrics.mse(mean, truth)
    excess = error / metrics.mse(data.oracle.mean, truth) - 1
    return {"r2": float(metrics.r2(mean, truth)), "r2_x": float(r2_x), "r2_y": float(r2_y), "mse": error, "excess": excess}


def _noise_levels(mean: NDArray, cov: NDArray, data: Bench) -> dict[str, float]:
    """Coverage of the 95 % ellipse apart for the clean and the noisy third of the frames, where frames differ in noise."""
    level = data.test.noise_var
    low, high = np.quantile(level, (1 / 3, 2 / 3))
    if low == high:
        return {}
    inside = metrics.nees(mean, cov, data.test.position) <= chi2.ppf(0.95, 2)
    return {"coverage95_clean": float(inside[level <= low].mean()), "coverage95_noisy": float(inside[level >= high].mean())}


def _jumps(predicted_cov: NDArray | None, data: Bench) -> dict[str, float]:
    """``auc``: how well log det of the predicted covariance tells the step after a jump from all others (0.5: not at all, 1: always).

    ``settled``: the median number of steps after a jump until it is as low as at 95 % of the steps with no jump in the 20 before them.
    """
    jumped = data.test.jumped
    if predicted_cov is None or not jumped.any():
        return {}
    size = np.linalg.slogdet(predicted_cov)[1]
    auc = float(roc_auc_score(jumped[:, :-1].ravel(), size[:, 1:].ravel()))
    recent = np.stack([np.pad(jumped, ((0, 0), (lag, 0)))[:, : jumped.shape[1]] for lag in range(21)]).any(0)
    recent = recent | (np.arange(jumped.shape[1]) < 20)  # at first the filter is still finding in
    calm = np.quantile(size[~recent], 0.95)
    after = [size[series, step + 1 :] <= calm for series, step in zip(*np.nonzero(jumped), strict=True)]
    waits = [np.argmax(low) for low in after if low.any()]
    return {"auc": auc, "settled": float(np.median(waits))}


def _mlp(readout: NDArray, test: NDArray, data: Bench) -> dict[str, float]:
    """R2 with a small network in place of the affine map, from the same sequences; a tenth of its data stops the training."""
    x, y = (part.reshape(-1, part.shape[-1]).astype(float) for part in (readout, data.readout.position))
    centre, spread = x.mean(0), x.std(0)
    network = MLPRegressor(hidden_layer_sizes=(64, 64), learning_rate_init=3e-3, early_stopping=True, max_iter=1000, random_state=data.seed)
    network.fit((x - centre) / spread, y)
    mean = network.predict((test.reshape(-1, test.shape[-1]) - centre) / spread).reshape(data.test.position.shape)
    excess = metrics.mse(mean, data.test.position) / metrics.mse(data.oracle.mean, data.test.position) - 1
    return {"mlp_r2": float(metrics.r2(mean, data.test.position)), "mlp_excess": excess}
