"""What the machine can do, measured: multiply-adds, memory traffic, latencies; and how much memory a process takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["cores", "measure", "memory_now", "memory_peak", "one_core"]


def measure() -> dict[str, float]:
    """Of one core: GFLOP/s of a matrix product, GB/s of a copy (read and written), nanoseconds of a multiplication and of a division that
    wait for the one before.
    """
    matrix = np.random.default_rng(0).standard_normal((1024, 1024))
    product = np.empty_like(matrix)
    source = torch.ones(16_000_000, dtype=torch.float64)
    target = torch.empty_like(source)
    chain = torch.ones(1 << 16, dtype=torch.float64)
    ones = np.ones(1 << 14)
    multiply = _best(lambda: torch.cumprod(chain, 0, out=target[: len(chain)]), 20) / len(chain)
    # NumPy's chains go through memory, both of them: the difference is what a division takes longer
    longer = (_best(lambda: np.divide.accumulate(ones), 20) - _best(lambda: np.multiply.accumulate(ones), 20)) / len(ones)
    return {
        "gflops": 2e-9 * 1024**3 / _best(lambda: np.matmul(matrix, matrix, out=product), 7),
        "copy_gbs": 2e-9 * 8 * len(source) / _best(lambda: target.copy_(source), 7),
        "multiply_ns": 1e9 * multiply,
        "divide_ns": 1e9 * (multiply + longer),
    }


def _best(call: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process, and those it starts, on one core, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def memory_peak() -> int:
    """Bytes of the largest resident size of this process so far."""
    return _status("VmHWM")


def memory_now() -> int:
    """Bytes resident now."""
    return _status("VmRSS")


def _status(name: str) -> int:
    """Of Linux; ``getrusage`` would count the parent's memory too.

    Raises:
        OSError: another system.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")
