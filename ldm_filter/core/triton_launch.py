"""How the GPU kernels are called: which of them, over how many programs, and what they are told of tensors."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "OLDEST",
    "Field",
    "Layout",
    "available",
    "covariance_layout",
    "each",
    "field",
    "fields",
    "gradients",
    "installed",
    "interpreted",
    "kernels",
    "launch",
    "mean_layout",
    "of_means",
    "own_layout",
    "per_step",
    "suits",
    "total",
]

# Up to _OWN states and latents a thread holds the matrices of a sequence in its registers, or up to _MANY_OWN where there are _MANY sequences: that
# many keep the threads of a device busy; fewer are done sooner on tiles, over the threads of a program. Counted, not measured: machine code for
# sm_90 of 8 states, 4 latents, float32 with a shared model, the issue slots of one of 528 schedulers for a step of 32 sequences, a product in float64
# taking two; alone on its scheduler a warp waits for its own results, by ptxas's stall counts and assumed latencies of memory. Copying their bytes at
# 4.3 TB/s and 1.75 GHz takes 2600 forwards, 3100 backwards.
#   threads: 4100 forwards, 7500 backwards; alone, as with 16384 sequences, 7000 and 11600 (37 % and 27 % of copying)
#   tiles:  51700 forwards, 59300 backwards (5 % of copying), and done sooner with less than some 3000 sequences
# Spilled by a thread: forwards 456 bytes, backwards 2 KiB, most of it the sums over time (10 in float64); 1 and 8 KiB with a model of its own.
_OWN, _MANY_OWN, _MANY, _MEANS = 4, 8, 3072, 8
_WARP = 32
_ROWS = 16  # sequences in a tile of means

OLDEST = (3, 6)  # of Triton: the first that was seen to multiply float64
_SMALL_TILES = (3, 9)  # of Triton: multiplies tiles of 8
_OLDEST_DEVICE = (8, 0)  # compute capability: the first whose tensor cores multiply float64
_SHARED_MEMORY = 128 << 10  # bytes that a program of more than 16 states and latents may take; data-centre devices have them, others 99 KiB

Field = tuple[Tensor | None, int | None, int | None]


class Layout(NamedTuple):
    """Who computes what.

    Attributes:
        tiled: whether matrices are tiles over the threads of a program, or in the registers of one thread.
        block: sequences for each program.
        warps: of 32 threads for each program.
        constants: what the kernel is compiled for.
    """

    tiled: bool
    block: int
    warps: int
    constants: dict[str, Any]

    def programs(self, z: Tensor) -> int:
        return -(-z.shape[0] // self.block)


def own_layout(n: int, m: int, batch: int, dtype: torch.dtype, inner: torch.dtype | None = None) -> Layout:
    """For covariances of each sequence's own; ``inner``: what a thread's adjoint computes gains in, tiles all of it."""
    if max(n, m) > (_MANY_OWN if batch >= _MANY else _OWN):
        return _tiled(n, m, inner or dtype, 1)
    layout = _threads(n, m, dtype)
    return layout._replace(constants=layout.constants | {"INNER": kernels()["FLOATS"][str(inner)]}) if inner else layout


def mean_layout(n: int, m: int, dtype: torch.dtype) -> Layout:
    """For means under shared gains; tiles are in float64, which tensor cores multiply as it is."""
    if max(n, m) <= _MEANS:
        return _threads(n, m, dtype)
    tiled = _tiled(n, m, torch.float64, _ROWS)
    return tiled._replace(constants=tiled.constants | {"BLOCK": _ROWS})


def covariance_layout(n: int, m: int) -> Layout:
    """For the covariances that all sequences share."""
    return _tiled(n, m, torch.float64, 1)


def _threads(n: int, m: int, dtype: torch.dtype) -> Layout:
    return Layout(False, _WARP, 1, {"N": n, "M": m, "BLOCK": _WARP, "DTYPE": kernels()["FLOATS"][str(dtype)]})


def _tiled(n: int, m: int, dtype: torch.dtype, block: int) -> Layout:
    padded = [max(8 if (installed() or OLDEST) >= _SMALL_TILES else 16, 1 << (size - 1).bit_length()) for size in (n, m)]
    warps = {8: 1, 16: 2, 32: 4}[max(padded)]
    return Layout(True, block, warps, {"N": n, "M": m, "NP": padded[0], "MP": padded[1], "DTYPE": kernels()["FLOATS"][str(dtype)]})


def launch(name: str, programs: int, arguments: Sequence[Any], layout: Layout, **constants: Any) -> None:
    """Run a kernel on the device of its tensors."""
    where = next(x[0].device for x in arguments if isinstance(x, tuple) and x[0] is not None)
    with torch.cuda.device(where) if where.type == "cuda" else contextlib.nullcontext():
        kernels()[name][(programs,)](*arguments, **layout.constants, **constants, num_warps=layout.warps, enable_fp_fusion=True)


# What a kernel is told of a tensor: where it is, whether each sequence has its own rows (1 or None), and each step (1 or None).


def field(x: Tensor | None, like: Tensor | None = None, steps: bool = True) -> Field:
    """A tensor ``(1 | B, 1 | T, ...)``, or ``(1 | B, ...)`` without ``steps``; the gradient of ``like`` is as that."""
    shape = (x if like is None else like).shape  # type: ignore[union-attr]
    return x, 1 if shape[0] > 1 else None, 1 if steps and shape[1] > 1 else None


def each(x: Tensor | None) -> Field:
    """A row for each sequence and step."""
    return None if x is None else x.contiguous(), 1, 1


def per_step(x: Tensor | None) -> Field:
    """A row for each step."""
    return None if x is None else x.contiguous(), None, 1


def fields(inputs: Sequence[Tensor], values: Sequence[Tensor | None] | None = None) -> list[Field]:
    """A, Q, C, R, P0, a, z, h0, or their gradients."""
    *model, z, h0 = inputs if values is None else values
    told = [field(x, like, steps=k != 4) for k, (x, like) in enumerate(zip(model, inputs, strict=False))]
    return [*told, each(z), (h0, 1, None)]


def of_means(all_fields: Sequence[Field]) -> list[Field]:
    """A, C, a, z, h0."""
    return [all_fields[0], all_fields[2], *all_fields[5:]]


def gradients(inputs: Sequence[Tensor], needed: Sequence[bool], programs: int, dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """Room for the gradients that are needed: of what the sequences share a row for each program, or, in float64, for the only one."""
    z = inputs[6]
    sizes = [x.shape if k > 5 or x.shape[0] > 1 else (1 if dtype else programs, *x.shape[1:]) for k, x in enumerate(inputs)]
    always = (k > 5 and dtype is None for k in range(8))
    return [z.new_empty(size, dtype=dtype) if need or must else None for size, need, must in zip(sizes, needed, always, strict=False)]


def total(x: Tensor, *parts: Tensor | None) -> Tensor | None:
    """The gradient of x from its parts, summed over the programs in float64."""
    there = [g if g.shape == x.shape else g.sum(0, keepdim=True, dtype=torch.float64) for g in parts if g is not None]
    return sum(there).to(x.dtype) if there else None  # type: ignore[union-attr]


def available() -> bool:
    """Whether kernels can run: Triton 3.6 or newer is installed, and there is a CUDA device or Triton's interpreter (``TRITON_INTERPRET=1``)."""
    version = installed()
    return version is not None and version >= OLDEST and (interpreted() or torch.cuda.is_available())


@functools.cache
def installed() -> tuple[int, int] | None:
    """The version of Triton, or None."""
    try:
        major, minor, *_ = importlib.metadata.version("triton").split(".")
    except importlib.metadata.PackageNotFoundError:
        return None
    return int(major), int(minor)


@functools.cache
def suits(device: torch.device, size: int) -> bool:
    """Whether kernels of that many states and latents run on the device: an NVIDIA one of compute capability 8.0 or more, with room for them."""
    if device.type != "cuda" or torch.version.hip is not None or torch.cuda.get_device_capability(device) < _OLDEST_DEVICE:
        return False
    room = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)  # older versions of torch do not tell
    return size <= 16 or room >= _SHARED_MEMORY


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def kernels() -> dict[str, Any]:
    """The kernels, compiled when they are first called; imported late, since Triton may be missing and is slow to import."""
    names = ("own", "means", "tile_own", "tile_means", "covariance", "step")
    modules = (importlib.import_module(f"ldm_filter.core.triton_{name}") for name in names)
    return {name: getattr(module, name) for module in modules for name in module.__all__}
