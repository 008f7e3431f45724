"""One table of how honest the learned filters are in every task: each figure with its confidence bounds, and whether the goal is reached."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from benchmarks import cells, framework_methods
from benchmarks.ablations import ABLATIONS
from benchmarks.families import TASKS, conditions_of, family_of
from benchmarks.markdown import table
from benchmarks.records import Row, newest

__all__ = ["GOAL", "calibration_table"]

GOAL = (0.92, 0.97)  # share of the truth inside the 95 % region
VARIANTS = ("", "_turned", "_scaled")
HEADS = (
    *("task", "method", "NIS / m", "NEES / d", "in 95 %", "in 95 %, turned", "in 95 %, scaled", "PIT, plain / turned"),
    "in 92 to 97 %, plain / turned / scaled",
)


def calibration_table(rows: Sequence[Row], code: cells.Code) -> str:
    """A line for each learned filter among the default methods of a task, and how many of them reach the goal.

    Args:
        rows: runs, see `records.read`; figures that older code did not make are left open.
        code: of today; methods with runs by other code are marked.
    """
    lines, used = [], []
    verdicts: dict[str, list[bool]] = {variant: [] for variant in VARIANTS}
    for task, condition, budget in cells.groups(rows):
        if (task, condition) in ABLATIONS or condition == framework_methods.CONDITION or task not in TASKS or condition not in conditions_of(task):
            continue
        group = [row for row in newest(rows) if (row["task"], row["condition"], row["budget"]) == (task, condition, budget)]
        name = ", ".join(part for part in (f"`{task}`", condition, "" if budget == "cpu" else f"budget {budget}") if part)
        for method in family_of(task, condition).default_methods(task, condition):
            runs = [row for row in group if row["method"] == method]
            if not cells.ours(method) or not any(_mean(runs, figure) is not None for figure in ("nis", "coverage95")):
                continue
            for variant, found in verdicts.items():
                found += [] if (held := _reached(runs, variant)) is None else [held]
            lines.append([name, f"`{method}`{cells.mark(runs, code)}", *_cells(runs)])
            used += runs
    return "\n\n".join([table(HEADS, lines), _count(verdicts), cells.footer(used, code)]) if lines else "No results yet."


def _cells(runs: Sequence[Row]) -> list[str]:
    pits = [_shown(_mean(runs, f"pit_distance{variant}"), ".3f") for variant in VARIANTS[:2]]
    verdicts = ["–" if (held := _reached(runs, variant)) is None else "reached" if held else "**short**" for variant in VARIANTS]
    figures = [_bounded(runs, "nis", ".2f"), _bounded(runs, "nees", ".2f"), *(_bounded(runs, f"coverage95{variant}", ".3f") for variant in VARIANTS)]
    return [*figures, *(" / ".join(parts) if set(parts) != {"–"} else "" for parts in (pits, verdicts))]


def _bounded(runs: Sequence[Row], name: str, form: str) -> str:
    """Mean over seeds, with the mean ends of the intervals of single seeds."""
    value, low, high = (_mean(runs, figure) for figure in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return ""
    return _shown(value, form) if low is None or high is None else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _reached(runs: Sequence[Row], variant: str) -> bool | None:
    """Whether the mean coverage over seeds lies within the goal; None where it was not measured."""
    value = _mean(runs, f"coverage95{variant}")
    return None if value is None else GOAL[0] <= value <= GOAL[1]


def _mean(runs: Sequence[Row], name: str) -> float | None:
    """Over the seeds; None where one lacks it, as rows of older code do."""
    values = [row["metrics"].get(name) for row in runs]
    return mean(values) if values and None not in values else None


def _count(verdicts: dict[str, list[bool]]) -> str:
    named = zip(("plain", "turned", "scaled"), verdicts.values(), strict=True)
    return "In 92 to 97 %: " + ", ".join(f"{name} {sum(found)} of {len(found)}" for name, found in named) + "."
