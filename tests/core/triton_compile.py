"""Compiles every Triton kernel for a real GPU, without one: run as ``python -m tests.core.triton_compile N M DTYPE [BATCH STEPS]``.

Prints a line for each kernel: its name, the bytes of its machine code, the bytes of shared memory, the registers of a thread, and the bytes that
it writes to memory for want of registers.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from ldm_filter.core import triton as door
from ldm_filter.core import triton_launch
from ldm_filter.core.inputs import prepare
from ldm_filter.core.triton_launch import Layout
from ldm_filter.types import Gaussian, StateSpace
from tests.core.problems import constant_ssm, random_measurements, varying_ssm

CAPABILITY = 90
POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32"}


def source(kernel: Any, arguments: Sequence[Any], constants: dict[str, Any]) -> ASTSource:
    """What Triton would compile for these arguments: tensors by type, flags as constants, numbers as int32."""
    values: dict[tuple[int, ...], Any] = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    hints = {}

    def kind(x: Any, *path: int) -> str:
        if isinstance(x, torch.Tensor):
            hints[path] = [["tt.divisibility", 16]]
            return POINTERS[x.dtype]
        if len(path) == 1 and (x != 1 or kernel.params[path[0]].do_not_specialize):
            return "i32"
        values[path] = x
        return "constexpr"

    signature: dict[str, Any] = dict.fromkeys(constants, "constexpr")
    for k, (name, x) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        signature[name] = tuple(kind(part, k, j) for j, part in enumerate(x)) if isinstance(x, tuple) else kind(x, k)
    return ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, values, hints)


def compile_only(steps: int, name: str, programs: int, arguments: Sequence[Any], layout: Layout, **constants: Any) -> None:
    """In place of a launch. No output is written, but what the host looks at says that nothing failed and all steps are distinct."""
    for x in arguments:
        if isinstance(x, torch.Tensor):
            x.fill_(steps)
    options = {"num_warps": layout.warps, "enable_fp_fusion": True}
    asked = source(triton_launch.kernels()[name], arguments, layout.constants | constants)
    made = triton.compile(asked, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    print(name, len(made.asm["cubin"]), made.metadata.shared, *used(made.asm["ptx"]), flush=True)


def used(ptx: str) -> tuple[int, int]:
    """Registers of a thread, and the bytes that it writes to memory for want of them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx, encoding="utf-8")
        command = [get_ptxas(CAPABILITY).path, "-v", f"--gpu-name=sm_{CAPABILITY}a", str(path), "-o", str(Path(folder) / "kernel.cubin")]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.findall(r"Used (\d+) registers", told)[0]), int(re.findall(r"(\d+) bytes spill stores", told)[0])


def main(n: int, m: int, dtype: torch.dtype, batch: int = 3, steps: int = 4) -> None:
    door.launch = partial(compile_only, steps)
    door.supports = lambda problem: True
    measurements = random_measurements(batch, steps, m, varying=True)
    for ssm, cov in ((constant_ssm(n, m), measurements.cov[:1, :1]), (varying_ssm(batch, steps, n, m), measurements.cov)):
        A, a, Q, C, c, h, P, z, R = (x.to(dtype).requires_grad_() for x in (*ssm[:5], *ssm.initial, measurements.mean, cov))
        problem = prepare(StateSpace(A, a, Q, C, c, Gaussian(h, P)), Gaussian(z, R), None)
        result = door.run(problem, predicted=True)
        assert result.predicted is not None
        outputs = [*result.predicted, *result.filtered, result.log_likelihood]
        torch.autograd.grad(sum(x.sum() for x in outputs), [A, a, Q, C, c, h, P, z, R])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3]), *map(int, sys.argv[4:]))
