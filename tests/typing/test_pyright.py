"""Pyright, strict, accepts what README, the documentation and the examples show."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.docs.markdown import ROOT, blocks

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_NAMED = re.compile(r"# ([\w/]+\.py)\n")


def write_programs(page: Path, directory: Path) -> int:
    """Write the programs of a page under the names it gives them, as a reader does; returns how many there are."""
    named = [
        (found[1], one.text) for one in blocks(page) if one.language == "python" and (found := _NAMED.match(one.text))
    ]
    for name, text in named:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return len(named)


def pyright(directory: Path, places: list[Path]) -> tuple[int, list[str]]:
    """Judge files; returns how many there were, and the complaints."""
    # What a page's programs import from each other stands beside them.
    roots = [{"root": str(one), "extraPaths": [str(ROOT)]} for one in places]
    settings = {
        "include": [str(one) for one in places],
        "executionEnvironments": roots,
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        # consumerkit is typed, and has no stubs beside it.
        "reportMissingTypeStubs": False,
    }
    config = directory / "pyrightconfig.json"
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "-p", str(config), "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    said = json.loads(done.stdout)
    told = [
        f"{one['file']}:{one['range']['start']['line'] + 1}: {one['message']}" for one in said["generalDiagnostics"]
    ]
    return said["summary"]["filesAnalyzed"], told


def test_what_the_pages_and_the_examples_show_passes_pyright_strict(tmp_path: Path) -> None:
    written = {page.stem: write_programs(page, tmp_path / page.stem) for page in PAGES}
    assert written["README"] > 0
    assert written["quickstart"] > 0
    examples = ROOT / "examples"
    places = [examples, *(tmp_path / page for page, count in written.items() if count)]
    mistake = tmp_path / "mistake" / "untyped.py"
    mistake.parent.mkdir()
    mistake.write_text("def untyped(x):\n    return x\n")
    judged, complaints = pyright(tmp_path, [*places, mistake.parent])
    assert [one for one in complaints if not one.startswith(str(mistake))] == []
    # It looks, and with the strict rules.
    assert complaints
    assert judged > len(list(examples.glob("*.py")))
