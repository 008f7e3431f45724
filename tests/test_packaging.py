"""The package as installed: its version, and its compiled kernels, with them and without."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import ldm_filter
from ldm_filter.core import kernels, native
from ldm_filter.core.kalman import filter_sequence
from tests.core.problems import constant_ssm, random_measurements

ROOT = Path(__file__).parents[1]


def test_version_is_that_of_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert importlib.metadata.version(project["name"]) == ldm_filter.__version__ == project["version"]


def test_kernels_are_built_where_there_is_a_compiler():
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        pytest.skip("no C++ compiler")
    assert native.available()
    assert native._load().__version__ == importlib.metadata.version("ldm-filter"), "built from another version: run make install"


def test_missing_kernels_warn_once_and_say_how_to_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, native._EXTENSION, None)
    native._load.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"results are the same, but slower.*Install a C\+\+ compiler") as caught:
            assert not native.available()
            assert not native.available()
        assert len(caught) == 1
        with pytest.raises(RuntimeError, match="reinstall"):
            kernels.run_links(torch.zeros(1, 1, 1, 1), torch.zeros(1, 2, 1), True)
    finally:
        native._load.cache_clear()


def test_the_filter_gives_the_same_without_the_kernels(monkeypatch):
    ssm, measurements = constant_ssm(3, 2), random_measurements(5, 12, 2)
    fast = filter_sequence(ssm, measurements)
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(kernels, "filter_batch", None)  # calling it now would fail
    torch.testing.assert_close(fast, filter_sequence(ssm, measurements), rtol=1e-12, atol=1e-12)
