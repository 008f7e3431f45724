"""Which code a figure depends on, and a fingerprint of it: the tables mark what other code has made.

Followed are the imports of the module that runs a family of tasks, also those inside functions, through ``ldm_filter``, ``datasets`` and
``benchmarks``. A package is followed to the modules of the names that are taken from it, not to all that it exports: a new baseline leaves the
figures of the learned filter as they are. Of each module the text counts as Python sees it, without comments, docstrings and layout. The kernels,
compiled ones and those in Triton, are left out: they compute what the torch code does to rounding, and the tests hold them to that.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["code_fingerprint", "sources"]

PACKAGES = ("ldm_filter", "datasets", "benchmarks")
KERNELS = "ldm_filter.core.triton"  # what the names of modules with kernels begin with
ROOT = Path(__file__).resolve().parent.parent


def code_fingerprint(module: str, root: Path = ROOT) -> str:
    """Twelve hex digits of all the code that a module leads to; they follow its meaning, not its words.

    Args:
        module: its name, ``"benchmarks.dot_methods"``.
        root: the checkout.

    Raises:
        ValueError: there is no such module below ``root``.
    """
    digest = hashlib.sha256()
    for path in sources(module, root):
        digest.update(f"{path.relative_to(root).as_posix()}\n{_meaning(path.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:12]


def sources(module: str, root: Path = ROOT) -> list[Path]:
    """The files of this project that a module's imports lead to, its own among them, sorted.

    Raises:
        ValueError: there is no such module below ``root``.
    """
    project = _Project(root)
    if project.file(module) is None:
        raise ValueError(f"module is {module!r}, and no such file is below {root}")
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and not name.startswith(KERNELS):
            found.add(name)
            waiting += project.imports(name)
    return sorted(path for name in found if (path := project.file(name)) is not None)


class _Project:
    """The modules below a root, each read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._trees: dict[str, ast.Module] = {}

    def file(self, module: str) -> Path | None:
        if module.split(".")[0] not in PACKAGES:
            return None
        base = self.root.joinpath(*module.split("."))
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)

    def tree(self, module: str) -> ast.Module:
        if module not in self._trees:
            path = self.file(module)
            self._trees[module] = ast.parse("" if path is None else path.read_text(encoding="utf-8"))
        return self._trees[module]

    def imports(self, module: str) -> Iterator[str]:
        """The project's modules that a module needs; what it imports for type checkers only is left out."""
        tree = self.tree(module)
        for node in _executed(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if self.file(alias.name))
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    path = self.file(inner)
                    if path is None:
                        yield self.home(node.module, alias.name)
                    elif path.name == "__init__.py":
                        yield from self.taken(tree, inner, alias.asname or alias.name)
                    else:
                        yield inner

    def taken(self, tree: ast.Module, package: str, name: str) -> Iterator[str]:
        """The modules behind the attributes that code takes from a package it knows as ``name``; the whole package where it is handed on."""
        uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.value in uses]
        if len(attributes) < len(uses):
            yield package
        yield from (self.home(package, node.attr) for node in attributes)

    def home(self, module: str, name: str) -> str:
        """The module that defines a name which is imported from another: re-exports of packages are followed."""
        path = self.file(module)
        if path is not None and path.name == "__init__.py":
            if self.file(f"{module}.{name}"):
                return f"{module}.{name}"
            for node in ast.walk(self.tree(module)):  # also what only type checkers see: lazy packages list their names there
                if isinstance(node, ast.ImportFrom) and node.module and name in [alias.asname or alias.name for alias in node.names]:
                    return self.home(node.module, name)
        return module


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield child
            yield from _executed(child)


def _meaning(text: str) -> str:
    """Source without comments, docstrings and layout."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
