"""The Triton kernels before they run: which installations and devices they are for, and that they compile for a real GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldm_filter.core import triton as door
from ldm_filter.core import triton_launch
from tests.optional import needs

needs("triton")

COMPILED = {
    ("2", "1", "float32"): {"filter", "mean", "covariance"},
    ("9", "8", "float64", "3", "1"): {"tile_filter", "tile_mean", "covariance"},  # a number that is 1 is compiled in
    ("2", "1", "float64", "1", "1"): {"mean", "covariance"},  # one series of one step has one model
    ("8", "8", "float32"): {"tile_filter", "mean", "covariance"},
    ("8", "4", "float32", "4096", "2"): {"filter", "mean", "covariance"},
    ("16", "16", "float64"): {"tile_filter", "tile_mean", "covariance"},
    ("32", "32", "float64"): {"tile_filter", "tile_mean", "covariance"},
}
SPILLED = {
    "8": 4096,
    "8 4 float32 4096 2": 10240,
    "32": 2048,
}  # bytes, by states; else 256. The means of 8 states stay in registers all the same: a tile has rows of 8 or 16
ROOM = {"32": 128}  # KiB of shared memory, by states, which `suits` asks of a device; else 99, which every one has


def test_an_old_triton_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_launch, "installed", lambda: (3, 5))
    assert not door.available()
    monkeypatch.setattr(triton_launch, "installed", lambda: None)
    assert not door.available()
    monkeypatch.setattr(triton_launch, "installed", lambda: (3, 6))
    assert door.available()


def test_devices_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the driver: tensor cores for float64, room for the largest tiles, and NVIDIA."""
    device, fits = torch.device("cuda", 1), triton_launch.suits.__wrapped__
    found = SimpleNamespace(shared_memory_per_block_optin=227 << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda asked: found if asked == device else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda asked: (9, 0))
    assert fits(device, 4) and fits(device, 32) and not fits(torch.device("cpu"), 4)
    found.shared_memory_per_block_optin = 99 << 10
    assert fits(device, 16) and not fits(device, 17)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda asked: (7, 5))
    assert not fits(device, 4)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda asked: (9, 0))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not fits(device, 4)


def test_tiles_are_as_small_as_triton_multiplies_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, size in (((3, 6), 16), ((3, 9), 8), ((4, 0), 8)):
        monkeypatch.setattr(triton_launch, "installed", lambda version=version: version)
        padded = triton_launch.own_layout(5, 20, 1, torch.float64).constants
        assert (padded["NP"], padded["MP"]) == (size, 32)


@pytest.mark.parametrize("sizes", [pytest.param(sizes, marks=pytest.mark.slow if k > 1 else ()) for k, sizes in enumerate(COMPILED)])
def test_every_kernel_compiles_for_a_gpu(tmp_path: Path, sizes: tuple[str, ...]) -> None:
    """It fits the shared memory that `suits` counts on, and little of a thread's numbers spills from its 255 registers."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.core.triton_compile", *sizes]
    made = subprocess.run(command, env=clean | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=300, check=False)
    assert made.returncode == 0, made.stderr
    found = {line.split()[0]: [int(number) for number in line.split()[1:]] for line in made.stdout.splitlines()}
    assert set(found) == {f"{what}_{way}" for what in COMPILED[sizes] for way in ("forward", "backward")}
    for code, shared, _, spilled in found.values():
        assert code > 0 and shared <= ROOM.get(sizes[0], 99) * 1024 and spilled <= SPILLED.get(" ".join(sizes), SPILLED.get(sizes[0], 256))
