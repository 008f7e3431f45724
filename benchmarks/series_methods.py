"""What is compared on real series: the learned filter, rules of thumb, a vector autoregression, and statsmodels' structural models."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration import consistency, variant
from benchmarks.records import Clock, Outcome, checkpoint
from benchmarks.series_tasks import CALIBRATED, TASKS, Bench, Task, judge
from ldm_filter import LDMFilter, metrics
from ldm_filter.baselines import HoldLast, LinearInterpolation, SeasonalNaive, VARKalman

__all__ = ["default_methods", "run"]

# Arguments of LDMFilter, and epochs by budget.
MODELS: dict[str, dict[str, Any]] = {
    "imu-gaps": {"state_dim": 36, "latent_dim": 6, "encoder": "linear", "readout": "linear", "learning_rate": 1e-3},
    "imu-forecast": {"state_dim": 24, "latent_dim": 6, "readout": "linear", "learning_rate": 1e-3},
    "weather-forecast": {"state_dim": 12, "latent_dim": 6, "readout": "linear"},
    "co2-forecast": {"state_dim": 4, "latent_dim": 1, "encoder": "linear", "readout": "linear", "window": 200},
}
EPOCHS = {
    "smoke": dict.fromkeys(TASKS, 1),
    "cpu": {"imu-gaps": 6, "imu-forecast": 8, "weather-forecast": 60, "co2-forecast": 150},
}
EPOCHS["full"] = EPOCHS["cpu"]
# Arguments of LDMFilter.adapt, by which "-adapted" follows each series; chosen on held-out ones.
ADAPT: dict[str, dict[str, Any]] = {
    "imu-gaps": {"weight": 10, "iterations": 10},
    "imu-forecast": {"weight": 100, "iterations": 3},
    "weather-forecast": {"weight": 200, "iterations": 3},
    "co2-forecast": {"weight": 10, "iterations": 30},
}
LEARNED = ("ldm", "ldm-adapted")
MOST_FITTED = 3000  # rows that statsmodels is fitted on where there are many channels
MOST_HELD = 200  # held-out forecasts that intervals are calibrated on


class Answer(NamedTuple):
    """Mean and standard deviation of what was asked for, and further figures."""

    mean: NDArray
    std: NDArray
    extra: dict[str, float]
    train_steps: int = 0


def default_methods(task: str, condition: str = "") -> tuple[str, ...]:
    if not TASKS[task].horizon:
        return (*LEARNED, "linear-interpolation", "var6", "var6-adapted")
    return (*LEARNED, "hold-last", "seasonal-naive", *(("uc",) if task.startswith("co2") else ("var6", "var6-adapted", "dynamic-factor")))


def run(task: str, condition: str, method: str, budget: str, seed: int) -> Outcome:
    """Fit on the training series, answer, judge.

    Raises:
        ValueError: an unknown task or method.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
    settings = TASKS[task]
    bench = _few(settings.make()) if budget == "smoke" else settings.make()
    started = time.perf_counter()
    learned = method in LEARNED
    answer = _learned(task, bench, budget, seed, method) if learned else _classical(task, method, bench)
    seconds = time.perf_counter() - started
    figures = judge(bench, answer.mean, answer.std) | answer.extra
    return Outcome(figures, "linear" if learned else "none", seconds, answer.train_steps)


def _few(bench: Bench) -> Bench:
    """A corner of the task, to show within seconds that all of it runs."""
    cut: dict[str, Any] = {name: getattr(bench, name)[:8] for name in ("contexts", "truth")} | {"train": [part[:800] for part in bench.train[:4]]}
    if bench.held is not None:
        cut["held"] = (bench.held[0][:8], bench.held[1][:8])
    if bench.inputs is not None and bench.train_inputs is not None and bench.held_inputs is not None:
        cut |= {"inputs": bench.inputs[:8], "held_inputs": bench.held_inputs[:8], "train_inputs": [part[:800] for part in bench.train_inputs[:4]]}
    return replace(bench, **cut)


