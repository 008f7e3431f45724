"""What the learned filters were to reach, task by task, and what they did: one generated table, whichever way it ends."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from benchmarks import cells
from benchmarks.markdown import table
from benchmarks.records import Row, newest

__all__ = ["GOALS", "Goal", "goals_table"]


class Goal(NamedTuple):
    """A figure to reach with the ``cpu`` budget, by its mean over seeds.

    Attributes:
        task, condition, method: whose runs.
        metric: name in the results; words: what it is called in the table.
        bound: the figure itself, or the two that it shall lie between, or how far it may be from the rival's.
        low: whether little is good. rival: a method to be within ``bound`` of; ``"others"``: the best of the other methods is to be beaten.
        form: of the figures.
    """

    task: str
    method: str
    metric: str
    words: str
    bound: float | tuple[float, float] = 0.0
    condition: str = ""
    low: bool = False
    rival: str = ""
    form: str = ".4f"


OTHERS = "others"
GOALS = (
    Goal("figure8", "ldm-log-det", "r2", "R²", 0.997),
    Goal("figure8", "ldm-log-det", "r2_at_60s", "R² within 60 s", 0.99),
    Goal("square", "ldm-log-det", "r2", "R²", 0.990),
    Goal("circular-input-noise", "ldm-conditional-log-det", "r2", "R²", 0.961),
    Goal("circular-input-noise", "ldm-conditional-log-det", "mlp_r2", "R², MLP", 0.970),
    Goal("circular-input-noise", "ldm-conditional-log-det", "noise_corr", "corr(R, v)", 0.97, form=".3f"),
    Goal("circular-constant-noise", "ldm-log-det", "r2", "R²", 0.992),
    Goal("jump", "ldm-log-det", "r2", "R²", 0.968),
    Goal("jump", "ldm-log-det", "auc", "AUC of jumps", 0.97, form=".3f"),
    Goal("jump", "ldm-log-det", "settled", "settled after, steps", 10, low=True, form=".0f"),
    Goal("state-noise", "ldm-log-det", "excess", "excess error", 0.15, low=True, form=".2f"),
    Goal("figure8-small", "ldm-log-det", "r2", "R²", 0.995),
    Goal("linear-latent", "ldm-log-det+wide", "affine_r2", "R² of the truth", 0.99),
    Goal("linear-latent", "ldm-log-det+wide", "eig_error", "eigenvalues", 0.01, low=True),
    Goal("linear-latent", "ldm-log-det", "affine_r2", "R² of the truth", 0.99, "mild"),
    Goal("linear-latent", "ldm-log-det", "eig_error", "eigenvalues", 0.01, "mild", low=True),
    Goal("place-cells", "ldm-log-det", "affine_r2", "R² of the truth", 0.90),
    Goal("place-cells", "ldm-log-det", "mlp_r2", "R², MLP", 0.98),
    Goal("place-cells", "ldm-log-det", "affine_r2", "R² of the truth", rival=OTHERS),
    Goal("wobbly", "ldm-annealed-knn", "affine_r2", "R² of the truth", 0.985),
    Goal("wobbly", "ldm-knn", "affine_r2", "R² of the truth", 0.95),
    Goal("wobbly", "ldm-annealed-knn", "affine_r2", "R² of the truth", 0.985, "ekf"),
    Goal("wobbly", "ldm-annealed-knn", "nis", "NIS / m", (0.9, 1.1), "ekf", form=".2f"),
    Goal("wobbly-paper", "ldm-annealed-knn", "affine_r2_in_range", "R² in range", 0.98),
    Goal("sources-2", "ldm-log-det", "affine_r2", "R² of the truth", 0.98),
    Goal("sources-6", "ldm-log-det", "affine_r2", "R² of the truth", 0.92),
    Goal("sources-10", "ldm-log-det", "affine_r2", "R² of the truth", 0.87),
    Goal("imu-gaps", "ldm-adapted", "rmse", "RMSE", low=True, rival=OTHERS),
    Goal("imu-gaps", "ldm-adapted", "crps", "CRPS", low=True, rival=OTHERS),
    Goal("imu-forecast", "ldm-adapted", "crps", "CRPS", low=True, rival=OTHERS),
    Goal("weather-forecast", "ldm-adapted", "crps", "CRPS", low=True, rival=OTHERS),
    Goal("co2-forecast", "ldm-adapted", "crps", "CRPS", low=True, rival=OTHERS),
    Goal("gates", "ldm-inflate", "growth", "error grows by, %", 10, "one per cent of outliers", low=True, form=".2f"),
    Goal("gates", "ldm-inflate", "growth", "error grows by, %", 2, "no outliers", low=True, form=".2f"),
    Goal("gates", "ldm-inflate", "settled_most", "settled after, steps, at most", 20, "level shift", low=True, form=".0f"),
    Goal("online", "ldm-mlp", "step_us", "step, µs", 150, low=True, form=".0f"),
    Goal("pendulum", "ldm-supervised", "nll", "NLL", -5.5, low=True, form=".2f"),
    Goal("pendulum-irregular", "ldm-supervised", "mse", "MSE", 5.5e-3, low=True, form=".1e"),
    Goal("pendulum-self-supervised", "ldm-conditional-log-det", "mlp_r2", "R², MLP", 0.95),
    *(Goal("lorenz", "ldm-polynomial", "db", "MSE, dB", 1.0, f"{noise} dB", low=True, rival="ekf-true", form=".2f") for noise in (0, 10, 20, 30)),
    Goal("lorenz-decimation", "ldm-polynomial", "db", "MSE, dB", -11.3, low=True, form=".2f"),
    Goal("lorenz-decimation", "ldm-polynomial", "db_smoothed", "smoothed, dB", -16.8, low=True, form=".2f"),
    Goal("bouncing-ball", "ldm-ekf", "affine_r2", "R² of hidden positions", 0.95),
    Goal("bouncing-ball", "ldm-ekf", "affine_r2", "R² of hidden positions", rival=OTHERS),
    Goal("bouncing-ball", "ldm-ekf", "nll", "NLL of hidden positions", low=True, rival=OTHERS, form=".2f"),
    Goal("gym-pendulum", "ldm-ekf", "r2_sin", "R², sin", 0.95),
    Goal("gym-pendulum", "ldm-ekf", "r2_cos", "R², cos", 0.95),
    Goal("gym-pendulum", "ldm-ekf", "r2_angular_velocity", "R², angular velocity", 0.90),
    Goal("gym-cartpole", "ldm-linear", "r2_position", "R², position", 0.95),
    Goal("gym-cartpole", "ldm-linear", "r2_angle", "R², angle", 0.95),
    Goal("gym-cartpole", "ldm-linear", "r2_velocity", "R², velocity", 0.90),
    Goal("gym-cartpole", "ldm-linear", "r2_angular_velocity", "R², angular velocity", 0.90),
)


def goals_table(rows: Sequence[Row], code: cells.Code) -> str:
    """A line for each goal with results, beside the best of the other methods and the oracle, and how many are reached.

    Args:
        rows: runs, see `records.read`.
        code: of today; methods with runs by other code are marked.
    """
    lines, used, verdicts = [], [], []
    for goal in GOALS:
        methods = _by_method(rows, goal)
        if goal.method not in methods:
            continue
        ours, verdict = methods[goal.method], _reached(goal, methods)
        name = ", ".join(part for part in (f"`{goal.task}`", goal.condition) if part)
        measured = [cells.figure(ours, goal.metric, goal.form), "reached" if verdict else "**short**"]
        rival = _rival(goal, methods)
        beside = f"{_mean(methods, rival, goal.metric):{goal.form}} (`{rival}`)" if rival else ""
        oracle = cells.figure(methods.get("oracle", []), goal.metric, goal.form)
        lines.append([name, f"`{goal.method}`{cells.mark(ours, code)}", goal.words, _asked(goal), *measured, beside, oracle])
        used += ours
        verdicts.append(verdict)
    heads = ("task", "method", "figure", "goal", "measured", "", "best of the others", "oracle")
    if not lines:
        return "No results yet."
    return "\n\n".join([table(heads, lines), f"Reached: {sum(verdicts)} of {len(verdicts)}.", cells.footer(used, code)])


def _by_method(rows: Sequence[Row], goal: Goal) -> dict[str, list[Row]]:
    """The runs that hold the figure."""
    found: dict[str, list[Row]] = {}
    for row in newest(rows):
        if (row["task"], row["condition"], row["budget"]) == (goal.task, goal.condition, "cpu") and cells.value(row, goal.metric) is not None:
            found.setdefault(row["method"], []).append(row)
    return found


def _reached(goal: Goal, methods: dict[str, list[Row]]) -> bool:
    value = _mean(methods, goal.method, goal.metric)
    if isinstance(goal.bound, tuple):
        return goal.bound[0] <= value <= goal.bound[1]
    asked = goal.bound
    if goal.rival:
        rival = _mean(methods, _rival(goal, methods), goal.metric)
        asked = rival + goal.bound if goal.low else rival - goal.bound
    return value <= asked if goal.low else value >= asked


def _rival(goal: Goal, methods: dict[str, list[Row]]) -> str:
    """The method that is named; else the best of all that are neither ours nor the oracle, empty where there is none."""
    if goal.rival not in ("", OTHERS):
        return goal.rival
    others = [name for name in methods if name != "oracle" and not cells.ours(name)]
    sign = -1 if goal.low else 1
    return max(others, key=lambda name: sign * _mean(methods, name, goal.metric), default="")


def _asked(goal: Goal) -> str:
    if isinstance(goal.bound, tuple):
        return f"{goal.bound[0]:g} to {goal.bound[1]:g}"
    if goal.rival == OTHERS:
        return "better than all others"
    if goal.rival:
        return f"within {goal.bound:g} of `{goal.rival}`" if goal.bound else f"better than `{goal.rival}`"
    return f"{'≤' if goal.low else '≥'} {goal.bound:g}"


def _mean(methods: dict[str, list[Row]], name: str, metric: str) -> float:
    return mean(row["metrics"][metric] for row in methods[name])
