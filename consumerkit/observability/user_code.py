"""The user's own code in a traceback: which frames are the user's, and where an error came out of them."""

from __future__ import annotations

import re
import site
import sys
import sysconfig
import traceback
from collections import deque
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Final, NamedTuple

from consumerkit.error_tree import first_leaf, traceback_of

_FRAMES: Final = 1000
_NAME_CHARACTERS: Final = 300
_OURS: Final = str(Path(__file__).parents[1])
_INNER: Final = re.compile(r"\.<locals>\.<\w+>")
# On any machine: installed packages, Python's own library, and code without a file.
_INSTALLED: Final = re.compile(r"^<|/(?:site|dist)-packages/|/lib(?:64)?/python3\.\d+/|/consumerkit/[\w/]+\.py$")
_theirs: set[str] = set()


class Frame(NamedTuple):
    """One frame of a traceback.

    Attributes:
        filename: The name of its file, as Python knows it.
        line: The line.
        function: The function's name.
        qualified: The function's name with the classes and functions around it.
    """

    filename: str
    line: int
    function: str
    qualified: str

    @property
    def is_theirs(self) -> bool:
        """Whether it is the user's own code."""
        return is_theirs(self.filename)

    @property
    def file(self) -> str:
        """The file's name, the same wherever the program is installed."""
        return short(self.filename)


def belongs_to_the_user(kind: type) -> None:
    """Count the package of a handler's class as the user's code, even if it is among the installed packages."""
    package = sys.modules.get(kind.__module__.partition(".")[0])
    if package is None or package.__name__ in ("consumerkit", "builtins"):
        return
    _theirs.update(f"{directory}/" for directory in getattr(package, "__path__", ()))
    if not hasattr(package, "__path__") and getattr(package, "__file__", None):
        _theirs.add(str(package.__file__))


def is_theirs(filename: str) -> bool:
    """Return whether a file is the user's: not consumerkit's, an installed package's, or Python's own."""
    if any(filename == known or (known.endswith("/") and filename.startswith(known)) for known in _theirs):
        return True
    return not filename.startswith("<") and not any(filename.startswith(f"{root}/") for root in _installed())


def is_ours(error: BaseException) -> bool:
    """Return whether consumerkit itself raised an error: its text then says nothing about a message's content."""
    frames = frames_of(error)
    return bool(frames) and frames[-1].filename.startswith(f"{_OURS}/")


def looks_like_theirs(filename: str) -> bool:
    """Return whether a file is the user's, by its name alone, which may come from another machine."""
    return is_theirs(filename) and not _INSTALLED.search(filename)


def frames_of(error: BaseException) -> list[Frame]:
    """Return the frames of an error's traceback, innermost last; of a group, those of its first error."""
    walked = deque(traceback.walk_tb(traceback_of(first_leaf(error))), maxlen=_FRAMES)
    return [_frame(frame.f_code, line) for frame, line in walked]


def users_frame(error: BaseException) -> Frame | None:
    """Return the innermost frame of the user's own code; None if there is none."""
    return next((frame for frame in reversed(frames_of(error)) if frame.is_theirs), None)


def place(error: BaseException) -> str:
    """Return where an error left the user's code, else where it was raised: `file:line in function`.

    Empty for an error that was never raised.
    """
    frames = frames_of(error)
    if not frames:
        return ""
    return place_of_frame(next((frame for frame in reversed(frames) if frame.is_theirs), frames[-1]))


def place_of_frame(frame: Frame) -> str:
    """Return a frame as `file:line in function`; a comprehension or lambda counts as the function around it."""
    name = _INNER.sub("", frame.qualified)[:_NAME_CHARACTERS]
    return f"{frame.file}:{frame.line} in {name.replace('.<locals>', '')}"


def place_of_function(function: object) -> str:
    """Return where a function is written, as `file:line`; empty if it has no code of its own."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return f"{short(code.co_filename)}:{code.co_firstlineno}" if isinstance(code, CodeType) else ""


@cache
def short(filename: str) -> str:
    """Return a file's name below the longest directory that modules are imported from."""
    roots = sorted(
        (path.rstrip("/") for path in sys.path if path and filename.startswith(path.rstrip("/") + "/")), key=len
    )
    return filename[len(roots[-1]) + 1 :] if roots else "/".join(filename.rsplit("/", 2)[-2:])


def _frame(code: CodeType, line: int | None) -> Frame:
    return Frame(code.co_filename, line or 0, code.co_name[:_NAME_CHARACTERS], code.co_qualname)


@cache
def _installed() -> tuple[str, ...]:
    """Return the directories that are not the user's: consumerkit, installed packages, and Python's own library."""
    paths = sysconfig.get_paths()
    found = {_OURS, paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], *site.getsitepackages()}
    return tuple(sorted({*found, site.getusersitepackages()}))