def _learned(task: str, bench: Bench, budget: str, seed: int, method: str) -> Answer:
    clock, adapt = Clock(), ADAPT[task] if method == "ldm-adapted" else None
    model = LDMFilter(seed=seed, **MODELS[task])
    model.fit(bench.train, inputs=bench.train_inputs, epochs=EPOCHS[budget][task], progress=False, checkpoint=checkpoint())
    extra, steps, horizon = clock.read(), len(model.history_.epochs), TASKS[task].horizon
    if adapt is None:
        known = None if bench.inputs is None else bench.inputs[:, : bench.contexts.shape[1]]
        extra |= consistency(model.filter(bench.contexts, inputs=known).nis.to_numpy())
    if not horizon:
        filled = [(model if adapt is None else model.adapt(context, **adapt)).smooth(context) for context in bench.contexts]
        return Answer(np.stack([part.reconstruction_mean for part in filled]), np.stack([part.reconstruction_std for part in filled]), extra, steps)
    mean, std = _forecast(model, bench.contexts, bench.inputs, horizon, adapt)
    assert bench.held is not None
    every = -(-len(bench.held[0]) // MOST_HELD)
    known = None if bench.held_inputs is None else bench.held_inputs[::every]
    held = _forecast(model, bench.held[0][::every], known, horizon, adapt)
    return Answer(mean, std, extra | _widened(bench, (mean, std), held, bench.held[1][::every]), steps)


def _widened(bench: Bench, answer: tuple[NDArray, NDArray], held: tuple[NDArray, NDArray], truth: NDArray) -> dict[str, float]:
    """Figures of intervals whose width was measured on held-out forecasts: conformal ones, and with one factor for all variances."""
    (mean, std), figures, seen = answer, {}, ~np.isnan(bench.truth)
    for level in (0.8, 0.95):
        width = metrics.conformal_widths(*held, truth, level)
        figures[f"coverage{100 * level:.0f}_conformal"] = float((np.abs(bench.truth - mean) <= width * std)[seen].mean())
    rows = [np.asarray(part, dtype=float)[~np.isnan(truth)][:, None] for part in (held[0], held[1] ** 2, truth)]
    factor = metrics.variance_scale(rows[0], rows[1][..., None], rows[2])
    return figures | variant(judge(bench, mean, np.sqrt(factor) * std), "scaled", CALIBRATED)


def _forecast(model: LDMFilter, contexts: NDArray, inputs: NDArray | None, horizon: int, adapt: dict[str, Any] | None) -> tuple[NDArray, NDArray]:
    """Mean and standard deviation ``(N, H, channel)``, by the model of all or by one adapted to each context."""
    if adapt is None:
        found = model.forecast(contexts, horizon, inputs=inputs)
        return found.forecast_mean.to_numpy(), found.forecast_std.to_numpy()
    parts = []
    for i, context in enumerate(contexts):
        known = None if inputs is None else inputs[i]
        own = model.adapt(context, inputs=None if known is None else known[: len(context)], **adapt)
        parts.append(own.forecast(context, horizon, inputs=known))
    return np.stack([part.forecast_mean for part in parts]), np.stack([part.forecast_std for part in parts])


def _classical(task: str, method: str, bench: Bench) -> Answer:
    settings = TASKS[task]
    padded = np.full((len(bench.train), max(map(len, bench.train)), bench.train[0].shape[1]), np.nan)
    for row, values in zip(padded, bench.train, strict=True):
        row[: len(values)] = values
    if method in ("uc", "dynamic-factor"):
        return _structural(method, bench, settings)
    makers: dict[str, Any] = {
        "hold-last": HoldLast,
        "linear-interpolation": LinearInterpolation,
        "seasonal-naive": lambda: SeasonalNaive(settings.season),
        "var6": lambda: VARKalman(6),
        "var6-adapted": lambda: VARKalman(6),
    }
    if method not in makers:
        raise ValueError(f"method is {method!r}, expected uc, dynamic-factor or one of {', '.join((*LEARNED, *makers))}")
    fitted = makers[method]().fit(padded)

    def answer(used: Any, contexts: NDArray) -> Any:
        if settings.horizon:
            return used.forecast(contexts, settings.horizon)
        return (used.smooth if method.startswith("var6") else used.fill)(contexts)

    if method != "var6-adapted":
        mean, std = answer(fitted, bench.contexts)
        return Answer(mean, std, {})
    parts = [answer(fitted.adapted(context, ADAPT[task]["weight"]), context) for context in bench.contexts]
    return Answer(np.stack([part.mean for part in parts]), np.stack([part.std for part in parts]), {})


def _structural(method: str, bench: Bench, settings: Task) -> Answer:
    """statsmodels: parameters by maximum likelihood on training data, then the filter over each context.

    ``uc``: a local linear trend, a season of two harmonics and an irregular part. ``dynamic-factor``: two factors of order two and an own
    autoregression of every channel, by expectation maximisation (which finds a better maximum than the gradient does).
    """
    from statsmodels.tsa.statespace.dynamic_factor_mq import DynamicFactorMQ
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    def structural(values: NDArray) -> Any:
        season = [{"period": 365.25 / 7, "harmonics": 2}]
        return UnobservedComponents(values[:, 0], "local linear trend", freq_seasonal=season)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # statsmodels tells of its optimiser
        if method == "uc":
            parameters = structural(bench.train[0]).fit(disp=False, maxiter=50).params
            found = [structural(context).filter(parameters) for context in bench.contexts]
        else:
            rows = np.concatenate(bench.train)[:MOST_FITTED]
            fitted = DynamicFactorMQ(rows, factors=2, factor_orders=2, idiosyncratic_ar1=True).fit(disp=0, maxiter=200)
            found = [fitted.apply(context, retain_standardization=True) for context in bench.contexts]
        ahead = [part.get_forecast(settings.horizon) for part in found]
    shape = (len(ahead), *bench.truth.shape[1:])
    mean, std = (np.stack([np.asarray(getattr(part, name)) for part in ahead]).reshape(shape) for name in ("predicted_mean", "se_mean"))
    return Answer(mean, std, {})
