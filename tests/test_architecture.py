"""The direction of imports between the rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ldm_filter"
BELOW: dict[str, set[str]] = {"types": set(), "core": {"types"}, "objectives": {"types", "core"}, "models": {"types", "core"}}
BELOW |= {"data": {"types"}, "metrics": {"types"}}
for room in ("training", "checkpoint", "online"):
    BELOW[room] = {"types", "core", "objectives", "models"}
BELOW["online"] |= {"data"}  # the one-step boundary may use the data room
BELOW["streams"] = BELOW["online"]
BELOW["online"] = BELOW["online"] | {"streams"}  # its door
BELOW["estimator"] = {"types", "core", "objectives", "models", "training", "checkpoint", "online", "data", "metrics"}
for room in ("baselines", "plots", "report"):
    BELOW[room] = BELOW["estimator"] | {"estimator"}
BELOW["comparison"] = BELOW["estimator"] | {"estimator", "baselines", "plots", ""}
BELOW["accessors"] = BELOW["estimator"] | {"estimator", "plots"}
BELOW["report"] |= {"baselines", "plots"}
BELOW["cli"] = BELOW["estimator"] | {"estimator", "baselines", "comparison", "plots", "report", ""}
BELOW["commands"] = BELOW["cli"]
BELOW["cli"] = BELOW["cli"] | {"commands"}
LABELLED = {"data", "estimator", "baselines", "report", "plots", "accessors", "comparison"}
# A name is imported where no arrow points in two places: the package's lazy names, and `LDMFilter.compare` when it is called.
BY_NAME = {"__init__.py", "estimator/comparison.py"}
CORE = ("core.kalman", "core.linearisation", "core.nonlinear", "core.smoothing", "core.step")
DOORS = ("LDMFilter", "CollapseError", "types", *CORE, "metrics", "baselines", "plots", "Gaussian", "StateSpace", "__version__")


def imported(path: Path) -> list[str]:
    """Every module that a file imports at run time, also inside functions; imports for type checkers only are left out."""
    names: list[str] = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrow"
            names += [f"ldm_filter.{alias.name}" for alias in node.names] if node.module == "ldm_filter" else [node.module or ""]
    return names


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    room = room_of(path)
    allowed = BELOW[room] | {room}
    for name in imported(path):
        if name.split(".")[0] == "ldm_filter":
            assert (name.split(".")[1] if "." in name else "") in allowed, f"{room} imports {name}"
        if name.split(".")[0] in ("pandas", "xarray"):
            assert room in LABELLED, f"{room} imports {name}; labelled objects are known to {sorted(LABELLED)} only"


def test_modules_are_imported_by_name_in_two_places_only() -> None:
    calls = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8").count("import_module(") for path in PACKAGE.rglob("*.py")}
    kernels = {"core/native.py", "core/triton_launch.py"}  # their own compiled or optional parts
    assert {name for name, count in calls.items() if count} - kernels == BY_NAME
    text = (PACKAGE / "estimator" / "comparison.py").read_text(encoding="utf-8")
    assert text.count("import_module(") == 1 and 'import_module("ldm_filter.comparison")' in text


def test_core_knows_tensors_only() -> None:
    known = {"torch", "numpy", "ldm_filter", "triton", "__future__"}
    standard = {
        "collections",
        "contextvars",
        "functools",
        "importlib",
        "math",
        "types",
        "typing",
        "warnings",
        "os",
        "contextlib",
        "enum",
        "dataclasses",
    }
    for path in (PACKAGE / "core").rglob("*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= known | standard, path


@pytest.mark.parametrize("path", sorted(p for f in ("datasets", "benchmarks", "notebooks") for p in (ROOT / f).rglob("*.py")), ids=str)
def test_outsiders_use_the_doors(path: Path) -> None:
    for name in imported(path):
        if name.startswith("ldm_filter."):
            assert name.removeprefix("ldm_filter.").startswith(DOORS), f"{path.name} imports {name}"
