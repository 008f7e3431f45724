"""The README's example and the notebooks run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parent.parent


def run(script: str, folder: Path) -> str:
    """Run Python source in a process of its own, warnings of our own code being errors."""
    (folder / "script.py").write_text(script, encoding="utf-8")
    environment = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(folder)}
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_readme_example_stands_early_and_runs(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert example is not None
    assert text[: example.start()].count("\n") < 20
    assert "NIS / m" in run(example.group(1).replace("epochs=20", "epochs=4, progress=False"), tmp_path)


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("*/README.md")), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        place, _, section = target.partition("#")
        page = path.parent / place if place else path
        if "://" not in target:
            assert page.exists(), f"{target} is not there"
            headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE) if section else []
            assert not section or section in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = jupytext.read(path)
    assert any(cell.cell_type == "markdown" for cell in notebook.cells)
    assert run("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"), tmp_path)
