"""Compiles every Triton kernel for a real GPU, without one: run as ``python -m tests.core.triton_compile N M DTYPE``.

Prints a line for each kernel: its name, the bytes of its machine code, the bytes of shared memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ldm_filter.core import triton as door
from ldm_filter.core.inputs import prepare
from ldm_filter.types import Gaussian, StateSpace
from tests.core.problems import constant_ssm, random_measurements, varying_ssm

POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32"}


def source(kernel: Any, arguments: Sequence[Any], constants: dict[str, Any]) -> ASTSource:
    """What Triton would compile for these arguments: tensors by type, flags as constants, numbers as int32."""
    values: dict[tuple[int, ...], Any] = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    hints = {}

    def kind(x: Any, *path: int) -> str:
        if isinstance(x, torch.Tensor):
            hints[path] = [["tt.divisibility", 16]]
            return POINTERS[x.dtype]
        if len(path) == 1:
            return "i32"
        values[path] = x
        return "constexpr"

    signature: dict[str, Any] = dict.fromkeys(constants, "constexpr")
    for k, (name, x) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        signature[name] = tuple(kind(part, k, j) for j, part in enumerate(x)) if isinstance(x, tuple) else kind(x, k)
    return ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, values, hints)


def compile_only(name: str, programs: int, arguments: Sequence[Any], **constants: Any) -> None:
    """In place of a launch. No output is written, but the flags say that nothing failed."""
    for x in arguments:
        if isinstance(x, torch.Tensor):
            x.fill_(2**30)
    kernel = door._kernels()[name]
    made = triton.compile(source(kernel, arguments, constants), target=GPUTarget("cuda", 90, 32), options={"num_warps": 1, "enable_fp_fusion": True})
    print(name, len(made.asm["cubin"]), made.metadata.shared, flush=True)


def main(n: int, m: int, dtype: torch.dtype) -> None:
    door._launch = compile_only
    door.supports = lambda problem: True
    measurements = random_measurements(3, 4, m, varying=True)
    for ssm, cov in ((constant_ssm(n, m), measurements.cov[:1, :1]), (varying_ssm(3, 4, n, m), measurements.cov)):
        A, a, Q, C, c, h, P, z, R = (x.to(dtype).requires_grad_() for x in (*ssm[:5], *ssm.initial, measurements.mean, cov))
        problem = prepare(StateSpace(A, a, Q, C, c, Gaussian(h, P)), Gaussian(z, R), None)
        result = door.run(problem, predicted=True)
        assert result.predicted is not None
        outputs = [*result.predicted, *result.filtered, result.log_likelihood]
        torch.autograd.grad(sum(x.sum() for x in outputs), [A, a, Q, C, c, h, P, z, R])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3]))
