"""The demonstration, ``make demo``: real sensor recordings and a noisy video, fitted, filtered, forecast, compared and drawn.

    python -m benchmarks.demo [--out FOLDER]

1. Six inertial channels of a smartwatch worn by seven people (seglearn's physiotherapy recordings) are learned without labels. The
   recordings of three other people are judged: gaps of 0.2 s in all channels are filled, and the next 0.5 s forecast, beside the classical methods.
2. A dot runs around a circle in frames whose noise changes from frame to frame. The filter learns from frames alone how sure it can be.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.oracles import bayes_filter
from datasets import dots, smartwatch
from ldm_filter import LDMFilter, metrics
from ldm_filter.baselines import ConstantVelocity, Forecast, HoldLast, LinearInterpolation, VARKalman
from ldm_filter.plots import plot_filter, plot_video

__all__ = ["Method", "Problem", "Score", "compare", "main", "sensor_problem", "table", "verdict"]

LEARNED = "LDMFilter"
STEPS, GAP, EVERY = 900, 10, 60  # samples of each held-out recording; 0.2 s are lost every 1.2 s
CONTEXT, HORIZON = 100, 25  # forecasts start from 2 s of data and look 0.5 s ahead
UNITS = dict.fromkeys(("ax", "ay", "az"), "g") | dict.fromkeys(("wx", "wy", "wz"), "rad/s")
# Settings of the filter were chosen on subjects 6 and 7, with filters fitted on 1 to 5.
COLUMNS = ("RMSE gaps", "coverage gaps", "CRPS gaps", "RMSE forecast", "coverage forecast", "CRPS forecast")
SENSOR_MODEL: dict[str, Any] = {"state_dim": 30, "latent_dim": 6, "readout": "mlp", "learning_rate": 1e-3, "dynamics_rate": 10.0}
SENSOR_TRAINING: dict[str, Any] = {"epochs": 4, "batch_size": 16}
VIDEO = "circular-input-noise"
VIDEO_SERIES, SHOWN = 1200, 6
VIDEO_MODEL: dict[str, Any] = {"state_dim": 4, "latent_dim": 2, "noise": "input", "readout": "linear", "dynamics_rate": 5.0}
VIDEO_TRAINING: dict[str, Any] = {"epochs": 8, "batch_size": 32}


class Problem(NamedTuple):
    """Training recordings ``[(T, channel)]``, held-out ones ``(series, STEPS, channel)``, the lost steps, and the training channels' std."""

    train: list[NDArray[np.float32]]
    test: NDArray[np.float32]
    lost: NDArray[np.bool_]
    scale: NDArray[np.float64]

    def with_gaps(self) -> NDArray[np.float32]:
        return np.where(self.lost[:, None], np.float32(np.nan), self.test)

    def cuts(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What is known before each forecast, ``(cuts, CONTEXT, channel)``, and what then came, ``(cuts, HORIZON, channel)``."""
        origins = range(CONTEXT, STEPS - HORIZON + 1, EVERY)
        before = [self.test[:, origin - CONTEXT : origin] for origin in origins]
        return np.concatenate(before), np.concatenate([self.test[:, origin : origin + HORIZON] for origin in origins])


class Picture(NamedTuple):
    """Which held-out recording is drawn, from which sample, how many, and which channels."""

    recording: int
    start: int
    steps: int
    channels: tuple[str, ...]


PICTURE = Picture(recording=10, start=180, steps=240, channels=("ax", "az", "wz"))


class Method(NamedTuple):
    """Fill gaps (NaN), and forecast HORIZON steps: values ``(series, time, channel)`` -> mean and std."""

    fill: Callable[[NDArray], Forecast]
    forecast: Callable[[NDArray], Forecast]


class Score(NamedTuple):
    """Of one method at one job. RMSE and CRPS in standard deviations of the training channels; share of truth inside the 95 % intervals."""

    rmse: float
    coverage: float
    crps: float


def sensor_problem() -> Problem:
    """The recordings of subjects 1 to 7, and the first 18 s of those of subjects 8 to 10."""
    train = [recording.values for recording in smartwatch.load("train")]
    test = np.stack([recording.values[:STEPS] for recording in smartwatch.load("test")])
    lost = np.arange(STEPS) % EVERY >= EVERY - GAP
    lost[-EVERY // 2 :] = False  # every gap has two sides
    return Problem(train, test, lost, np.concatenate(train).std(0, dtype=np.float64))


def learned_method(model: LDMFilter) -> Method:
    """The fitted filter: gaps by its smoother."""

    def fill(values: NDArray) -> Forecast:
        result = model.smooth(values)
        return Forecast(result.reconstruction_mean.values, result.reconstruction_std.values)

    def forecast(values: NDArray) -> Forecast:
        result = model.forecast(values, HORIZON)
        return Forecast(result.forecast_mean.values, result.forecast_std.values)

    return Method(fill, forecast)


def classical_methods(train: list[NDArray[np.float32]]) -> dict[str, Method]:
    """What the learned filter must stand beside, fitted on the same recordings."""
    padded = np.full((len(train), max(map(len, train)), train[0].shape[1]), np.nan)
    for row, values in zip(padded, train, strict=True):
        row[: len(values)] = values
    hold, line = HoldLast().fit(padded), LinearInterpolation().fit(padded)
    velocity = ConstantVelocity(smartwatch.PERIOD).fit(padded, gap=GAP)
    autoregression = VARKalman(6).fit(padded)
    return {
        "hold last": Method(hold.fill, lambda values: hold.forecast(values, HORIZON)),
        "linear interpolation": Method(line.fill, lambda values: line.forecast(values, HORIZON)),
        f"constant velocity KF (gap={GAP})": Method(velocity.smooth, lambda values: velocity.forecast(values, HORIZON)),
        "VAR(6) Kalman smoother": Method(autoregression.smooth, lambda values: autoregression.forecast(values, HORIZON)),
    }


def score(estimate: Forecast, truth: NDArray, scale: NDArray) -> Score:
    """Every channel in units of its standard deviation on the training recordings."""
    mean, std, truth = (np.asarray(part, dtype=float) / scale for part in (*estimate, truth))
    inside = metrics.coverage(mean[..., None], np.square(std)[..., None, None], truth[..., None])
    return Score(metrics.rmse(mean, truth), float(inside), float(np.mean(metrics.crps_normal(mean, std, truth))))


def compare(methods: Mapping[str, Method], problem: Problem) -> pd.DataFrame:
    """Gap filling and forecasts of every method: one row each, columns as COLUMNS."""
    gapped, (before, after) = problem.with_gaps(), problem.cuts()
    rows = {}
    for name, method in methods.items():
        missing = Forecast(*(part[:, problem.lost] for part in method.fill(gapped)))
        rows[name] = [
            *score(missing, problem.test[:, problem.lost], problem.scale),
            *score(method.forecast(before), after, problem.scale),
        ]
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS))


def costs(figures: pd.DataFrame) -> pd.DataFrame:
    """Smaller is better: RMSE and CRPS as they are, coverage by its distance from 95 %."""
    away = {column: (figures[column] - 0.95).abs() for column in COLUMNS if column.startswith("coverage")}
    return figures.assign(**away)


def table(figures: pd.DataFrame) -> str:
    """The comparison as text; the best of each column is starred."""
    best = costs(figures).eq(costs(figures).min()).to_numpy()
    width = max(map(len, figures.index))
    lines = ["  ".join([" " * width, *(f"{column:>17}" for column in COLUMNS)])]
    for name, values, won in zip(figures.index, figures.to_numpy(), best, strict=True):
        numbers = (f"{value:.1%}" if column.startswith("coverage") else f"{value:.3f}" for column, value in zip(COLUMNS, values, strict=True))
        cells = (f"{number}{'*' if star else ' '}" for number, star in zip(numbers, won, strict=True))
        lines.append("  ".join([f"{name:<{width}}", *(f"{cell:>17}" for cell in cells)]))
    return "\n".join(lines)


def verdict(figures: pd.DataFrame, name: str = LEARNED) -> list[str]:
    """Who is ahead of whom in RMSE and CRPS, from the figures. (Coverage says whether a method's own uncertainty is honest, not how good it is.)"""
    scores = [column for column in COLUMNS if not column.startswith("coverage")]
    ahead = {other: [column for column in scores if figures.loc[other, column] <= figures.loc[name, column]] for other in figures.index.drop(name)}
    beaten = [other for other, columns in ahead.items() if not columns]
    lines = [f"In RMSE and CRPS, of gaps and forecasts, {name} is ahead of: {', '.join(beaten) or 'none of the others'}."]
    return lines + [f"{other} is ahead of {name} in: {', '.join(columns)}." for other, columns in ahead.items() if columns]


def sensors(out: Path) -> None:
    """Fit, compare, draw: the smartwatch recordings."""
    problem = sensor_problem()
    samples = sum(map(len, problem.train))
    say(f"1. Smartwatch: {len(problem.train)} recordings of subjects 1-7 ({samples:,} samples of 6 channels at 50 Hz) to learn from, without labels;")
    say(f"   {len(problem.test)} recordings of subjects 8-10, {STEPS * smartwatch.PERIOD:g} s of each, to be judged on.")
    started = time.perf_counter()
    model = LDMFilter(**SENSOR_MODEL).fit(problem.train, **SENSOR_TRAINING)
    say(f"   {model} fitted in {time.perf_counter() - started:.0f} s.")
    seconds = GAP * smartwatch.PERIOD, HORIZON * smartwatch.PERIOD
    say(f"   Now: fill gaps of {GAP} samples ({seconds[0]:g} s, all channels), forecast {HORIZON} samples ({seconds[1]:g} s).\n")
    methods = {LEARNED: learned_method(model), **classical_methods(problem.train)}
    figures = compare(methods, problem)
    say(table(figures))
    say("\n   RMSE and CRPS in standard deviations of each training channel; coverage: share of the truth inside the 95 % interval.")
    say("   * best of its column (coverage: nearest to 95 %).")
    for line in verdict(figures):
        say(f"   {line}")
    say(f"   Picture: {draw_sensors(model, problem.lost, out)}\n")


def draw_sensors(model: LDMFilter, lost: NDArray[np.bool_], out: Path) -> Path:
    """A held-out recording with gaps, smoothed, and the forecast that follows, beside what really came."""
    recording = smartwatch.to_frame(smartwatch.load("test")[PICTURE.recording])
    first, last = PICTURE.start, PICTURE.start + PICTURE.steps
    shown, ahead = recording.iloc[first:last], recording.iloc[last : last + HORIZON]
    seen = shown.mask(np.broadcast_to(lost[first:last, None], shown.shape))
    hidden = pd.concat([shown.where(seen.isna()), ahead])
    result, forecast = model.smooth(seen), model.forecast(seen, HORIZON)
    figure = plot_filter(result, seen, PICTURE.channels, truth=hidden, forecast=forecast, units=UNITS)
    return save(figure, out / "demo_sensors.png")


def video(out: Path) -> None:
    """Fit, read out, compare with the exact filter, draw: the dot."""
    train, labelled, test = (dots.generate(VIDEO, series, seed=seed) for seed, series in enumerate((VIDEO_SERIES, 64, 64)))
    say(f"2. Video: {VIDEO_SERIES} videos of 100 frames, a dot on a circle, noise that changes from frame to frame and hides the dot in many.")
    started = time.perf_counter()
    model = LDMFilter(**VIDEO_MODEL).fit(train.frames, **VIDEO_TRAINING)
    screen = dots.TASKS[VIDEO].screen
    model.fit_readout(labelled.frames, screen.pixel(labelled.position), covariance="state-dependent")
    say(
        f"   {model} fitted in {time.perf_counter() - started:.0f} s from frames alone; {len(labelled.frames)} more videos told it where x and y are."
    )
    result, truth = model.filter(test.frames), screen.pixel(test.position)
    oracle = screen.pixel(bayes_filter(VIDEO, test).mean)
    inside = metrics.coverage(result.target_mean.values, result.target_cov.values, truth)
    say(f"   R2 of the filtered position on {len(truth)} fresh videos: {metrics.r2(result.target_mean.values, truth):.3f}; exact Bayes filter that")
    say(f"   knows the generator: {metrics.r2(oracle, truth):.3f}. The 95 % ellipses hold {inside:.1%} of the true positions.")
    noise = metrics.noise_corr(result.latent_cov.values, test.noise_var)
    say(f"   Correlation of the measurement variance that it infers with the true noise variance: {noise:.3f}")
    say(f"   Picture: {draw_video(test, result, truth, out)}\n")


def draw_video(test: dots.Dots, result: xr.Dataset, truth: NDArray, out: Path) -> Path:
    """Frames in a row, first clean and then noisier: what the filter does when it must not trust a frame."""
    series, first = changing(test.noise_var)
    figure = plot_video(test.frames[series], result.isel(series=series), truth[series], range(first, first + SHOWN))
    return save(figure, out / "demo_video.png")


def changing(noise_var: NDArray) -> tuple[int, int]:
    """The video and first frame of the window in which the noise grows most steadily, of those past the filter's first 20 frames."""
    log = np.log(np.lib.stride_tricks.sliding_window_view(noise_var[:, 20:], SHOWN, axis=1) + 0.02)
    ramp = np.linspace(-1, 1, SHOWN)
    series, first = np.unravel_index((log @ ramp).argmax(), log.shape[:2])
    return int(series), int(first) + 20


def save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    return path


def say(text: str) -> None:
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Both parts, and how long they took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description="Learn from sensors and from video, compare, and draw.")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the two pictures (default: out)")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    sensors(options.out)
    video(options.out)
    say(f"Done in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
