"""Runs methods on tasks over seeds, one JSON line per run, and brings the tables up to date.

    python -m benchmarks.quality --task figure8 square --budget cpu --seeds 3
    python -m benchmarks.quality --task all --budget smoke

A run that is there already, made by the same code (see ``benchmarks.fingerprint``), is skipped: after an interruption the same command goes on
where it stopped, a ``full`` training in the epoch where it stopped. Several runners may work on one folder at a time, best on different tasks. A
run that fails is reported, the others go on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import records, tables
from benchmarks.dot_tasks import BUDGETS
from benchmarks.families import GROUPS, TASKS, conditions_of, family_of
from benchmarks.same_figures import counts_as

__all__ = ["main", "run_all"]

SHOWN = (
    *("r2", "affine_r2", "affine_r2_in_range", "eig_error", "excess", "rmse", "crps", "mlp_r2", "mlp_excess", "auc"),
    *("nis", "coverage80", "coverage95", "noise_corr"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    folder = options.out or (records.SMOKE_RESULTS if options.budget == "smoke" else records.RESULTS)
    tasks = list(TASKS) if "all" in options.task else [task for name in options.task for task in GROUPS.get(name, (name,))]
    failed = run_all(tasks, options.methods, options.budget, options.seeds, folder, options.force, options.condition)
    if folder.resolve() == records.RESULTS:
        tables.update()
    return 1 if failed else 0


def run_all(
    tasks: Sequence[str],
    methods: Sequence[str] | None,
    budget: str,
    seeds: int,
    folder: Path,
    force: bool = False,
    conditions: Sequence[str] | None = None,
) -> int:
    """Every method (default: all that belong to a task) on every task and seed.

    Args:
        tasks: of ``benchmarks.families.TASKS``.
        methods: see the ``run`` of the task's family; None for the task's own.
        budget: ``smoke | cpu | full``.
        seeds: the seeds are 0 to ``seeds - 1``.
        folder: of the JSON lines.
        force: run again what is there.
        conditions: only these of each task; None for all.

    Returns:
        The number of runs that failed.
    """
    commit = records.code_version()
    there = {records.key(row): row for row in records.newest(records.read(folder))}
    failed = 0
    for task in tasks:  # at once: the files may change while this process runs what it has loaded
        for condition in conditions_of(task):
            family_of(task, condition).code()
    for task, condition, seed in _runs(tasks, seeds, conditions):
        family = family_of(task, condition)
        for method in methods or family.default_methods(task, condition):
            name = " ".join(part for part in (task, condition, method, budget, "seed", str(seed)) if part)
            before = there.get((task, condition, method, budget, seed))
            if not force and before is not None and counts_as(before, family.code()):
                print(f"{name}: there already", flush=True)
                continue
            try:
                row = _run(task, condition, method, budget, seed, commit)
            except Exception:  # one method that breaks must not cost a night's other runs
                traceback.print_exc()
                print(f"{name}: FAILED", file=sys.stderr, flush=True)
                failed += 1
                continue
            records.append(folder, row)
            figures = ", ".join(f"{key} {row['metrics'][key]:.4f}" for key in SHOWN if key in row["metrics"])
            print(f"{name}: {figures} ({row['seconds']:.1f} s)", flush=True)
    return failed


def _runs(tasks: Sequence[str], seeds: int, conditions: Sequence[str] | None) -> Iterator[tuple[str, str, int]]:
    """(task, condition, seed); the methods of one share its data."""
    for task in tasks:
        for condition in [known for known in conditions_of(task) if conditions is None or known in conditions]:
            for seed in range(seeds):
                yield task, condition, seed


def _run(task: str, condition: str, method: str, budget: str, seed: int, commit: str) -> records.Row:
    family, started = family_of(task, condition), time.process_time()
    with records.checkpointed(_checkpoint(task, condition, method, seed, family.code()) if budget == "full" else None):
        outcome = family.run(task, condition, method, budget, seed)
    return {
        "task": task,
        "condition": condition,
        "method": method,
        "readout": outcome.readout,
        "budget": budget,
        "seed": seed,
        "metrics": {name: float(value) for name, value in outcome.metrics.items()},
        "seconds": round(outcome.seconds, 3),
        "cpu_seconds": round(time.process_time() - started, 3),
        "train_steps": outcome.train_steps,
        "device": _device(budget),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("ldm-filter", "torch", "numpy")},
        "commit": commit,
        "code": family.code(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _checkpoint(*parts: object) -> Path:
    """Of a long training: by run and code, so that other code starts anew."""
    return records.SMOKE_RESULTS / "checkpoints" / f"{'-'.join(str(part) for part in parts if part != '')}.pt"


def _device(budget: str) -> str:
    """The machine in words: processor, cores, threads; the GPU where one is used."""
    if budget == "full" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{records.machine()}, threads: {torch.get_num_threads()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--task", nargs="+", required=True, choices=[*TASKS, *GROUPS, "all"], metavar="TASK", help=f"{', '.join([*TASKS, *GROUPS])}, or all"
    )
    parser.add_argument("--budget", default="cpu", choices=BUDGETS, help="smoke: seconds, claims nothing; cpu (default): two cores; full: a GPU")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default 3)")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="default: the task's learned filter, the baselines and the oracle")
    parser.add_argument("--condition", nargs="+", help="only these variants of the tasks, '' the task itself; default all")
    parser.add_argument("--out", type=Path, help="folder of the JSON lines; default benchmarks/results, for smoke out/benchmarks")
    parser.add_argument("--force", action="store_true", help="run again what is there already")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1); set OMP_NUM_THREADS for NumPy's")
    return parser


if __name__ == "__main__":
    sys.exit(main())
