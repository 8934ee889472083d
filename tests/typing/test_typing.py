"""Mypy accepts what a user may write, and refuses what cannot work."""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
IGNORE = re.compile(r"  # type: ignore\[[\w,-]+\]")


def mypy(*arguments: str | Path) -> str:
    # Silent imports: only the files named are judged here; `make check` judges all.
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--no-error-summary", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def test_handlers_as_users_write_them_type_check_and_every_expected_error_still_comes() -> None:
    assert mypy(HERE) == ""


def test_each_mistake_is_an_error_of_its_own(tmp_path: Path) -> None:
    source = (HERE / "refused.py").read_text()
    mistakes = {number for number, line in enumerate(source.splitlines(), 1) if IGNORE.search(line)}
    bare = tmp_path / "bare.py"
    bare.write_text(IGNORE.sub("", source))
    found = {int(number) for number in re.findall(r"bare\.py:(\d+): error", mypy(bare))}
    assert found == mistakes
