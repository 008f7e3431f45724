"""The tables of the speed benchmark, generated from ``speed.json``; the goals stand beside what was measured, whichever it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import records, speed_plot, speed_steps
from benchmarks.markdown import replace_between, table
from benchmarks.speed_jax import JAX
from benchmarks.speed_problems import REGIMES, WORKLOADS, floor
from benchmarks.speed_race import ENTRANTS
from benchmarks.speed_torch import OURS, PLAIN
from benchmarks.speed_training import GOAL

__all__ = ["GOALS", "headline", "render", "update"]

MARKERS = ("<!-- speed:begin -->", "<!-- speed:end -->")
NOTHING = "No results yet: `python -m benchmarks.speed` makes them."
REGIME_TITLES = {"constant": "Regime (i): a constant model", "per-sequence": "Regime (ii): R differs by sequence and step"}
Rows = Sequence[dict[str, Any]]


class Goal(NamedTuple):
    """How many times faster than whom ldm-filter shall be: forward, and forward + backward (None: no goal)."""

    regime: str
    workload: str
    rival: str
    forward: float
    backward: float | None


BEST_JAX = "best of JAX"
FILTERPY = "filterpy"
GOALS = (
    *(Goal("constant", name, PLAIN.name, 50, 50) for name in ("W1", "W2", "W3")),
    Goal("constant", "W4", PLAIN.name, 20, 20),
    *(Goal("constant", name, BEST_JAX, 3, 3) for name in ("W1", "W2", "W3")),
    Goal("constant", "W4", BEST_JAX, 1, 1),
    Goal("constant", "W1", FILTERPY, 1000, None),
    Goal("per-sequence", "W1", PLAIN.name, 30, 20),
    Goal("per-sequence", "W2", PLAIN.name, 15, 15),
    Goal("per-sequence", "W3", PLAIN.name, 15, 10),
    Goal("per-sequence", "W4", PLAIN.name, 3, 3),
    *(Goal("per-sequence", name, BEST_JAX, 3, 3) for name in WORKLOADS),
    Goal("per-sequence", "W1", FILTERPY, 1000, None),
)
FLOOR_GOAL, THREADS_GOAL, ONLINE_GOAL_US, MEMORY_GOAL, TRAINING_GOAL_S = 1 / 3, 1.7, 5.0, 2**30, 5.0
RIVALS = {PLAIN.name: (PLAIN.name,), BEST_JAX: tuple(one.name for one in JAX), FILTERPY: (FILTERPY,)}


def update(folder: Path) -> None:
    """Draw the plot beside ``speed.json``; where that is the published one, the plot goes beside the README, whose table is rewritten."""
    published = folder.resolve() == records.RESULTS
    result = read(folder)
    speed_plot.draw([row for row in result["rows"] if row["part"] == "curves"], (records.ROOT / "benchmarks" if published else folder) / "speed.png")
    if published:
        path = records.ROOT / "benchmarks" / "README.md"
        path.write_text(replace_between(path.read_text(encoding="utf-8"), MARKERS, render(result)), encoding="utf-8")
        front = records.ROOT / "README.md"
        front.write_text(replace_between(front.read_text(encoding="utf-8"), MARKERS, headline(result)), encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """The last run; one without rows where there is none."""
    path = folder / "speed.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}


def render(result: dict[str, Any]) -> str:
    """Everything between the markers, from one run's header and rows."""
    if not result["rows"]:
        return NOTHING
    parts = []
    for regime in REGIMES:
        races = _part(result, "races", regime=regime)
        parts += [f"### {REGIME_TITLES[regime]}", _rates(races), _failures(races), _ratios(races, regime)]
    parts += ["### Share of the floor", _floors(result), "### Threads, memory, one observation at a time", _others(result)]
    parts += ["![cost against each size](speed.png)", _footer(result)]
    return "\n\n".join(part for part in parts if part)


def headline(result: dict[str, Any]) -> str:
    """For the first page: how many times faster than three rivals, in both regimes, forward and with gradients."""
    races = _part(result, "races")
    if not races:
        return NOTHING
    lines = []
    for regime, what in (("constant", "constant model"), ("per-sequence", "R of each step")):
        for name, size in WORKLOADS.items():
            cells = []
            for rival in RIVALS:
                goals = (Goal(regime, name, rival, 0, 0), [row for row in races if row["regime"] == regime])
                ratios = [_against(goals[1], goals[0], backward)[0].split(" ")[0] for backward in (False, True)]
                cells.append(" / ".join(ratio for ratio in ratios if ratio != "not"))
            lines.append([f"{size.batch} x {size.steps}, {size.n} states, {size.m} measured, {what}", *cells])
    heads = ["series x steps; times faster, forward / with gradients", "than a loop in torch", "than the best of JAX", "than filterpy"]
    return table(heads, lines)


