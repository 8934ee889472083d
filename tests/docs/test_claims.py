"""What is claimed of versions is what `make test-versions` runs."""

import re
import tomllib
from typing import Any

from tests import versions
from tests.docs.markdown import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_each_python_of_the_classifiers_is_run() -> None:
    named = [found[1] for one in PROJECT["classifiers"] if (found := re.search(r":: (3\.\d+)$", one))]
    assert named
    assert set(named) <= set(versions.PYTHONS)


def test_the_oldest_python_is_the_same_everywhere() -> None:
    oldest = versions.PYTHONS[0]
    assert PROJECT["requires-python"] == f">={oldest}"
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    said = {found for page in pages for found in re.findall(r"Python (3\.\d+) or\s+newer", page.read_text())}
    assert said == {oldest}
