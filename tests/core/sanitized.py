"""Runs the tests of the compiled kernels with a build of them that watches its memory: ``make test-native``.

python -m tests.core.sanitized dist/ldm_filter-*.whl      # under LD_PRELOAD of the sanitizers' libraries
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

TESTS = [
    f"tests/core/{name}.py" for name in ("test_native", "test_door", "test_native_series", "test_operators", "test_smoothing", "test_kalman_algebra")
]
NAME = "ldm_filter.core._native"


def main(wheel: Path) -> int:
    """Take the extension out of the wheel, put it in the place of the installed one, and run."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.startswith("ldm_filter/core/_native"))
        spec = importlib.util.spec_from_file_location(NAME, archive.extract(member, folder))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[NAME] = module
        print(f"kernels with sanitizers: {module.instruction_sets()}")
        return int(pytest.main(["-q", "-s", "-p", "no:cacheprovider", *TESTS]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
