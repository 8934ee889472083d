"""Every program in `examples/` prints what it says it prints: in memory, and some on the real servers too."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.docs.markdown import ROOT
from tests.services import KafkaServer, PostgresServer

EXAMPLES = sorted(file for file in (ROOT / "examples").glob("[0-9]*.py") if "__main__" in file.read_text())
# What a real broker or database could do differently: locks, threads, the relay, a lifespan with a network in it.
ON_SERVERS = [file for file in EXAMPLES if file.name[:2] in ("01", "02", "05", "08", "10", "14")]
_NAMES = re.compile(r'(?:\b(?:topic|name) = |DeadLetter\()"([^"]+)"')


def _said(file: Path) -> list[str]:
    """The output that the end of the file shows in comments."""
    lines = file.read_text().splitlines()
    said = [
        line.strip()[2:] for line in lines[lines.index('if __name__ == "__main__":') :] if line.startswith("    # ")
    ]
    assert said, f"{file.name} does not say what it prints"
    return said


def _run(directory: Path, *command: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("KAFKA", "DATABASE")}
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", *command],
        cwd=directory, env={**clean, **environment}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_needs_no_server_and_prints_what_it_says(file: Path) -> None:
    assert _run(ROOT, f"examples/{file.name}") == _said(file)


def test_the_examples_page_says_of_each_what_it_says_itself() -> None:
    page = (ROOT / "examples" / "README.md").read_text()
    listed = re.findall(r"^\* \[(.*)\]\(\1\): ((?:.+\n)(?:  .+\n)*)", page, re.MULTILINE)
    assert len(listed) == page.count("\n* [")
    for name, lines in listed:
        said = " ".join(lines.split())
        docstring = ast.get_docstring(ast.parse((ROOT / "examples" / name).read_text())) or ""
        assert docstring.split("\n\n")[0].replace("\n", " ") == said


@pytest.mark.parametrize("file", ON_SERVERS, ids=lambda file: file.stem)
def test_an_example_prints_the_same_on_kafka_and_postgresql(
    file: Path, tmp_path: Path, kafka: KafkaServer, postgres: PostgresServer, database: str
) -> None:
    directory = _renamed(tmp_path, file)
    servers = {"KAFKA": kafka.bootstrap, "DATABASE": postgres.url(database)}
    assert _run(directory, "-m", f"examples.{file.stem}", **servers) == _said(file)


def _renamed(directory: Path, file: Path) -> Path:
    """Copy an example, with topics and handlers that no other test run uses."""
    text, suffix = file.read_text(), uuid4().hex[:8]
    for name in set(_NAMES.findall(text)):
        text = text.replace(f'"{name}"', f'"{name}-{suffix}"')
    package = directory / "examples"
    package.mkdir()
    # Else the repository's own package, which has one, would come before this one, wherever it is on the path.
    (package / "__init__.py").touch()
    (package / file.name).write_text(text)
    (package / "stage.py").write_text((ROOT / "examples" / "stage.py").read_text())
    return directory


def test_prefetch_saves_the_queries_of_the_handler() -> None:
    """300 transfers over three accounts: without prefetch there would be a SELECT for each of them at least."""
    counted = (
        "import asyncio, runpy; from sqlalchemy import Engine, event; selects = []\n"
        "@event.listens_for(Engine, 'before_cursor_execute')\n"
        "def count(c, cursor, statement, *rest):\n"
        "    selects.append(1) if statement.startswith('SELECT accounts') else None\n"
        "runpy.run_module('examples.06_prefetch', run_name='__main__'); print(len(selects))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", counted], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    assert int(done.stdout.splitlines()[-1]) < 20


def test_the_users_test_in_the_examples_passes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "examples/09_test_with_memory.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
