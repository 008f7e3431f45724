"""How fast the filter is on a GPU: bytes moved over time against the copy bandwidth, and against the batched torch loop.

    python -m benchmarks.gpu_speed                                            # all sizes in float32, both regimes, and a step of streams
    python -m benchmarks.gpu_speed --batch 1024 --steps 200 --n 16 --m 8      # one of them
    python -m benchmarks.gpu_speed --json gpu.json                            # the same, written down

The bytes are those of what a filter must read and write once: measurements, their covariances where each step has its own, and
what it returns; backwards also what was saved and the gradients. The loop is the torch backend: cuSOLVER's Cholesky at every step.
A step of many streams side by side is timed with the model on the GPU, where it is a recorded CUDA graph, and on the CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ldm_filter
from benchmarks.speed_problems import REGIMES, WORKLOADS, Problem, Size, problem
from ldm_filter import LDMFilter
from ldm_filter.core.kalman import filter_moments
from ldm_filter.types import Gaussian, StateSpace

__all__ = ["SIZES", "STREAMS", "main", "measure", "measure_streams", "necessary_bytes"]

TOLERANCES = {torch.float32: (1e-4, 1e-3), torch.float64: (1e-10, 1e-8)}  # of the largest entry, values and gradients, against float64
# A sequence in the registers of a thread, of few and of more states; all on tiles; the largest that kernels take.
SIZES = (Size(16384, 200, 4, 2), Size(16384, 200, 8, 4), WORKLOADS["W4"], Size(1024, 200, 32, 16))
STREAMS = (Size(256, 1, 16, 8), Size(1024, 1, 16, 8), Size(1024, 1, 32, 16), Size(4096, 1, 32, 16))
STEPS = 20  # of a stream, timed together


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description="Speed of the filter on a GPU.")
    for name in Size._fields:
        parser.add_argument(f"--{name}", type=int, help="of one problem, give all four; default: all sizes")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs; the median counts")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu with TRITON_INTERPRET=1 to see whether all of it runs")
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here: the benchmark needs one, or --device cpu with TRITON_INTERPRET=1 to see whether it runs")
    given = [getattr(args, name) for name in Size._fields]
    if None in given and any(given):
        parser.error("some of --batch, --steps, --n, --m are missing: give all four for one problem, or none for all sizes")
    one = (Size(*given),) if all(given) else ()
    device = torch.device(args.device)
    parts: list[Callable[[], Iterable[dict[str, Any]]]] = [
        partial(measure, size, regime, device, args.repeats) for size in one or SIZES for regime in REGIMES
    ]
    parts += [partial(measure_streams, size, device, args.repeats) for size in one or STREAMS]
    rows: list[dict[str, Any]] = []
    failed = [part for part in parts if not tried(part, rows, args.json)]
    if failed:
        parser.exit(1, f"{len(failed)} of {len(parts)} parts failed\n")
    return rows


def tried(part: Callable[[], Iterable[dict[str, Any]]], rows: list[dict[str, Any]], path: Path | None) -> bool:
    """Run a part, print its rows and write down all so far; a part that fails is named, and the others go on."""
    try:
        for row in part():
            rows.append(row)
            print(line(row), flush=True)
    except (AssertionError, RuntimeError) as error:
        asked = " ".join(str(x) for x in part.args[:-2]) if isinstance(part, partial) else ""
        print(f"{asked}: FAILED, {type(error).__name__}: {error}", flush=True)
        return False
    finally:
        if path:
            path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return True


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    size = f"B {row['batch']} T {row['steps']} n {row['n']} m {row['m']}"
    share = f"{row['share_of_copy']:6.1%} of copying" if row["backend"] == "triton" else ""
    what = f"{row['regime']:>12} {row['pass']:>8} {row['backend']:>6}"
    return f"{size:>28} {what} {row['seconds'] * 1e3:9.3f} ms {row['steps_per_second']:.3g} steps/s {share}"


def measure(size: Size, regime: str, device: torch.device, repeats: int) -> Iterator[dict[str, Any]]:
    """One row for each backend, forward and forward + backward; the results are checked before anything is timed.

    Raises:
        AssertionError: where kernels and loop do not agree.
    """
    given = problem(size, regime)
    check(given.cut(min(size.batch, 61), min(size.steps, 47)), device)  # neither fills up a block
    ssm, measurements, leaves = on(given, device, torch.float32)
    bandwidth = copy_bandwidth(device)
    for name in ("triton", "torch"):
        with ldm_filter.backend(name):

            def forward() -> Tensor:
                return filter_moments(ssm, measurements)[1]

            def both() -> None:
                torch.autograd.grad(forward().sum(), leaves)

            for kind, run in (("forward", without_gradients(forward)), ("backward", both)):
                try:
                    seconds = clock(run, device, repeats if name == "triton" else min(repeats, 3))
                except torch.OutOfMemoryError:
                    print(f"{size} {regime} {kind} {name}: out of memory", flush=True)
                    continue
                moved = necessary_bytes(size, regime, backward=kind == "backward")
                row = {"regime": regime, "pass": kind, "backend": name, **size._asdict(), "seconds": seconds, "copy_bandwidth": bandwidth}
                row |= {"share_of_copy": moved / seconds / bandwidth, "steps_per_second": size.batch * size.steps / seconds}
                yield row | {"device": device_name(device)}


def measure_streams(size: Size, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """A row for the model on the device and one for it on the CPU: a step of ``batch`` streams, from array to result.

    Raises:
        AssertionError: where the two do not agree.
    """
    given = problem(size._replace(steps=STEPS), "constant")
    matrices = [x.numpy() for x in (given.A, given.Q, given.C, given.R, given.h0, given.P0)]
    observations = given.z.transpose(0, 1).numpy()
    rows, last = [], []
    for name, where in (("cpu", torch.device("cpu")), ("device", device)):
        known = LDMFilter.from_matrices(*matrices)
        known.model_.to(where)
        online = known.online(streams=size.batch)
        seconds = clock(partial(step_through, online.step, observations), device, repeats) / STEPS
        last.append(online.step(observations[0]).mean)
        told = {"regime": "streams", "pass": "step", "backend": name, **size._asdict(), "steps": 1, "seconds": seconds}
        rows.append(told | {"steps_per_second": size.batch / seconds, "device": device_name(where)})
    assert (last[0] - last[1]).abs().max() <= 1e-9 * last[0].abs().max(), "the device does not agree with the CPU"
    return rows


def step_through(step: Callable[[Any], Any], observations: Iterable[Any]) -> None:
    for row in observations:
        step(row)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def necessary_bytes(size: Size, regime: str, backward: bool, width: int = 4) -> int:
    """Bytes read and written once in float32. Backwards comes on top of forwards, and reads what that returned again."""
    own = regime == "per-sequence"
    state, data = size.n + (size.n**2 if own else 0), size.m + (size.m**2 if own else 0)
    numbers = data + state + 1 + ((2 * data + state + 1) if backward else 0)
    return width * size.batch * size.steps * numbers


def on(given: Problem, device: torch.device, dtype: torch.dtype) -> tuple[StateSpace, Gaussian, list[Tensor]]:
    """The problem there, in that dtype, with what gradients are taken of."""
    A, a, Q, C, c, h, P, z, R = (x.to(device, dtype).requires_grad_() for x in (*given.state_space()[:5], given.h0, given.P0, given.z, given.R))
    return StateSpace(A, a, Q, C, c, Gaussian(h, P)), Gaussian(z, R), [A, Q, C, z, R]


def check(given: Problem, device: torch.device) -> None:
    """The kernels in both dtypes against the loop in float64: what comes out, and the gradients of its weighted sum.

    Raises:
        AssertionError: where they differ by more than the tolerance.
    """
    exact = found(given, device, "torch", torch.float64)
    for dtype, tolerances in TOLERANCES.items():
        for what, tolerance, ours, right in zip(("values", "gradients"), tolerances, found(given, device, "triton", dtype), exact, strict=True):
            for k, (x, y) in enumerate(zip(ours, right, strict=True)):
                error = ((x - y).abs().max() / y.abs().max()).item()
                assert error <= tolerance, f"the kernels do not agree with the loop: {what} {k} in {dtype} differ by {error:.1e} of the largest"


def found(given: Problem, device: torch.device, name: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Filtered moments and log-likelihood, and gradients, by a backend."""
    ssm, measurements, leaves = on(given, device, dtype)
    draw = torch.Generator().manual_seed(0)
    with ldm_filter.backend(name):
        filtered, density = filter_moments(ssm, measurements)
        outputs = [*filtered, density]
        weights = [torch.randn(x.shape[-1:], generator=draw, dtype=torch.float64).to(device, dtype) for x in outputs]
        gradients = torch.autograd.grad([(x * w).sum() for x, w in zip(outputs, weights, strict=True)], leaves)
    return [x.detach() for x in outputs], list(gradients)


def without_gradients(run: Callable[[], Any]) -> Callable[[], None]:
    def silent() -> None:
        with torch.no_grad():
            run()

    return silent


def clock(run: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Median seconds, after one run that compiles and warms up."""
    run()
    taken = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of copying a tensor too large for any cache."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**22, dtype=torch.float32, device=device).fill_(1.0)
    target = torch.empty_like(source)
    return 2 * source.nbytes / clock(lambda: (target.copy_(source), None)[1], device, 9)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
