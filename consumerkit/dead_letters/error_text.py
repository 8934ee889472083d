"""Errors in words: every part has a size limit, and nothing is raised, whatever the error's own code does."""

from __future__ import annotations

import traceback
from collections import deque
from typing import Any, Final

from sqlalchemy.exc import DBAPIError, StatementError

from consumerkit.error_tree import first_leaf, is_a, raised_from, traceback_of
from consumerkit.errors import ConsumerkitError, Defer, Reject, Unavailable, Undecodable
from consumerkit.observability import shown_errors
from consumerkit.observability.user_code import place, place_of_frame, users_frame
from consumerkit.redaction.database_words import database_words, without_values
from consumerkit.redaction.text import redact
from consumerkit.storage.faults import Fault, fault_of, sqlstate, was_raised_by_code

STACK_BYTES: Final = 8 * 1024
TEXT_CHARACTERS: Final = 2000
KIND_CHARACTERS: Final = 300
CAUSES: Final = 10
_READ_CHARACTERS: Final = 20 * TEXT_CHARACTERS
_FRAMES: Final = 100
_NAME_CHARACTERS: Final = 300
# These explain themselves by their text: the place where they were raised adds nothing.
_ON_PURPOSE: Final = (Defer, Reject, Unavailable, Undecodable)


def error_type(error: BaseException) -> str:
    """Return an error's class, with its module unless it is a builtin; of an exception group, its first leaf's."""
    return _kind(first_leaf(error))


def error_text(error: BaseException) -> str:
    """Return an error's own words, for the dead letter; a database error comes without statement and parameters."""
    return _words(first_leaf(error))


def recorded_text(error: BaseException) -> str:
    """Return the class and words of an error and of each of its causes: redacted, and cut."""
    first, *causes = _chain(error)
    text = _words(first)
    for cause in causes:
        words = _words(cause)
        text += f"; caused by {_kind(cause)}" + (f": {words}" if words else "")
    return cut(redact(without_values(text, error)), TEXT_CHARACTERS)


def described(error: BaseException) -> str:
    """Return an error for logs: its kind and its place in the user's code, without words of a payload.

    The words are in the dead letter, which is under the database's access control.
    """
    error = first_leaf(error)
    if is_a(error, ConsumerkitError):
        words = without_values(f"{_name(error)}: {_words(error)}", error)
        return cut(redact(words), KIND_CHARACTERS) + ("" if issubclass(type(error), _ON_PURPOSE) else _theirs(error))
    if is_a(error, DBAPIError):
        if not _may_quote(error):
            return cut(redact(f"{_name(error)}: {_words(error)}"), KIND_CHARACTERS) + _theirs(error)
        return f"{_name(error)} with SQLSTATE {sqlstate(error) or 'unknown'}{_theirs(error)}"
    at = place(error)
    return f"{_kind(error)} at {at}" if at else _kind(error)


def of_database(error: BaseException) -> str:
    """Return why a request of consumerkit's own to the database failed, in words.

    Example:
        >>> of_database(TimeoutError())
        'TimeoutError: it did not answer in time'
    """
    return f"{_name(error)}: it did not answer in time" if is_a(error, TimeoutError) else described(error)


def in_full(error: BaseException) -> str:
    """Return an error's text and traceback for the developer of a handler; empty unless `--show-errors` is on."""
    if not shown_errors.are_shown():
        return ""
    return shown_errors.in_full(error, f"{error_type(error)}: {recorded_text(error)}")


def stack_of(error: BaseException) -> str:
    """Return where an error and its causes were raised, as file, line and function; no values; cut at the front."""
    parts: list[str] = []
    for one in _chain(error):
        frames = "".join(traceback.format_list(_places(one, _FRAMES)))
        parts.append(f"{_kind(one)}\n{frames}")
    # Only the end is kept, and redacting takes time, so the distant front is dropped first.
    text = redact("caused by\n".join(parts)[-4 * STACK_BYTES :]).encode("utf-8", "backslashreplace")
    return text[-STACK_BYTES:].decode("utf-8", "ignore") if len(text) > STACK_BYTES else text.decode()


def cut(text: str, length: int) -> str:
    """Return a text cut to at most this many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _theirs(error: BaseException) -> str:
    """Return where an error left the user's code; empty if it did not come from there."""
    frame = users_frame(error)
    return "" if frame is None else f" at {place_of_frame(frame)}"


def _kind(error: BaseException) -> str:
    kind = type(error)
    module, name = _plain(kind.__module__), cut(_plain(kind.__qualname__), KIND_CHARACTERS)
    return name if module == "builtins" else f"{cut(module, KIND_CHARACTERS)}.{name}"


def _name(error: BaseException) -> str:
    return cut(_plain(type(error).__name__), KIND_CHARACTERS)


def _plain(text: Any) -> str:
    """Return a text as a plain `str`, without calling a subclass's overrides; empty for any other type."""
    return str.__str__(text) if issubclass(type(text), str) else "?"


def _words(error: BaseException) -> str:
    try:
        return _asked(error)[:_READ_CHARACTERS]
    except BaseException as trouble:  # noqa: BLE001 - an error's own __str__ may raise anything, SystemExit too
        return f"(its text raised {_name(trouble)})"


def _asked(error: BaseException) -> str:
    if is_a(error, DBAPIError):
        state = sqlstate(error)
        return f"{state}: {_database_text(error)}" if state else _database_text(error)
    if (words := database_words(error)) is not None:
        return words
    return _plain(str(error.args[0] if is_a(error, StatementError) else error))


def _places(error: BaseException, most: int) -> list[traceback.FrameSummary]:
    """Return where an error was raised, innermost last; without columns, since Python compiles each line for them."""
    return [
        traceback.FrameSummary(frame.f_code.co_filename, line, cut(frame.f_code.co_name, _NAME_CHARACTERS))
        for frame, line in deque(traceback.walk_tb(traceback_of(error)), maxlen=most)
    ]


def _chain(error: BaseException) -> list[BaseException]:
    """Return the first few of an error and its causes, in Python's order; for each exception group its first leaf.

    Excludes the error that SQLAlchemy wraps: SQLAlchemy's error repeats it, without the values that
    the driver quotes.
    """
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and len(chain) < CAUSES:
        seen = first_leaf(seen)
        chain.append(seen)
        if is_a(seen, StatementError):
            break
        seen = raised_from(seen)
    return chain


def _may_quote(error: DBAPIError) -> bool:
    """Return whether the first line of the database's message may hold a value, as in `invalid input syntax ...: "x"`.

    It may for bad data, and for errors from triggers, which have any SQLSTATE. A violated
    constraint shows only its name.
    """
    if was_raised_by_code(error):
        return True
    violated = (sqlstate(error) or "").startswith("23")
    return fault_of(error, in_handler=True) is Fault.HANDLER and not violated


def _database_text(error: DBAPIError) -> str:
    """Return the first line of the database's message: the later lines (DETAIL) quote values."""
    if (words := database_words(error)) is not None:
        return words
    lines = _plain(str(error.orig)).splitlines() or [""]
    # asyncpg's errors have the form "<class '...'>: text".
    return lines[0].rpartition("'>: ")[2]
