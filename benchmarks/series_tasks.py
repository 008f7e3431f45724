"""Tasks on real series: gaps to fill and futures to forecast, with their splits, and how an answer is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.calibration import BOUNDED, calibration
from datasets import co2, smartwatch, weather
from ldm_filter import metrics

__all__ = ["CALIBRATED", "TASKS", "Bench", "Task", "judge"]

CALIBRATED = ("nees", "coverage80", "coverage95", "pit_distance")


class Task(NamedTuple):
    """A task's data and sizes: forecasts of ``horizon`` steps, or gaps where it is 0; ``season`` steps make the naive season."""

    make: Callable[[], Bench]
    horizon: int
    season: int


@dataclass(frozen=True)
class Bench:
    """Everything in standard deviations of the training data (smartwatch: of each recording).

    Attributes:
        train: series to fit on, ``[(T, channel)]``, NaN = missing.
        contexts: what is known, ``(N, L, channel)``; with gaps to fill, NaN there.
        truth: the steps that follow ``(N, H, channel)``, or the whole series of which gaps were cut.
        held: contexts and truth of forecasts that are neither fitted nor judged, on which intervals are calibrated and choices were made.
        train_inputs, inputs, held_inputs: what is known of the calendar, ``[(T, u)]`` and ``(N, L + H, u)``; None without any.
    """

    train: list[NDArray]
    contexts: NDArray
    truth: NDArray
    held: tuple[NDArray, NDArray] | None = None
    train_inputs: list[NDArray] | None = None
    inputs: NDArray | None = None
    held_inputs: NDArray | None = None


def _around(values: NDArray, origins: list[int], before: int, after: int) -> NDArray:
    """The rows from ``before`` to ``after`` each origin, ``(N, rows, channel)``."""
    return np.stack([values[t + before : t + after] for t in origins])


def _recordings(split: str) -> list[NDArray]:
    """Each in units of its own spread: exercises differ in size by more than people do."""
    values = [recording.values.astype(np.float64) for recording in smartwatch.load(split)]  # type: ignore[arg-type]
    return [(part - part.mean(0)) / part.std(0) for part in values]


@cache
def imu_gaps() -> Bench:
    """Subjects 8 to 10: 10 samples of every 60 lost in all six channels; the first 900 samples of each recording. An eighth is held out."""
    train = _recordings("train")
    whole = np.stack([part[:900] for part in _recordings("test")])
    lost = np.arange(900) % 60 >= 50
    lost[-30:] = False
    return Bench([part for i, part in enumerate(train) if i % 8 != 2], np.where(lost[:, None], np.nan, whole), whole)


@cache
def imu_forecast() -> Bench:
    """Subjects 8 to 10: 25 samples (0.5 s) after 100, from every 60th sample of each recording. A sixth is held out for calibration."""
    train, known, horizon = _recordings("train"), 100, 25

    def pieces(recordings: list[NDArray]) -> tuple[NDArray, NDArray]:
        both = np.concatenate([_around(part, list(range(known, len(part) - horizon, 60)), -known, horizon) for part in recordings])
        return both[:, :known], both[:, known:]

    return Bench([part for i, part in enumerate(train) if i % 6 != 2], *pieces(_recordings("test")), pieces(train[2::6]))


def calendar(index: pd.DatetimeIndex, year: bool = True, hour: bool = True) -> NDArray:
    """Sines and cosines of the hour of the day and the day of the year, two harmonics each, ``(T, u)``."""
    phases = []
    if hour:
        phases.append(2 * np.pi * index.hour.to_numpy() / 24)
    if year:
        phases.append(2 * np.pi * (index.day_of_year.to_numpy() - 1) / 365.25)
    return np.stack([f(k * phase) for phase in phases for k in (1, 2) for f in (np.sin, np.cos)], axis=1)


@cache
def weather_forecast() -> Bench:
    """24 hours from 0, 6, 12 and 18 o'clock in the fourth week of every four; fitted on the first two, calibrated on the third; 10 days known."""
    frame, horizon, context = weather.load(), 24, 240
    known = calendar(pd.DatetimeIndex(frame.index))
    week = np.arange(len(frame)) // 168
    fit = week % 4 < 2
    values = ((frame - frame[fit].mean()) / frame[fit].std()).to_numpy()
    edges = np.flatnonzero(np.diff(np.r_[0, fit.astype(int), 0])).reshape(-1, 2)

    def origins(which: int) -> list[int]:
        last = len(frame) - horizon
        return [t for t in range(context, last, 6) if week[t] % 4 == which and week[min(t + horizon - 1, last)] == week[t]]

    now, before = origins(3), origins(2)
    return Bench(
        train=[values[a:b] for a, b in edges],
        contexts=_around(values, now, -context, 0),
        truth=_around(values, now, 0, horizon),
        held=(_around(values, before, -context, 0), _around(values, before, 0, horizon)),
        train_inputs=[known[a:b] for a, b in edges],
        inputs=_around(known, now, -context, horizon),
        held_inputs=_around(known, before, -context, horizon),
    )


@cache
def co2_forecast() -> Bench:
    """26 weeks from every second week of 1992 on; fitted on 1958 to 1984, calibrated on 1985 to 1991; 8 years known."""
    frame, horizon, context = co2.load(), 26, 416
    index = pd.DatetimeIndex(frame.index)
    known = calendar(index, hour=False)
    cut, later = (int((index < pd.Timestamp(date)).sum()) for date in ("1985-01-01", "1992-01-01"))
    values = ((frame - frame.iloc[:cut].mean()) / frame.iloc[:cut].std()).to_numpy()
    now, before = list(range(later, len(frame) - horizon, 2)), list(range(cut, later - horizon, 2))
    return Bench(
        train=[values[:cut]],
        contexts=_around(values, now, -context, 0),
        truth=_around(values, now, 0, horizon),
        held=(_around(values, before, -context, 0), _around(values, before, 0, horizon)),
        train_inputs=[known[:cut]],
        inputs=_around(known, now, -context, horizon),
        held_inputs=_around(known, before, -context, horizon),
    )


TASKS = {
    "imu-gaps": Task(imu_gaps, 0, 1),
    "imu-forecast": Task(imu_forecast, 25, 1),
    "weather-forecast": Task(weather_forecast, 24, 24),
    "co2-forecast": Task(co2_forecast, 26, 52),
}


def judge(bench: Bench, mean: NDArray, std: NDArray) -> dict[str, float]:
    """RMSE, CRPS, NEES and coverage of the 80 % and 95 % intervals over what was asked for and is known, each channel and step for itself."""
    asked = np.isnan(bench.contexts) & ~np.isnan(bench.truth) if mean.shape == bench.contexts.shape else ~np.isnan(bench.truth)
    m, s, x = (np.where(asked, np.asarray(part, dtype=float), 1.0) for part in (mean, std, bench.truth))
    flat = [part.reshape(len(part), -1, 1) for part in (m, s**2, x, asked)]
    figures = calibration(flat[0], flat[1][..., None], flat[2], flat[3])
    kept = {name: figures[name] for name in ("crps", *CALIBRATED, *(f"{name}_{end}" for name in BOUNDED for end in ("low", "high")))}
    return {"rmse": float(np.sqrt(figures["mse"]))} | kept | {"pit_distance": metrics.pit_distance(m, s, x, asked)}
