"""Families of tasks: what the runner and the tables ask of each.

**A new task goes here.** Write two modules beside this one, ``<family>_tasks.py`` (settings by budget, data, and how an estimate is judged) and
``<family>_methods.py`` (``default_methods`` and ``run``, as `Family` has them), and add one entry to ``FAMILIES``. The runner, its command line,
the tables and the smoke test then know the tasks. What ``run`` returns is a `benchmarks.records.Outcome`; time the fit with
`benchmarks.records.Clock`, and look at ``series_methods.py`` for the shortest example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

from benchmarks import (
    ablation_methods,
    dot_methods,
    dot_tasks,
    framework_methods,
    latent_methods,
    latent_tasks,
    lorenz_image_methods,
    lorenz_image_tasks,
    lorenz_methods,
    lorenz_tasks,
    pendulum_methods,
    pendulum_tasks,
    scene_methods,
    scene_tasks,
    series_methods,
    series_tasks,
    stream_methods,
)
from benchmarks.dot_tasks import Published
from benchmarks.fingerprint import code_fingerprint
from benchmarks.records import Outcome

__all__ = ["FAMILIES", "GROUPS", "PUBLISHED", "TASKS", "Family", "conditions_of", "current_code", "family_of"]


class Family(NamedTuple):
    """Tasks that are run alike.

    Attributes:
        tasks: their names, each with its conditions; ``""`` is the task itself.
        default_methods: (task, condition) -> the methods that belong in its table, the family's own first.
        run: (task, condition, method, budget, seed) -> Outcome. What its module imports is the code that the figures depend on.
        published: figures that others report, by task.
    """

    tasks: Mapping[str, tuple[str, ...]]
    default_methods: Callable[[str, str], tuple[str, ...]]
    run: Callable[[str, str, str, str, int], Outcome]
    published: Mapping[str, tuple[Published, ...]]

    def code(self) -> str:
        """Fingerprint of the code that the figures depend on, as it is now."""
        return _fingerprint(self.run.__module__)


_fingerprint = cache(code_fingerprint)  # within a process the code that runs is the code that was loaded

FAMILIES = (
    Family(dict.fromkeys(dot_tasks.SETTINGS, ("",)), dot_methods.default_methods, dot_methods.run, dot_tasks.PUBLISHED),
    Family(
        {task: latent_tasks.CONDITIONS.get(task, ("",)) for task in latent_tasks.SETTINGS},
        latent_methods.default_methods,
        latent_methods.run,
        latent_tasks.PUBLISHED,
    ),
    Family(dict.fromkeys(series_tasks.TASKS, ("",)), series_methods.default_methods, series_methods.run, {}),
    Family(stream_methods.TASKS, stream_methods.default_methods, stream_methods.run, {}),
    Family(dict.fromkeys(pendulum_tasks.SETTINGS, ("",)), pendulum_methods.default_methods, pendulum_methods.run, pendulum_tasks.PUBLISHED),
    Family(lorenz_tasks.CONDITIONS, lorenz_methods.default_methods, lorenz_methods.run, lorenz_tasks.PUBLISHED),
    Family(lorenz_image_tasks.CONDITIONS, lorenz_image_methods.default_methods, lorenz_image_methods.run, lorenz_image_tasks.PUBLISHED),
    Family(dict.fromkeys(scene_tasks.SETTINGS, ("",)), scene_methods.default_methods, scene_methods.run, {}),
    Family(ablation_methods.CONDITIONS, ablation_methods.default_methods, ablation_methods.run, {}),
    Family(framework_methods.CONDITIONS, framework_methods.default_methods, framework_methods.run, {}),
)
TASKS = tuple(dict.fromkeys(task for family in FAMILIES for task in family.tasks))
# What stands for several tasks on one data set.
GROUPS: dict[str, tuple[str, ...]] = {
    name: tuple(task for task in series_tasks.TASKS if task.startswith(f"{name}-")) for name in ("imu", "weather", "co2")
}
PUBLISHED: dict[str, tuple[Published, ...]] = {task: rows for family in FAMILIES for task, rows in family.published.items()}


def conditions_of(task: str) -> tuple[str, ...]:
    """All conditions of a task; two families may share a task under different conditions.

    Raises:
        ValueError: an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
    return tuple(condition for family in FAMILIES for condition in family.tasks.get(task, ()))


def family_of(task: str, condition: str = "") -> Family:
    """The family that a task belongs to under a condition.

    Raises:
        ValueError: an unknown task or condition.
    """
    known = conditions_of(task)
    for family in FAMILIES:
        if condition in family.tasks.get(task, ()):
            return family
    raise ValueError(f"condition is {condition!r}, expected one of {known} for {task}")


def current_code(task: str, condition: str) -> str:
    """Fingerprint of the code that makes a task's figures today; ``""`` where no family knows the task or condition any more."""
    known = task in TASKS and condition in conditions_of(task)
    return family_of(task, condition).code() if known else ""
