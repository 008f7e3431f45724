"""Families of tasks: what the runner and the tables ask of each. A new family is one entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from benchmarks import dot_methods, dot_tasks, latent_methods, latent_tasks, series_methods, series_tasks
from benchmarks.dot_tasks import Published
from benchmarks.records import Outcome

__all__ = ["FAMILIES", "PUBLISHED", "TASKS", "Family", "family_of"]


class Family(NamedTuple):
    """Tasks that are run alike.

    Attributes:
        tasks: their names, each with its conditions; ``""`` is the task itself.
        default_methods: (task, condition) -> the methods that belong in its table, the family's own first.
        run: (task, condition, method, budget, seed) -> Outcome.
        published: figures that others report, by task.
    """

    tasks: Mapping[str, tuple[str, ...]]
    default_methods: Callable[[str, str], tuple[str, ...]]
    run: Callable[[str, str, str, str, int], Outcome]
    published: Mapping[str, tuple[Published, ...]]


FAMILIES = (
    Family(
        dict.fromkeys(dot_tasks.SETTINGS, ("",)),
        lambda task, _: dot_methods.default_methods(task),
        lambda task, _, method, budget, seed: dot_methods.run(task, method, budget, seed),
        dot_tasks.PUBLISHED,
    ),
    Family(
        {task: latent_tasks.CONDITIONS.get(task, ("",)) for task in latent_tasks.SETTINGS},
        latent_methods.default_methods,
        latent_methods.run,
        latent_tasks.PUBLISHED,
    ),
    Family(dict.fromkeys(series_tasks.TASKS, ("",)), series_methods.default_methods, series_methods.run, {}),
)
TASKS = tuple(task for family in FAMILIES for task in family.tasks)
PUBLISHED: dict[str, tuple[Published, ...]] = {task: rows for family in FAMILIES for task, rows in family.published.items()}


def family_of(task: str) -> Family:
    """The family that a task belongs to.

    Raises:
        ValueError: an unknown task.
    """
    for family in FAMILIES:
        if task in family.tasks:
            return family
    raise ValueError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
