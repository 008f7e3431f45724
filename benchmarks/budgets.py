"""What the ``full`` budget of a task changes, and how long its fit would take: for those who have the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from math import prod
from statistics import mean
from typing import Any

from benchmarks import dot_tasks, latent_tasks, lorenz_image_tasks, lorenz_tasks, pendulum_tasks, scene_tasks
from benchmarks.families import TASKS, conditions_of, family_of
from benchmarks.markdown import table
from benchmarks.records import Row, newest

__all__ = ["budget_table", "changes", "expected_seconds"]

FAMILIES: tuple[tuple[Mapping[str, Any], Callable[[str, str], Any]], ...] = tuple(
    (tasks.SETTINGS, tasks.settings_of) for tasks in (dot_tasks, latent_tasks, pendulum_tasks, lorenz_tasks, lorenz_image_tasks, scene_tasks)
)
# The work of a fit grows in proportion to these; of a wider model it grows besides, by how much depends on the device.
WORK = ("series", "epochs")
DEVICE = "device"


def changes(task: str) -> dict[str, tuple[Any, Any]]:
    """Setting -> its values in the ``cpu`` and the ``full`` budget, where they differ; nothing where the budgets are alike.

    Raises:
        ValueError: an unknown task.
    """
    conditions_of(task)  # refuses
    for settings, settings_of in FAMILIES:
        if task in settings:
            small, large = settings_of(task, "cpu"), settings_of(task, "full")
            both = {field.name: (getattr(small, field.name), getattr(large, field.name)) for field in fields(small)}
            return {name: pair for name, pair in both.items() if pair[0] != pair[1] and name != DEVICE}
    return {}


def expected_seconds(task: str, measured: float) -> float:
    """CPU seconds of a ``full`` fit from those of a ``cpu`` one: in proportion to sequences and epochs."""
    return measured * prod(large / small for name, (small, large) in changes(task).items() if name in WORK)


def budget_table(rows: Sequence[Row], _: object = None) -> str:
    """A line for each task whose budgets differ: what does, and the time of the family's own method.

    Args:
        rows: runs, see `records.read`; those of the ``cpu`` budget are counted.
    """
    lines = []
    for task in TASKS:
        different = changes(task)
        condition = conditions_of(task)[0]
        method = family_of(task, condition).default_methods(task, condition)[0]
        runs = [row for row in newest(rows) if (row["task"], row["condition"], row["method"], row["budget"]) == (task, condition, method, "cpu")]
        took = [row["metrics"].get("fit_cpu_seconds", row["metrics"].get("fit_seconds")) for row in runs]
        if not different or not took or None in took:
            continue
        told = ", ".join(f"{name} {small} → {large}" for name, (small, large) in different.items())
        lines.append([f"`{task}`", f"`{method}`", _time(mean(took)), told, _time(expected_seconds(task, mean(took)))])
    return table(["task", "method", "fit, `cpu`", "`full` changes", "expected on one core"], lines) if lines else "No results yet."


def _time(seconds: float) -> str:
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.0f} s"
