"""The GPU benchmark runs by Triton's interpreter, checks before it times, and counts bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_speed
from benchmarks.speed_problems import REGIMES, Size, problem
from ldm_filter.core import triton
from tests.optional import needs

ROOT = Path(__file__).parents[2]


def test_bytes_counted_by_hand() -> None:
    """n 2, m 1: a step reads z (1) and R (1), writes mean (2), covariance (4) and density (1); backwards the same is read, and dz, dR written."""
    size = Size(3, 5, 2, 1)
    assert gpu_speed.necessary_bytes(size, "per-sequence", backward=False) == 4 * 15 * 9
    assert gpu_speed.necessary_bytes(size, "per-sequence", backward=True) == 4 * 15 * (9 + 2 + 6 + 1 + 2)
    assert gpu_speed.necessary_bytes(size, "constant", backward=False) == 4 * 15 * 4


def test_it_runs(tmp_path: Path) -> None:
    needs("triton")
    command = [sys.executable, "-m", "benchmarks.gpu_speed", "--device", "cpu", "--batch", "3", "--steps", "2", "--n", "2", "--m", "1"]
    command += ["--repeats", "1", "--json", str(tmp_path / "gpu.json")]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, check=True, capture_output=True, timeout=300)
    rows = json.loads((tmp_path / "gpu.json").read_text())
    kinds = {(row["regime"], row["pass"], row["backend"]) for row in rows}
    assert len(rows) == len(kinds) == 10
    assert all(row["seconds"] > 0.0 and (row["regime"] == "streams" or row["share_of_copy"] > 0.0) for row in rows)


def test_the_largest_that_kernels_take_is_among_the_sizes() -> None:
    assert max(size.n for size in gpu_speed.SIZES) == triton.LARGEST == 32
    assert {max(size.n, size.m) > 4 for size in gpu_speed.SIZES} == {max(size.n, size.m) > 8 for size in gpu_speed.SIZES} == {False, True}


def test_a_size_is_given_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_speed.main(["--device", "cpu", "--batch", "3"])
    assert "give all four" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_speed.main([])
    assert "no CUDA device here" in capsys.readouterr().err


def test_a_part_that_fails_is_named_and_what_was_measured_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def part(size, regime, device, repeats):
        yield {
            "batch": 1,
            "steps": 2,
            "n": 3,
            "m": 4,
            "regime": regime,
            "pass": "forward",
            "backend": "torch",
            "seconds": 1.0,
            "steps_per_second": 2.0,
        }
        raise RuntimeError("no room")

    rows: list[dict[str, object]] = []
    assert not gpu_speed.tried(partial(part, Size(1, 2, 3, 4), "constant", None, 1), rows, tmp_path / "gpu.json")
    assert "Size(batch=1, steps=2, n=3, m=4) constant: FAILED, RuntimeError: no room" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu.json").read_text()) == rows and len(rows) == 1


@pytest.mark.parametrize("regime", REGIMES)
def test_the_check_sees_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch, regime: str) -> None:
    given = problem(Size(3, 4, 2, 1), regime)
    honest = gpu_speed.found

    def wrong(given, device, name, dtype):
        values, gradients = honest(given, device, "torch", dtype)
        return values, gradients if name == "torch" else [*gradients[:-1], 1.01 * gradients[-1]]

    monkeypatch.setattr(gpu_speed, "found", wrong)
    with pytest.raises(AssertionError, match=r"gradients 4 in torch\.float32 differ by 1\.0e-02"):
        gpu_speed.check(given, torch.device("cpu"))
