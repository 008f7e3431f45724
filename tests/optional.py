"""Packages that some tests need and a plain installation lacks."""

from __future__ import annotations

from types import ModuleType

import pytest

__all__ = ["needs"]

EXTRAS = {
    "av": "video",
    "dask": "lazy",
    "gymnasium": "benchmarks",
    "h5netcdf": "storage",
    "h5py": "storage",
    "jinja2": "report",
    "onnx": "onnx",
    "onnxruntime": "dev",
    "onnxscript": "onnx",
    "pyarrow": "storage",
    "triton": "gpu",
}


def needs(module: str) -> ModuleType:
    """The module; where it is missing the test is skipped, and the reason says what to install."""
    extra = EXTRAS[module.split(".", maxsplit=1)[0]]
    return pytest.importorskip(module, reason=f"{module} is not installed: pip install 'ldm-filter[{extra}]'", exc_type=ImportError)
