"""What the results tables are made of: figures over seeds, the mark of old code, footers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev

from benchmarks.families import TASKS
from benchmarks.records import Row
from benchmarks.same_figures import counts_as

__all__ = ["MARK", "Code", "figure", "footer", "groups", "mark", "ours", "value"]

MARK = "†"
Code = Callable[[str, str], str]  # (task, condition) -> fingerprint of the code that makes its figures today


def groups(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(task, condition, budget) with results, tasks in their own order."""
    order = list(TASKS)
    found = {(row["task"], row["condition"], row["budget"]) for row in rows if row["budget"] != "smoke"}
    return sorted(found, key=lambda group: (order.index(group[0]) if group[0] in order else len(order), group))


def figure(rows: Sequence[Row], name: str, form: str) -> str:
    """Mean, and from two seeds on the standard deviation over seeds."""
    values = [found for row in rows if (found := value(row, name)) is not None]
    if not values:
        return ""
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


def value(row: Row, name: str) -> float | None:
    """A figure of a run. The time of a fit is CPU time, where it was measured and the fit ran on one thread; else wall time."""
    if name == "fit_seconds" and row["device"].endswith("threads: 1") and "fit_cpu_seconds" in row["metrics"]:
        name = "fit_cpu_seconds"
    return row["metrics"].get(name)


def ours(method: str) -> bool:
    """Whether it is a learned filter of this project."""
    return method.startswith("ldm") or method == "polynomial-supervised"


def mark(rows: Sequence[Row], code: Code) -> str:
    return f" {MARK}" if any(_old(row, code) for row in rows) else ""


def footer(rows: Sequence[Row], code: Code) -> str:
    """Machines and versions of the runs, and what the mark means where it stands."""
    devices = "; ".join(sorted({row["device"] for row in rows}))
    versions = "; ".join(sorted({", ".join(f"{name} {number}" for name, number in row["versions"].items()) for row in rows}))
    old = sorted({row["commit"] for row in rows if _old(row, code)})
    note = f" {MARK} made by other code than today's ({', '.join(old)})." if old else ""
    return f"{devices}; {versions}.{note}"


def _old(row: Row, code: Code) -> bool:
    return not counts_as(row, code(row["task"], row["condition"]))
