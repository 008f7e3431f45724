"""What is compared on real series: the learned filter, rules of thumb, a vector autoregression, and statsmodels' structural models."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.records import Clock, Outcome
from benchmarks.series_tasks import TASKS, Bench, Task, judge
from ldm_filter import LDMFilter
from ldm_filter.baselines import HoldLast, LinearInterpolation, SeasonalNaive, VARKalman

__all__ = ["default_methods", "run"]

# Arguments of LDMFilter, and epochs by budget.
MODELS: dict[str, dict[str, Any]] = {
    "imu-gaps": {"state_dim": 36, "latent_dim": 6, "encoder": "linear", "readout": "linear", "learning_rate": 1e-3},
    "imu-forecast": {"state_dim": 24, "latent_dim": 6, "readout": "linear", "learning_rate": 1e-3},
    "weather-forecast": {"state_dim": 12, "latent_dim": 6, "readout": "linear"},
    "co2-forecast": {"state_dim": 4, "latent_dim": 1, "readout": "linear", "window": 200},
}
EPOCHS = {
    "smoke": dict.fromkeys(TASKS, 1),
    "cpu": {"imu-gaps": 6, "imu-forecast": 8, "weather-forecast": 60, "co2-forecast": 150},
}
EPOCHS["full"] = EPOCHS["cpu"]
# Steps over which the learned filter sees differences, where the level drifts for ever: x_t - x_{t - 52} of a yearly season with a trend.
DIFFERENCE = {"co2-forecast": 52}
WEIGHT = 10  # steps that the model of all counts for, where it is adapted to each recording
MOST_FITTED = 3000  # rows that statsmodels is fitted on where there are many channels


class Answer(NamedTuple):
    """Mean and standard deviation of what was asked for, and further figures."""

    mean: NDArray
    std: NDArray
    extra: dict[str, float]
    train_steps: int = 0


def default_methods(task: str, condition: str = "") -> tuple[str, ...]:
    if not TASKS[task].horizon:
        return ("ldm", "ldm-adapted", "linear-interpolation", "var6", "var6-adapted")
    return ("ldm", "hold-last", "seasonal-naive", *(("uc",) if task.startswith("co2") else ("var6", "dynamic-factor")))


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
    learned = method in ("ldm", "ldm-adapted")
    answer = _learned(task, bench, budget, seed, method) if learned else _classical(method, settings, bench)
    seconds = time.perf_counter() - started
    figures = judge(bench, answer.mean, answer.std) | answer.extra
    return Outcome(figures, "linear" if learned else "none", seconds, answer.train_steps)


def _few(bench: Bench) -> Bench:
    """A corner of the task, to show within seconds that all of it runs."""
    cut: dict[str, Any] = {name: getattr(bench, name)[:8] for name in ("contexts", "truth")}
    cut |= {name: [values[:800] for values in getattr(bench, name)[:4]] for name in ("train", "calibration")}
    if bench.inputs is not None and bench.train_inputs is not None and bench.calibration_inputs is not None:
        cut |= {"inputs": bench.inputs[:8], "train_inputs": [values[:800] for values in bench.train_inputs[:4]]}
        cut["calibration_inputs"] = [values[:800] for values in bench.calibration_inputs[:4]]
    return replace(bench, **cut)


def _differenced(bench: Bench, lag: int, horizon: int) -> tuple[Bench, NDArray]:
    """The same task on differences over ``lag`` steps, at least the horizon; and what is to be added to its forecasts, gaps in it filled."""

    def change(values: NDArray) -> NDArray:
        return values[..., lag:, :] - values[..., :-lag, :]

    before = LinearInterpolation().fit(bench.contexts).fill(bench.contexts).mean[:, -lag:][:, :horizon]
    known, later = ([array[lag:] for array in part or []] or None for part in (bench.train_inputs, bench.calibration_inputs))
    inputs = None if bench.inputs is None else bench.inputs[:, lag:]
    train, calibration = ([change(values) for values in part] for part in (bench.train, bench.calibration))
    return Bench(train, calibration, change(bench.contexts), bench.truth - before, known, later, inputs), before


def _learned(task: str, bench: Bench, budget: str, seed: int, method: str) -> Answer:
    horizon, base = TASKS[task].horizon, np.zeros(1)
    if task in DIFFERENCE:
        bench, base = _differenced(bench, DIFFERENCE[task], horizon)
    clock = Clock()
    model = LDMFilter(seed=seed, **MODELS[task])
    model.fit(bench.train, inputs=bench.train_inputs, epochs=EPOCHS[budget][task], progress=False)
    extra = clock.read()
    steps = len(model.history_.epochs)
    if not horizon:
        mean, std = _filled(model, bench.contexts, method == "ldm-adapted")
        return Answer(mean, std, extra, steps)
    model.calibrate(bench.calibration, horizon, every=3, inputs=bench.calibration_inputs)
    plain, fixed = (model.forecast(bench.contexts, horizon, inputs=bench.inputs, conformal=conformal) for conformal in (False, True))
    known = ~np.isnan(bench.truth)
    for i, level in enumerate((80, 95)):
        inside = (bench.truth >= fixed.forecast_lo.to_numpy()[..., i]) & (bench.truth <= fixed.forecast_hi.to_numpy()[..., i])
        extra[f"coverage{level}_conformal"] = float(inside[known].mean())
    return Answer(plain.forecast_mean.to_numpy() + base, plain.forecast_std.to_numpy(), extra, steps)


def _filled(model: LDMFilter, contexts: NDArray, adapted: bool) -> tuple[NDArray, NDArray]:
    """Smoothed series, by the model of all or by one adapted to each, gaps and all."""
    found = [(model.adapt(context, weight=WEIGHT) if adapted else model).smooth(context) for context in contexts]
    return np.stack([part.reconstruction_mean for part in found]), np.stack([part.reconstruction_std for part in found])


def _classical(method: str, settings: Task, bench: Bench) -> Answer:
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
        raise ValueError(f"method is {method!r}, expected ldm, ldm-adapted, uc, dynamic-factor or one of {', '.join(makers)}")
    fitted = makers[method]().fit(padded)
    if settings.horizon:
        mean, std = fitted.forecast(bench.contexts, settings.horizon)
        return Answer(mean, std, {})
    if method == "var6-adapted":
        filled = [fitted.adapted(context, WEIGHT).smooth(context) for context in bench.contexts]
        return Answer(np.stack([part.mean for part in filled]), np.stack([part.std for part in filled]), {})
    mean, std = (fitted.smooth if method == "var6" else fitted.fill)(bench.contexts)
    return Answer(mean, std, {})


def _structural(method: str, bench: Bench, settings: Task) -> Answer:
    """statsmodels: parameters by maximum likelihood on training data, then the filter over each context.

    ``uc``: a local linear trend, a season of two harmonics and an irregular part. ``dynamic-factor``: two factors of order two.
    """
    from statsmodels.tsa.statespace.dynamic_factor import DynamicFactor
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    def model(values: NDArray) -> Any:
        if method == "uc":
            season = [{"period": 365.25 / 7, "harmonics": 2}]
            return UnobservedComponents(values[:, 0], "local linear trend", freq_seasonal=season)
        return DynamicFactor(values, k_factors=2, factor_order=2, error_order=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # statsmodels tells of its optimiser
        rows = np.concatenate(bench.train)[:MOST_FITTED] if method == "dynamic-factor" else bench.train[0]
        parameters = model(rows).fit(disp=False, maxiter=50).params
        means, stds = [], []
        for context in bench.contexts:
            ahead = model(context).filter(parameters).get_forecast(settings.horizon)
            means.append(np.asarray(ahead.predicted_mean).reshape(settings.horizon, -1))
            cov = np.asarray(ahead.var_pred_mean)
            var = cov if cov.ndim < 3 else np.diagonal(cov, axis1=1, axis2=2)
            stds.append(np.sqrt(var).reshape(settings.horizon, -1))
    return Answer(np.stack(means), np.stack(stds), {})
