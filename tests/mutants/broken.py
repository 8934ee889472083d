"""A copy of the product and its tests, in which one rule can be taken out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.mutants.rules import Mutant

ROOT = Path(__file__).parents[2]
_COPIED = ("consumerkit", "tests", "pyproject.toml")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")


class Ran(NamedTuple):
    """pytest's result: its exit status, its lines with errors, and the whole output."""

    status: int
    errors: list[str]
    said: str


class Copy:
    """A copy to break.

    Args:
        directory: An empty directory for it.
        environment: What the tests need to find their servers.
    """

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._directory = directory
        self._environment = {**os.environ, **environment, "PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
        for name in _COPIED:
            given = ROOT / name
            if given.is_dir():
                shutil.copytree(given, directory / name, ignore=_LEFT_OUT)
            else:
                shutil.copy(given, directory)

    def run(self, *tests: str, within: float = 900.0) -> Ran:
        """Run tests of the copy."""
        options = ["-p", "no:cacheprovider", "-q", "-x", "--tb=short", "--no-header"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=self._directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
        said = done.stdout + done.stderr
        return Ran(done.returncode, [line for line in said.splitlines() if line.startswith("E ")], said)

    def without(self, mutant: Mutant) -> Ran:
        """Run a mutant's test while its rule is taken out."""
        file = self._directory / mutant.file
        whole = file.read_text()
        file.write_text(whole.replace(mutant.old, mutant.new))
        try:
            return self.run(mutant.test)
        finally:
            file.write_text(whole)
