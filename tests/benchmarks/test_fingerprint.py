"""A figure is old when code that it depends on has changed, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import families
from benchmarks.fingerprint import ROOT, code_fingerprint, sources

FILES = {
    "benchmarks/methods.py": "from ldm_filter import Model, tools\nfrom ldm_filter.baselines import Plain\nrun = Model, Plain, tools.cut\n",
    "ldm_filter/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ldm_filter.model import Model\n",
    "ldm_filter/model.py": '"""Words."""\nclass Model:\n    def fit(self):\n        """Fits."""\n        from ldm_filter import late\n',
    "ldm_filter/late.py": "x = 1\n",
    "ldm_filter/tools/__init__.py": "from ldm_filter.tools.cutting import cut\nfrom ldm_filter.tools.joining import join\n",
    "ldm_filter/tools/cutting.py": "cut = 1\n",
    "ldm_filter/tools/joining.py": "join = 1\n",
    "ldm_filter/baselines/__init__.py": "from ldm_filter.baselines.plain import Plain\nfrom ldm_filter.baselines.fancy import Fancy\n",
    "ldm_filter/baselines/plain.py": "import numpy\nclass Plain: pass\n",
    "ldm_filter/baselines/fancy.py": "class Fancy: pass\n",
    "ldm_filter/cli.py": "x = 1\n",
}
USED = ["benchmarks/methods.py", "ldm_filter/baselines/plain.py", "ldm_filter/late.py", "ldm_filter/model.py", "ldm_filter/tools/cutting.py"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_imports_are_followed_to_the_modules_of_the_names_that_are_taken(project: Path) -> None:
    found = [path.relative_to(project).as_posix() for path in sources("benchmarks.methods", project)]
    assert found == USED
    (project / "benchmarks/methods.py").write_text("from ldm_filter import tools\nrun = dir(tools)\n")
    assert {path.name for path in sources("benchmarks.methods", project)} == {"methods.py", "__init__.py", "cutting.py", "joining.py"}
    with pytest.raises(ValueError, match=r"module is 'benchmarks.none', and no such file"):
        sources("benchmarks.none", project)


def test_the_fingerprint_follows_what_code_means_in_the_files_that_are_used(project: Path) -> None:
    first = code_fingerprint("benchmarks.methods", project)
    assert len(first) == 12
    for name in FILES.keys() - set(USED):
        (project / name).write_text(FILES[name] + "more = 1\n")
    model = project / "ldm_filter/model.py"
    model.write_text(FILES["ldm_filter/model.py"].replace("Words.", "Other words.").replace("Fits.", "Fits well.") + "\n\n# a comment\n")
    assert code_fingerprint("benchmarks.methods", project) == first
    for name in USED:
        (project / name).write_text(FILES[name].replace("x = 1", "x = 2") + "more = 1\n")
        assert code_fingerprint("benchmarks.methods", project) != first, name
        (project / name).write_text(FILES[name])
    assert code_fingerprint("benchmarks.methods", project) == first


def test_every_family_depends_on_its_own_files_on_the_estimator_and_on_no_room_above_it() -> None:
    for family in families.FAMILIES:
        names = {path.relative_to(ROOT).as_posix() for path in sources(family.run.__module__)}
        assert {family.run.__module__.replace(".", "/") + ".py", "ldm_filter/estimator/ldm.py", "ldm_filter/core/kalman.py"} <= names
        assert not any(name.startswith(("ldm_filter/cli", "ldm_filter/commands", "ldm_filter/plots", "ldm_filter/report")) for name in names)
        others = {other.run.__module__.replace(".", "/") + ".py" for other in families.FAMILIES} - {family.run.__module__.replace(".", "/") + ".py"}
        assert not others & names
    assert families.current_code("figure8", "a condition of old") == families.current_code("no task", "") == ""
