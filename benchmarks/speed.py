"""How fast ldm-filter is beside everyone else, in one run on one machine; brings the tables and the plot up to date.

    python -m benchmarks.speed                # everything, some minutes; needs the machine to itself
    python -m benchmarks.speed --parts online # some parts anew; the others stay as they were, and the tables say of which run they are
    python -m benchmarks.speed --smoke        # does all of it run? seconds, claims nothing

The competitors come with ``pip install ldm-filter[peers]``; those that are missing are named. Every part runs in a process of its own, on one
core unless threads are its subject. A part that fails is reported, the others go on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks import records, speed_machine, speed_tables
from benchmarks.speed_parts import BUDGETS, PARTS, memory_cases
from benchmarks.speed_race import entrants

__all__ = ["main"]

PACKAGES = ("ldm-filter", "torch", "numpy", "filterpy", "pykalman", "simdkalman", "statsmodels", "torch-kf", "dynamax", "jax")
RACES_SHARE = 0.7  # of the time: the shorter parts get theirs on a busy machine too
CODE = ("ldm_filter/core", "native", "datasets/linear_gaussian.py", "benchmarks/speed*.py")
# Before anything is imported: every library keeps to one thread.
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.work:
        return _work(options.work, options.budget, options.into)
    folder = options.out or (records.SMOKE_RESULTS if options.budget == "smoke" else records.RESULTS)
    before = speed_tables.read(folder)
    if reason := _unlike(before, options.budget, options.parts):
        print(reason, file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    failed = []
    end = time.perf_counter() + 60 * options.minutes
    for part in _parts(options.budget, options.parts):
        print(f"--- {' '.join(part)}", flush=True)
        started = time.perf_counter()
        left = end - started
        came, complete = _run_part(part, options.budget, RACES_SHARE * left if part[0] == "races" else left)
        rows += came
        failed += [] if complete else [" ".join(part)]
        print(f"    {time.perf_counter() - started:.0f} s" + ("" if complete else ", FAILED"), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    kept, others = _others(before, options.parts)
    _write(folder / "speed.json", _header(options.budget, failed) | {"kept": kept}, [*others, *rows])
    speed_tables.update(folder)
    return 1 if failed else 0


def _unlike(before: dict[str, Any], budget: str, anew: Sequence[str]) -> str:
    """Why some parts anew cannot stand beside the others of the last result; nothing where they can, or where all are run."""
    others, here = {row["part"] for row in before["rows"]} - set(anew), (records.machine(), budget)
    if not others or (before["device"], before["budget"]) == here:
        return ""
    there = f"{before['device']}, budget {before['budget']}"
    return f"speed.json is of {there}, and this is {', budget '.join(here)}: two machines make no ratios; run all parts, or give another --out"


def _others(before: dict[str, Any], anew: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of the last result, what is not run anew: which parts by which code, and their rows."""
    rows = [row for row in before["rows"] if row["part"] not in anew]
    there, runs = {row["part"] for row in rows}, list(before.get("kept", ()))
    older = {part for run in runs for part in run["parts"]}
    if rows:
        runs.append({"commit": before["commit"], "time": before["time"], "parts": [part for part in PARTS if part not in older]})
    runs = [run | {"parts": [part for part in run["parts"] if part in there]} for run in runs]
    return [run for run in runs if run["parts"]], rows


def _parts(budget: str, wanted: Sequence[str]) -> list[tuple[str, ...]]:
    """Each with its arguments."""
    memory: list[tuple[str, ...]] = [("memory", *case) for case in memory_cases(BUDGETS[budget], [one.name for one in entrants()])]
    return [part for name in PARTS if name in wanted for part in (memory if name == "memory" else [(name,)])]


def _run_part(part: tuple[str, ...], budget: str, seconds: float) -> tuple[list[dict[str, Any]], bool]:
    """The rows of a part, run in a process of its own, and whether it came to its end in time; what there was before it broke counts.

    A smoke run, whose figures say nothing, starts a process only where the part would make no sense without.
    """
    if budget == "smoke" and part[0] != "memory":
        return [{"part": part[0], **row} for row in PARTS[part[0]](BUDGETS[budget])], True
    with tempfile.TemporaryDirectory() as folder, nullcontext() if part[0] == "threads" else speed_machine.one_core():
        into = Path(folder) / "rows.jsonl"
        into.touch()
        command = [sys.executable, "-m", "benchmarks.speed", "--budget", budget, "--into", str(into), "--work", *part]
        try:
            status = subprocess.run(command, cwd=records.ROOT, env=os.environ | ONE_THREAD, timeout=max(seconds, 1), check=False).returncode
        except subprocess.TimeoutExpired:
            print(f"{part[0]}: no time left, stopped", file=sys.stderr, flush=True)
            status = 1
        return [json.loads(line) for line in into.read_text(encoding="utf-8").splitlines()], status == 0


def _work(part: Sequence[str], budget: str, into: Path) -> int:
    """In the process of a part: one JSON line for each row, as it comes."""
    torch.set_num_threads(1)
    gc.freeze()  # what was imported: the collector need not look at it again while the clock runs
    name, *arguments = part
    with into.open("a", encoding="utf-8") as file:
        for row in PARTS[name](BUDGETS[budget], *arguments):
            file.write(json.dumps({"part": name, **row}) + "\n")
            file.flush()
            print("   ", _shown(row), flush=True)
    return 0


def _shown(row: dict[str, Any]) -> str:
    """A row for whoever watches."""
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items() if name != "seconds")


def _header(budget: str, failed: Sequence[str]) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "budget": budget,
        "device": records.machine(),
        "versions": versions,
        "commit": records.code_version(code=CODE),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "failed": list(failed),
    }


def _write(path: Path, header: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """JSON with one row a line."""
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    path.write_text(f'{json.dumps(header)[:-1]}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", dest="budget", action="store_const", const="smoke", default="full", help="tiny sizes, no JAX")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all of them")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all of it (default 9.5); what is not done by then is named as failed")
    parser.add_argument("--out", type=Path, help="folder of speed.json; default benchmarks/results, for smoke out/benchmarks")
    for name, kind in (("--budget", str), ("--into", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)  # the process of one part
    return parser


if __name__ == "__main__":
    sys.exit(main())
