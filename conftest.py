"""Settings of the whole test run."""

import importlib
import importlib.util

import pytest

# The GPU kernels, and what compiles them, need Triton, which is optional, and have no examples.
collect_ignore_glob = ["ldm_filter/core/triton_*.py", "tests/core/triton_compile.py"]

# Triton looks when it is imported whether to interpret, and parts of torch import it: so it comes first.
if importlib.util.find_spec("triton") is not None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton")