def _part(result: dict[str, Any], part: str, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["part"] == part and all(row[name] == value for name, value in wanted.items())]


# --- rates and ratios


def _rates(races: Rows) -> str:
    """Million filter steps per second, forward / forward + backward."""
    lines = []
    for entrant in ENTRANTS:
        rows = [row for row in races if row["entrant"] == entrant.name and "rate" in row]
        if not rows:
            continue
        cells = [_cell([row for row in rows if row["workload"] == name], name) for name in WORKLOADS]
        name = f"**{entrant.name}**" if entrant is OURS else entrant.name
        lines.append([name, *cells, f"{max(row['error'] for row in rows):.0e}"])
    return table(["million steps / s, forward / with gradients", *WORKLOADS, "largest error"], lines)


def _cell(rows: Rows, workload: str) -> str:
    figures = [_figure(row["rate"] / 1e6) for backward in (False, True) for row in rows if row["backward"] == backward]
    part = any(row["batch"] * row["steps"] < WORKLOADS[workload].batch * WORKLOADS[workload].steps for row in rows)
    return " / ".join(figures) + (" *" if part else "")


def _figure(value: float) -> str:
    """Two significant digits, three from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _failures(races: Rows) -> str:
    failed = [f"{row['entrant']} failed at {row['workload']}: {row['failure']}" for row in races if "failure" in row]
    return "\n".join(f"- {line}" for line in failed)


def _ratios(races: Rows, regime: str) -> str:
    """How many times faster than the rivals, with the goals."""
    lines = []
    for goal in GOALS:
        if goal.regime == regime:
            lines.append([f"{goal.workload}, against {goal.rival}", *_against(races, goal, False), *_against(races, goal, True)])
    return table(["ldm-filter is faster by", "forward", "goal", "", "forward + backward", "goal", ""], lines)


def _against(races: Rows, goal: Goal, backward: bool) -> list[str]:
    wanted = goal.backward if backward else goal.forward
    if wanted is None:
        return ["", "", ""]
    there = {row["entrant"]: row["rate"] for row in races if row["workload"] == goal.workload and row["backward"] == backward and "rate" in row}
    rivals = {name: there[name] for name in RIVALS[goal.rival] if name in there}
    target = f"≥ {wanted:g}"
    if OURS.name not in there or not rivals:
        return ["not measured", target, ""]
    best = max(rivals, key=lambda name: rivals[name])
    ratio = there[OURS.name] / rivals[best]
    return [f"{_figure(ratio)}" + (f" ({best})" if len(RIVALS[goal.rival]) > 1 else ""), target, _verdict(ratio >= wanted)]


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**short**"


# --- the floor


def _floors(result: dict[str, Any]) -> str:
    """What no filter can be faster than, and how near ldm-filter comes."""
    machine = _part(result, "machine")
    if not machine:
        return ""
    power = {name: machine[0][name] for name in ("gflops", "copy_gbs", "multiply_ns", "divide_ns")}
    lines = []
    for regime in REGIMES:
        for name, size in WORKLOADS.items():
            for backward in (False, True):
                rows = _part(result, "races", regime=regime, workload=name, backward=backward, entrant=OURS.name)
                if not rows or "rate" not in rows[0]:
                    continue
                work, steps = floor(size, regime, backward), size.batch * size.steps
                best = steps / work.seconds(**power, serial=size.batch == 1)
                share = rows[0]["rate"] / best
                goal = ["≥ 33 %", _verdict(share >= FLOOR_GOAL)] if regime == "per-sequence" and not backward else ["", ""]
                what = "forward + backward" if backward else "forward"
                counts = [f"{work.flops / steps:.0f}", f"{work.bytes / steps:.0f}", _figure(best / 1e6), _figure(rows[0]["rate"] / 1e6)]
                lines.append([f"{regime}, {name}, {what}", *counts, f"{100 * share:.0f} %", *goal])
    words = (
        f"One core: {power['gflops']:.0f} GFLOP/s in a matrix product, {power['copy_gbs']:.0f} GB/s in a copy, a dependent multiplication in "
        f"{power['multiply_ns']:.2f} ns, a division in {power['divide_ns']:.1f} ns. At W3 the floor is the latency of one step."
    )
    return f"{words}\n\n" + table(["", "FLOP / step", "bytes / step", "floor, M steps / s", "ldm-filter", "share", "goal", ""], lines)


# --- threads, memory, online, training


def _others(result: dict[str, Any]) -> str:
    lines = [*_threads(result), *_memory(result), *_online(result), *speed_steps.lines(result["rows"]), *_training(result)]
    return table(["", "measured", "goal", ""], lines)


def _threads(result: dict[str, Any]) -> list[list[str]]:
    lines = []
    for row in _part(result, "threads"):
        if row["threads"] == 1:
            continue
        what = "forward + backward" if row["backward"] else "forward"
        same = "same numbers" if row["same"] else "**other numbers**"
        goal = [f"≥ {THREADS_GOAL}", _verdict(row["speedup"] >= THREADS_GOAL and row["same"])] if row["threads"] == 2 else ["", ""]
        lines.append([f"{row['threads']} threads against one, {row['regime']}, {row['workload']}, {what}", f"{row['speedup']:.2f} x, {same}", *goal])
    return lines


def _memory(result: dict[str, Any]) -> list[list[str]]:
    lines = []
    for row in _part(result, "memory"):
        steps = row["batch"] * row["steps"]
        if row["workload"] == "series":
            measured = f"{row['peak'] / 2**20:.0f} MiB, {row['added'] / 2**20:.0f} of them for the run"
            lines.append(
                [
                    f"memory of a process that filters one series of {steps:.0e} steps (n 4, m 2)",
                    measured,
                    "< 1 GiB",
                    _verdict(row["peak"] < MEMORY_GOAL),
                ]
            )
        else:
            measured = f"{row['added'] / 2**20:.0f} MiB, {row['added'] / steps / 8:.0f} numbers a step"
            lines.append([f"memory that forward + backward adds, {row['regime']}, {row['workload']}: {row['entrant']}", measured, "", ""])
    return lines


def _online(result: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"one filter step from Python (n 8, m 4), {row['steps']:.0e} in a row",
            f"{1e6 * row['median']:.1f} µs; at first {1e6 * row['first']:.1f}, at last {1e6 * row['last']:.1f}",
            f"≤ {ONLINE_GOAL_US:.0f} µs",
            _verdict(1e6 * row["median"] <= ONLINE_GOAL_US),
        ]
        for row in _part(result, "online")
    ]


def _training(result: dict[str, Any]) -> list[list[str]]:
    rows = _part(result, "training")
    if not rows:
        return []
    seconds, good = [row["fit_seconds"] for row in rows], all(row["r2"] >= GOAL for row in rows)
    what = f"a fit of figure8 until R² ≥ {GOAL} ({len(rows)} seeds)"
    measured = f"{median(seconds):.1f} s, at most {max(seconds):.1f}; R² {min(row['r2'] for row in rows):.4f} at least"
    return [[what, measured, f"≤ {TRAINING_GOAL_S:.0f} s", _verdict(good and max(seconds) <= TRAINING_GOAL_S)]]


def _footer(result: dict[str, Any]) -> str:
    rounds = max((len(row.get("seconds", ())) for row in _part(result, "races")), default=0)
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    missing = sorted({name for row in _part(result, "machine") for name in row["absent"]})
    spread = [max(row["seconds"]) / median(row["seconds"]) for row in _part(result, "races") if "seconds" in row]
    medians = f"Medians of {rounds} rounds, float64, one thread unless said"
    lines = [
        f"{medians}; the slowest round of a typical race took {median(spread):.2f} times the median." if spread else "",
        "\\* timed on a part of the sequences or steps, scaled by steps per second.",
        f"Not installed, so not measured: {', '.join(missing)} (`pip install ldm-filter[peers]`)." if missing else "",
        f"Parts that failed: {', '.join(result['failed'])}." if result["failed"] else "",
        *(f"Of an earlier run, code {run['commit']}, {run['time']}: {', '.join(run['parts'])}." for run in result.get("kept", ())),
        f"{result['device']}; {versions}; code {result['commit']}, {result['time']}.",
    ]
    return "\n".join(line for line in lines if line)


if __name__ == "__main__":
    update(records.RESULTS)
