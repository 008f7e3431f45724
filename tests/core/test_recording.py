"""Recorded functions, with a recorder that runs on the CPU and keeps the rules of a CUDA graph: the same memory in and out at every replay."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_filter.core.recording import CudaRecorder, Recorded, Recording

CPU = torch.device("cpu")


class Rerun:
    """In place of CUDA graphs: a replay reads the memory that was recorded and overwrites the outputs of the time before."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, run: Callable[[], tuple[Tensor, ...]]) -> Recording:
        self.recorded += 1
        outputs = tuple(torch.full_like(x, torch.nan) for x in run())  # recording does not compute

        def replay() -> None:
            self.replayed += 1
            for place, x in zip(outputs, run(), strict=True):
                place.copy_(x)

        return Recording(outputs, replay)


class Refusing:
    def __init__(self) -> None:
        self.asked = 0

    def record(self, run: Callable[[], tuple[Tensor, ...]]) -> Recording:
        self.asked += 1
        raise RuntimeError("operation not permitted when stream is capturing\nmore about it")


def sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x.sum(-1), x @ y


def test_replays_give_what_the_function_gives() -> None:
    recorder = Rerun()
    recorded = Recorded(sums, CPU, "sums", recorder)
    rng = np.random.default_rng(0)
    given = [(rng.normal(size=(rows, 3)), rng.normal(size=(3, 2))) for rows in (4, 4, 5, 4)]
    results = [recorded(*pair) for pair in given]
    assert (recorder.recorded, recorder.replayed) == (2, 4), "one recording for each set of shapes, one replay for each call"
    for (x, y), (total, product) in zip(given, results, strict=True):  # all of them still, after the last call
        np.testing.assert_allclose(total, x.sum(-1))
        np.testing.assert_allclose(product, x @ y)


def test_the_callers_arrays_stay_as_they_are() -> None:
    recorded = Recorded(lambda x: (x.mul_(2.0),), CPU, "doubling", Rerun())
    x = np.ones(3)
    recorded(x)
    np.testing.assert_array_equal(x, np.ones(3))


def test_arrays_that_may_not_be_written_are_taken_without_a_warning() -> None:
    x = np.arange(3.0)
    x.flags.writeable = False
    recorded = Recorded(lambda x: (x + 1.0,), CPU, "increment", Rerun())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(recorded(x)[0], [1.0, 2.0, 3.0])


def test_dtypes_are_told_apart() -> None:
    recorded = Recorded(lambda x: (x * 0.1,), CPU, "tenth", Rerun())
    assert recorded(np.ones(2, np.float32))[0].dtype == np.float32
    np.testing.assert_array_equal(recorded(np.ones(2))[0], np.full(2, 0.1))


def test_only_so_many_recordings_are_kept() -> None:
    recorder = Rerun()
    recorded = Recorded(lambda x: (x + 1.0,), CPU, "increment", recorder)
    for size in (*range(1, 10), 1):  # the first is pushed out, and recorded again
        np.testing.assert_array_equal(recorded(np.zeros(size))[0], np.ones(size))
    assert recorder.recorded == 10 and len(recorded._made) == 8


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once() -> None:
    recorder = Refusing()
    recorded = Recorded(lambda x: (x + 1.0,), CPU, "MyEncoder", recorder, otherwise=lambda x: (x + 2.0,))
    with pytest.warns(RuntimeWarning, match=r"MyEncoder runs without a CUDA graph \(operation not permitted when stream is capturing\): results"):
        first = recorded(np.zeros(2))
    for result in (first, recorded(np.zeros(2)), recorded(np.zeros(3))):
        np.testing.assert_array_equal(result[0], np.full(len(result[0]), 2.0))
    assert recorder.asked == 1


def test_without_a_recorder_it_runs_as_it_is() -> None:
    constant = torch.ones(2)
    recorded = Recorded(lambda x: (constant,), CPU, "constant")
    recorded(np.zeros(1))[0][:] = 5.0
    assert constant.tolist() == [1.0, 1.0], "results are the caller's own"


def test_no_graphs_off_the_device() -> None:
    with pytest.raises(ValueError, match="device is cpu, expected a CUDA device"):
        CudaRecorder(CPU)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of CUDA, with a stand-in for the driver."""
    told: list[str] = []

    class Stream:
        def __init__(self, name: str = "aside") -> None:
            self.name = name

        def wait_stream(self, other: Any) -> None:
            told.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            told.append("replay")

    @contextlib.contextmanager
    def inside(what: str) -> Iterator[None]:
        told.append(what)
        yield
        told.append(f"end of {what}")

    fakes = {
        "Stream": Stream,
        "current_stream": lambda: Stream("main"),
        "set_stream": lambda stream: told.append(f"on {stream.name}"),
        "CUDAGraph": Graph,
        "device": lambda device: inside(str(device)),
        "stream": lambda stream: inside(stream.name),
        "graph": lambda graph, capture_error_mode: inside(f"recording {capture_error_mode}"),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return told


def test_a_graph_is_recorded_after_a_warm_up_aside(events: list[str]) -> None:
    """The order of events that CUDA asks for."""

    def run() -> tuple[Tensor, ...]:
        events.append("run")
        return (torch.ones(1),)

    recording = CudaRecorder(torch.device("cuda", 1)).record(run)
    recording.replay()
    assert events == [
        "cuda:1",
        "aside waits for main",
        "aside",
        *["run"] * 3,
        "end of aside",
        "main waits for aside",
        "recording thread_local",
        "run",
        "end of recording thread_local",
        "on main",
        "end of cuda:1",
        "replay",
    ]


def test_where_recording_fails_the_callers_stream_is_current_again(events: list[str]) -> None:
    def run() -> tuple[Tensor, ...]:
        if "recording thread_local" in events:
            raise RuntimeError("operation not permitted when stream is capturing")
        return ()

    with pytest.raises(RuntimeError, match="not permitted"):
        CudaRecorder(torch.device("cuda", 1)).record(run)
    assert events[-1] == "on main"
