"""Code that changed and figures that did not: which runs of older code count as today's.

    python -m benchmarks.quality --task all --budget smoke --seeds 1 --out OLD      in a checkout of the older code, on the same machine
    python -m benchmarks.quality --task all --budget smoke --seeds 1 --out NEW      in this one
    python -m benchmarks.same_figures OLD NEW

A fingerprint (`benchmarks.fingerprint`) changes with every statement that a family of tasks leads to, be it the name of a variable. A method of which
the smoke runs by both codes give the same figures, but for the fit's time, is noted in ``results/same.json``; the tables do not mark its rows, the
runner does not run it again. A smoke run goes through all that a full one does, on few series and for an epoch: what acts after many epochs only
(an early stop, say) it does not see, and after a change to such a thing the runs have to be made anew (``--force``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from benchmarks import records
from benchmarks.records import Row

__all__ = ["SAME", "counts_as", "note"]

SAME = records.RESULTS / "same.json"
Name = tuple[str, str, str]  # task, condition, method
Groups = dict[Name, list[list[str]]]  # fingerprints that make the same figures
RELATIVE, ABSOLUTE = 1e-5, 1e-7
OF_THE_MACHINE = "seconds"
TIMED = "step_us"  # a run that holds this is about nothing but time


def counts_as(row: Row, code: str, path: Path | None = None) -> bool:
    """Whether a run was made by the code of that fingerprint, or by one that was seen to make the same figures."""
    if row["code"] == code:
        return True
    return any(row["code"] in group and code in group for group in _read(path or SAME).get(_name(row), []))


def note(older: Sequence[Row], newer: Sequence[Row], path: Path | None = None) -> list[str]:
    """Note the methods of which all runs that both have (of one budget and seed) agree; what differs, in words.

    Args:
        older, newer: runs, see `records.read`; those from before codes were kept are left out. path: of what was noted before, which is kept.
    """
    groups, before = _read(path or SAME), {records.key(row): row for row in records.newest(older) if row["code"]}
    pairs: dict[Name, list[tuple[Row, Row]]] = {}
    for row in records.newest(newer):
        if records.key(row) in before:
            pairs.setdefault(_name(row), []).append((before[records.key(row)], row))
    told = []
    for name, both in pairs.items():
        words = [difference for old, new in both if (difference := _difference(old, new))]
        if words:
            told.append(f"{' '.join(filter(None, name))}: {words[0]}")
            continue
        for old, new in both:
            groups[name] = _joined(groups.get(name, []), {old["code"], new["code"]})
    _write(groups, path or SAME)
    return told


def _difference(old: Row, new: Row) -> str:
    """The figure that differs most, or nothing."""
    one, two = ({name: value for name, value in row["metrics"].items() if OF_THE_MACHINE not in name} for row in (old, new))
    if TIMED in two:
        return "is about time, which other code may take more of"
    if (set(one), old["readout"], old["train_steps"]) != (set(two), new["readout"], new["train_steps"]):
        return "other figures, read-out or number of updates"
    apart = {name: abs(one[name] - two[name]) / (RELATIVE * abs(two[name]) + ABSOLUTE) for name in one}
    worst = max(apart, key=lambda name: apart[name], default="")
    return f"{worst} is {two[worst]:.8g}, was {one[worst]:.8g}" if worst and apart[worst] > 1.0 else ""


def _joined(groups: list[list[str]], codes: set[str]) -> list[list[str]]:
    """With these codes, and all that share a group with one of them, in one group."""
    apart = [group for group in groups if not codes & set(group)]
    together = codes.union(*(group for group in groups if codes & set(group)))
    return sorted([*apart, sorted(together)] if len(together) > 1 else apart)


def _name(row: Row) -> Name:
    return row["task"], row["condition"], row["method"]


@cache
def _loaded(path: Path, stamp: float) -> Groups:
    listed = json.loads(path.read_text(encoding="utf-8"))
    return {(task, condition, method): groups for task, condition, method, groups in listed}


def _read(path: Path) -> Groups:
    return dict(_loaded(path, path.stat().st_mtime)) if path.exists() else {}


def _write(groups: Groups, path: Path) -> None:
    lines = [json.dumps([*name, found]) for name, found in sorted(groups.items()) if found]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where all agree, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.same_figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="folder of the older code's JSON lines")
    parser.add_argument("new", type=Path, help="folder of the newer code's")
    chosen = parser.parse_args(arguments)
    older, newer = records.read(chosen.old), records.read(chosen.new)
    both = {records.key(row) for row in older} & {records.key(row) for row in newer}
    if not both:
        found = f"{chosen.old} ({len(older)} runs) and {chosen.new} ({len(newer)})"
        parser.error(f"no run is in both {found}: make them with the same --task, --budget and --seeds")
    told = note(older, newer)
    print("\n".join([*told, f"{len({key[:3] for key in both}) - len(told)} methods have the same figures"]))
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
