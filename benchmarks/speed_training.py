"""How long a fit takes until it is good: the figure-eight video, frames alone, one core."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.dot_judge import evaluate
from benchmarks.dot_methods import fit_ldm
from benchmarks.dot_tasks import bench

__all__ = ["GOAL", "until_good"]

GOAL = 0.99  # R2 of the position, affine read-out


def until_good(seeds: int, budget: str) -> Iterator[dict[str, Any]]:
    """A row for each seed: the fewest epochs of 1, 2, 4, ... whose fit reads the position with an R2 of GOAL, and what that fit took.

    Args:
        seeds: their number. budget: of the task ``figure8``.
    """
    for seed in range(seeds):
        data = bench("figure8", budget, seed)
        epochs = 1
        while True:
            started = time.perf_counter()
            fitted = fit_ldm("log-det", replace(data.settings, epochs=epochs), data)
            seconds = time.perf_counter() - started
            r2 = evaluate(fitted.estimate(data.readout.frames), fitted.estimate(data.test.frames), data)["r2"]
            if r2 >= GOAL or epochs >= data.settings.epochs:
                break
            epochs *= 2
        yield {"task": "figure8", "seed": seed, "epochs": epochs, "fit_seconds": seconds, "r2": r2}
