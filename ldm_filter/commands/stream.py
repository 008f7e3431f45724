"""``ldm-filter stream``: lines from stdin, estimates to stdout at once, and a state on disk that outlives the process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import numpy as np
import torch

from ldm_filter.commands.inputs import input_names
from ldm_filter.commands.lines import Reader, Row, Writer
from ldm_filter.core.gating import Gate
from ldm_filter.data.io import check_folder
from ldm_filter.estimator import LDMFilter
from ldm_filter.online import OnlineFilter, StepResult

__all__ = ["Session", "load", "run_stream", "save"]


class _Stopped(Exception):
    """SIGTERM or SIGINT while waiting for a line."""


class Session:
    """One run of the command.

    Args:
        model: fitted on vectors (frames are filtered from files).
        lag, gate: as of :meth:`~ldm_filter.LDMFilter.online`.
        state: file of the state; it is gone on from where it exists, and saved every ``every`` lines and at the end. None: nothing is kept.
        output: ``"json"``, ``"csv"`` or ``"same"`` as the input.

    Raises:
        ValueError: a model of frames, a state of another model.
        FileNotFoundError: the state's folder does not exist.
    """

    def __init__(
        self, model: LDMFilter, *, lag: int = 0, gate: Gate | None = None, state: str | None = None, every: int = 1000, output: str = "same"
    ) -> None:
        if not model.labels_.channels:
            raise ValueError("the model is of frames, which do not come as lines; use ldm-filter filter on a video file")
        if every < 1:
            raise ValueError(f"save-every is {every}, expected at least 1 line")
        if output not in ("same", "json", "csv"):
            raise ValueError(f"output is {output!r}, expected same, json or csv")
        self.model, self.every, self.output = model, every, output
        self.online: OnlineFilter = model.online(lag=lag, gate=gate)
        self.path = None if state is None else Path(state)
        self.reader, self.writer = Reader(model.labels_.channels, input_names(model)), Writer("json")
        self.read, self.skipped = 0, 0
        self._stop = self._waiting = False
        if self.path is not None:
            check_folder(self.path)
            if self.path.exists():
                self._resume()

    def run(self, lines: IO[bytes], out: IO[str]) -> None:
        """Until the input ends, SIGTERM or SIGINT; the state is saved in every case."""
        with self._signals():
            try:
                while (line := self._next(lines)) != b"":
                    self.read += 1
                    self._take(line, out)
                    if self.path is not None and self.read % self.every == 0:
                        save(self.path, self.online, closed=False)
            except _Stopped:
                _say("stopped by a signal")
            except BrokenPipeError:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115  nobody reads on: the interpreter must not flush there either
            finally:
                if self.path is not None:
                    save(self.path, self.online, closed=True)
        _say(f"{self.read} lines read, {self.skipped} skipped" + (f", state of step {self.online.state.steps} in {self.path}" if self.path else ""))

    def _next(self, lines: IO[bytes]) -> bytes:
        self._waiting = True
        if self._stop:
            raise _Stopped
        line = lines.readline()
        self._waiting = False
        return line

    def _take(self, line: bytes, out: IO[str]) -> None:
        try:
            row = self.reader.read(line.decode("utf-8"))
            if row is None:
                return
            result = self.online.step(row.values, row.time, row.inputs)
        except (ValueError, TypeError) as error:  # also what is no UTF-8 and no JSON
            self.skipped += 1
            _say(f"line {self.read} skipped: {' '.join(str(error).split())}")
            return
        if self.output == "same" and self.reader.kind is not None:
            self.writer.kind = self.reader.kind
        elif self.output != "same":
            self.writer.kind = self.output
        out.write(self.writer.write(self._fields(row, result)))
        out.flush()

    def _fields(self, row: Row, result: StepResult) -> dict[str, Any]:
        mean, std = self.model.decode(result.mean, row.inputs, result.cov)
        channels = self.model.labels_.channels
        return {
            "time": row.shown,
            "line": self.read,
            "filtered_mean": result.mean.tolist(),
            "filtered_std": result.cov.diagonal().sqrt().tolist(),
            "reconstruction_mean": dict(zip(channels, mean.tolist(), strict=True)),
            "reconstruction_std": dict(zip(channels, std.tolist(), strict=True)),
            **{name: float(getattr(result, name)) for name in ("log_likelihood", "nis", "p_value", "weight")},
        }

    def _resume(self) -> None:
        assert self.path is not None
        state, closed = load(self.path)
        self.online.load_state(state)
        at = self.online.state
        when = "" if at.time is None else f", time {at.time:.6f} s" + (" since 1970" if at.clock != "seconds" else "")
        _say(f"goes on after step {at.steps}{when}")
        if not closed:
            _say(f"the run before ended without saving: up to {self.every} lines after that step are not in the state; send them again")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self._stop = True
            if self._waiting:
                raise _Stopped

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def save(path: Path, online: OnlineFilter, closed: bool) -> None:
    """Write the state so that the file is always whole: beside it first, then in its place."""
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        np.savez(file, closed=closed, **online.save_state())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> tuple[dict[str, Any], bool]:
    """What :func:`save` wrote, and whether the run that wrote it had come to its end.

    Raises:
        ValueError: the file is no such state.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {name: archive[name] for name in archive.files}
        closed = bool(content.pop("closed"))
        return {name: value.item() if value.ndim == 0 else value for name, value in content.items()}, closed
    except Exception as error:  # NumPy and zipfile raise all sorts
        raise ValueError(f"state {str(path)!r} cannot be read ({error}); remove it to start anew") from error


def run_stream(options: Any) -> None:
    """The command."""
    torch.set_num_threads(1)
    model = LDMFilter.load(options.model, device="cpu")
    gate = None if options.gate is None else Gate(options.gate, probability=options.gate_probability)
    session = Session(model, lag=options.lag, gate=gate, state=options.state, every=options.save_every, output=options.output)
    session.run(sys.stdin.buffer, sys.stdout)


def _say(text: str) -> None:
    sys.stderr.write(f"ldm-filter: {text}\n")
    sys.stderr.flush()
