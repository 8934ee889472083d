"""Where an error was raised, so that errors of one kind can be told from others."""

from __future__ import annotations

import site
import sys
import sysconfig
import traceback
from collections import deque
from functools import cache
from pathlib import Path
from typing import Final

from consumerkit.error_tree import first_leaf, traceback_of

_FRAMES: Final = 1000
_NAME_CHARACTERS: Final = 300
_OURS: Final = str(Path(__file__).parents[1])


def place_of(error: BaseException) -> str | None:
    """Return where an error was raised: `file:line in function`, the innermost frame of the user's own code.

    Where there is none, the innermost of all; None without any. The file is told from where it would be imported, so
    that it reads the same wherever the program is installed.
    """
    walked = deque(traceback.walk_tb(traceback_of(first_leaf(error))), maxlen=_FRAMES)
    frames = traceback.StackSummary.extract(((frame, line) for frame, line in walked), lookup_lines=False)
    if not frames:
        return None
    theirs = [frame for frame in frames if not _is_installed(frame.filename)]
    frame = (theirs or frames)[-1]
    return f"{_short(frame.filename)}:{frame.lineno} in {frame.name[:_NAME_CHARACTERS]}"


def _is_installed(filename: str) -> bool:
    return filename.startswith("<") or any(filename.startswith(f"{root}/") for root in _installed())


@cache
def _installed() -> tuple[str, ...]:
    """Return the directories of what is not the user's: consumerkit, installed packages, and Python's own library."""
    paths = sysconfig.get_paths()
    found = {_OURS, paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], *site.getsitepackages()}
    return tuple(sorted(found))


@cache
def _short(filename: str) -> str:
    """Return a file's name below the longest directory that modules are imported from."""
    roots = sorted(
        (path.rstrip("/") for path in sys.path if path and filename.startswith(path.rstrip("/") + "/")), key=len
    )
    return filename[len(roots[-1]) + 1 :] if roots else "/".join(filename.rsplit("/", 2)[-2:])
