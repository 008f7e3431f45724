"""Every feature that is told of has tests, and they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = TESTS.parent / "docs" / "features.md"


def test_every_feature_names_tests_that_exist() -> None:
    rows = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 21
    for row in rows:
        named = re.findall(r'\(\.\./tests/(\S+) "(\S+)::(\w+)"\)', row)
        assert len(named) == 2, row
        for link, file, test in named:
            assert link == file
            functions = [node.name for node in ast.walk(ast.parse((TESTS / file).read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)]
            assert test in functions, f"{file} has no {test}"
