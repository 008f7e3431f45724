"""Training on two processes does what it does on one."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


def run_on(processes: int, folder: Path, *arguments: str) -> Any:
    out = folder / f"{processes}{''.join(arguments)}.pt"
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "PYTHONWARNINGS": "error::UserWarning:lightning_fabric"}
    command = [sys.executable, "-m", "tests.training.script", str(processes), str(out), *arguments]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


@pytest.mark.slow
@pytest.mark.parametrize("entropy", ["log-det", "knn", "jacobian"])
def test_two_processes_train_as_one_on_the_joint_batch(tmp_path: Path, entropy: str) -> None:
    """Loss, gradient (through the weights after Adam's steps) and decisions, with unequal numbers of observed steps."""
    one, two = (run_on(processes, tmp_path, entropy) for processes in (1, 2))
    assert one["world_size"] == 1
    assert two["world_size"] == 2
    for name in ("loss", "alignment", "entropy", "gauge", "validation_loss"):
        for row, other in zip(one["epochs"], two["epochs"], strict=True):
            assert other[name] == pytest.approx(row[name], abs=1e-7), name
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    for name, gradient in one["gradient"].items():
        torch.testing.assert_close(two["gradient"][name], gradient, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.slow
def test_one_process_in_trouble_does_not_leave_the_other_waiting(tmp_path: Path) -> None:
    found = run_on(2, tmp_path, "log-det", "fail")
    assert found["events"] == ["epoch 0: 1 step(s) skipped, first: process 1 could not evaluate its share of the batch"]
    assert all(math.isfinite(row["loss"]) for row in found["epochs"])
