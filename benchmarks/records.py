"""Results as JSON lines, one per run: written by the runners, read by the tables.

A run is named by ``KEY``; of several lines with one name the newest counts. ``code`` is the fingerprint of the code that made the figures, see
`benchmarks.fingerprint`, and ``commit`` where to find it, see `code_version`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "FIELDS",
    "KEY",
    "RESULTS",
    "ROOT",
    "SMOKE_RESULTS",
    "Clock",
    "Outcome",
    "Row",
    "append",
    "checkpoint",
    "checkpointed",
    "code_version",
    "key",
    "machine",
    "newest",
    "read",
]

Row = dict[str, Any]
FIELDS = (
    *("task", "condition", "method", "readout", "budget", "seed", "metrics", "seconds", "cpu_seconds", "train_steps"),
    *("device", "versions", "commit", "code", "time"),
)
# What the first results did not hold: they count as made by other code.
LATER: Row = {"cpu_seconds": None, "code": ""}
KEY = ("task", "condition", "method", "budget", "seed")
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SMOKE_RESULTS = ROOT / "out" / "benchmarks"
CODE = ("ldm_filter", "native", "datasets", "benchmarks/*.py")


class Outcome(NamedTuple):
    """What a run found. ``seconds`` is the wall time without drawing the data; ``metrics`` holds that of the fit alone, see `Clock`."""

    metrics: dict[str, float]
    readout: str
    seconds: float
    train_steps: int


class Clock:
    """Wall time and CPU time since it was made, or last read.

    CPU time, of all threads of this process, leaves out the time in which others had the processor, not what they take of its caches and clock.
    """

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """``fit_seconds``, ``fit_cpu_seconds``: what a family adds to its metrics after a fit."""
        wall, cpu = time.perf_counter(), time.process_time()
        found = {"fit_seconds": wall - self._wall, "fit_cpu_seconds": cpu - self._cpu}
        self._wall, self._cpu = wall, cpu
        return found


_CHECKPOINT: ContextVar[Path | None] = ContextVar("_CHECKPOINT", default=None)


def checkpoint() -> Path | None:
    """Where the run in progress keeps the state of its training, for ``LDMFilter.fit(checkpoint=...)``; None where it is short."""
    return _CHECKPOINT.get()


@contextmanager
def checkpointed(path: Path | None) -> Iterator[None]:
    """Let `checkpoint` be ``path`` within; the file goes when all went well, and stays for the next try when not."""
    token = _CHECKPOINT.set(path)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        _CHECKPOINT.reset(token)
    if path is not None:
        path.unlink(missing_ok=True)


def key(row: Row) -> tuple[Any, ...]:
    """What names a run: task, condition, method, budget and seed."""
    return tuple(row[name] for name in KEY)


def append(folder: Path, row: Row) -> None:
    """Add one run to ``<folder>/<task>.jsonl`` in a single write, so that runners side by side never mix their lines.

    Raises:
        ValueError: fields are missing or unknown, or a figure is NaN or infinite.
    """
    if set(row) != set(FIELDS):
        raise ValueError(f"row has fields {sorted(row)}, expected exactly {sorted(FIELDS)}")
    line = json.dumps({name: row[name] for name in FIELDS}, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / f"{row['task']}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def read(folder: Path) -> list[Row]:
    """All runs of a folder, file by file in the order they were written; none where there is no folder.

    Raises:
        ValueError: a line is no run, with its file and number.
    """
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path.name} line {number} is not JSON ({error}); delete the line and run again") from None
            if not isinstance(row, dict) or set(LATER | row) != set(FIELDS):
                raise ValueError(f"{path.name} line {number} has not exactly the fields {', '.join(FIELDS)}; delete the line and run again")
            rows.append({name: (LATER | row)[name] for name in FIELDS})
    return rows


def newest(rows: Iterable[Row]) -> list[Row]:
    """The newest of the runs of each name, sorted by name."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if key(row) not in found or row["time"] >= found[key(row)]["time"]:
            found[key(row)] = row
    return [found[name] for name in sorted(found)]


def machine() -> str:
    """Processor and cores in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores"


def code_version(root: Path = ROOT, code: Sequence[str] = CODE) -> str:
    """Commit of the last change to ``code`` (paths in git's way to write them), with a mark of its own for each state of uncommitted changes.

    ``"4a80abe"`` from a clean tree, ``"4a80abe+9c1d"`` with changes, ``"unknown"`` outside a git checkout.
    """
    try:
        commit = _git(root, "log", "-1", "--format=%h", "--", *code)
        changes = _git(root, "diff", "HEAD", "--", *code) + _git(root, "status", "--porcelain", "--", *code)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    mark = f"+{hashlib.sha256(changes.encode()).hexdigest()[:4]}" if changes else ""
    return (commit or "unknown") + mark


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()
