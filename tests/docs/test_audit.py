"""`make audit` fails where something is found, and says in its last line what it could not look up."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("requirements.txt", "requirements-oldest.txt")


@pytest.mark.parametrize(
    "does, code, said",
    [
        ("echo No known vulnerabilities found", 0, ""),
        ("echo 'Found 2 known vulnerabilities in 1 package'; exit 1", 2, ""),
        ("exit 124", 0, "NOT AUDITED: requirements.txt (exit status 124) requirements-oldest.txt (exit status 124)"),
        (
            "echo no index; exit 1",
            0,
            "NOT AUDITED: requirements.txt (exit status 1) requirements-oldest.txt (exit status 1)",
        ),
        ("echo 'Name Skip Reason'", 0, "NOT AUDITED: some of requirements.txt some of requirements-oldest.txt"),
    ],
)
def test_what_was_not_audited_is_said(does: str, code: int, said: str, tmp_path: Path) -> None:
    audit = tmp_path / "bin" / "pip-audit"
    audit.parent.mkdir()
    audit.write_text(f"#!/bin/sh\n{does}\n")
    audit.chmod(0o755)
    (tmp_path / ".made").touch()  # newer than pyproject.toml: nothing is installed
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    ran = subprocess.run(
        ["make", "audit", f"AUDIT={tmp_path}"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )

    assert ran.returncode == code
    assert (said in ran.stderr.splitlines()) if said else ("NOT AUDITED" not in ran.stderr)
