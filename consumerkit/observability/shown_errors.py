"""Errors in full, for the developer of a handler: `--show-errors` switches them on in this process.

An error's text may quote a payload, so it is shown only on request (decision 7).
"""

from __future__ import annotations

import linecache
from itertools import groupby
from typing import Final

from consumerkit.error_tree import first_leaf, raised_from
from consumerkit.observability.printable import printable
from consumerkit.observability.user_code import Frame, frames_of, place_of_frame
from consumerkit.redaction.text import redact

_TEXT_CHARACTERS: Final = 500
_LINE_CHARACTERS: Final = 160
_CAUSES: Final = 3
_OWN_FRAMES: Final = 20

_are_shown = False


def show_errors(wanted: bool) -> None:
    """Switch the errors' text and traceback after log lines of failures on or off, from now on."""
    global _are_shown
    _are_shown = wanted


def are_shown() -> bool:
    """Return whether errors are shown in full."""
    return _are_shown


def in_full(error: BaseException, words: str) -> str:
    """Return an error for people: its text in one line, then its traceback with the user's frames in full.

    Each run of frames of consumerkit and of libraries is one line.

    Args:
        error: The error.
        words: Its class and text, redacted.

    Example:
        >>> in_full(ValueError("no"), "ValueError: no")
        'ValueError: no'
    """
    return "\n".join([one_line(words), *_traceback(error)])


def one_line(words: str) -> str:
    r"""Return a text as one line of at most 500 characters.

    Example:
        >>> one_line("1 error\n  amount\n")
        '1 error; amount'
    """
    text = printable("; ".join(filter(None, map(str.strip, words.splitlines()))))
    return text if len(text) <= _TEXT_CHARACTERS else f"{text[: _TEXT_CHARACTERS - 1]}…"


def _traceback(error: BaseException) -> list[str]:
    lines: list[str] = []
    cause: BaseException | None = error
    for number in range(_CAUSES):
        if cause is None:
            break
        cause = first_leaf(cause)
        frames = frames_of(cause)
        if number and frames:
            lines.append(f"  caused by {type(cause).__name__}")
        lines += _runs(frames)
        cause = raised_from(cause)
    return lines


def _runs(frames: list[Frame]) -> list[str]:
    lines: list[str] = []
    for theirs, run in groupby(frames, key=lambda frame: frame.is_theirs):
        found = list(run)
        lines += _whole(found[-_OWN_FRAMES:]) if theirs else [_folded(found)]
    return lines


def _whole(frames: list[Frame]) -> list[str]:
    lines = []
    for frame in frames:
        lines.append(f'  File "{printable(frame.filename)}", line {frame.line}, in {printable(frame.function)}')
        if source := linecache.getline(frame.filename, frame.line).strip():
            lines.append(f"    {redact(printable(source))[:_LINE_CHARACTERS]}")
    return lines


def _folded(frames: list[Frame]) -> str:
    if len(frames) == 1:
        return f"  … {printable(place_of_frame(frames[0]))}"
    return f"  … {len(frames)} frames, the last is {printable(place_of_frame(frames[-1]))}"
