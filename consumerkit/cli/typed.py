"""Removes typed text from errors unless it looks like a name: any argument may be a URL with its password.

The command line's parser, and the code that reads an argument later, quote what they cannot use. So
every error passes through this module, which cuts typed text from it; the message names the
argument by its number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from consumerkit.observability.printable import printable
from consumerkit.redaction.plain_words import is_plain
from consumerkit.redaction.text import HIDDEN

_VARIABLES: Final = "CONSUMERKIT_"
_SHORTEST: Final = 3
_typed: tuple[str, ...] = ()
_traceback = False
TRACEBACK: Final = "--traceback"


def take_traceback(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without `--traceback`, which may stand anywhere, and record whether it was there.

    Example:
        >>> take_traceback(["run", "shop.worker:worker"])
        ['run', 'shop.worker:worker']
    """
    if TRACEBACK in arguments:
        want_traceback()
    return [argument for argument in arguments if argument != TRACEBACK]


def want_traceback() -> None:
    """Print the traceback of an error in the target's own code, from now on."""
    global _traceback
    _traceback = True


def wants_traceback() -> bool:
    """Tell whether the traceback of an error in the target's own code is printed."""
    return _traceback


def remember(arguments: Sequence[str]) -> None:
    """Record the arguments of this call for `without_typed`."""
    global _typed
    _typed = tuple(arguments)


def without_typed(text: str) -> str:
    """Return an error's text without the arguments and variables' values that do not look like names.

    Example:
        >>> remember(["db", "check", "postgresql://app:hunter2@db/shop"])
        >>> without_typed("No such command 'postgresql://app:hunter2@db/shop'.")
        'No such command ***. (*** is argument 3: it does not look like a name, so it is not shown)'
    """
    found: dict[str, str] = {}
    for place, part in sorted(_parts(), key=lambda one: -len(one[1])):
        for form in (part, repr(part)[1:-1], printable(part)):
            if form in text:
                text = text.replace(f"'{form}'", HIDDEN).replace(f'"{form}"', HIDDEN).replace(form, HIDDEN)
                found[place] = place
    if not found:
        return text
    return f"{text} ({HIDDEN} is {' and '.join(found)}: it does not look like a name, so it is not shown)"


@contextmanager
def cut_from_errors() -> Iterator[None]:
    """Cut typed text from the messages of the parser's errors, whatever release of the parser raises them."""
    try:
        yield
    except Exception as error:
        told: Any = error
        if hasattr(told, "format_message") and isinstance(told.message, str):
            told.message = without_typed(told.message)
        raise


def _parts() -> Iterator[tuple[str, str]]:
    """Yield each word that does not look like a name, with its place, and each side of `--option=value`."""
    for number, word in enumerate(_typed, 1):
        sides = (word, *word.split("=", 1)) if word.startswith("-") else (word,)
        for side in sides:
            if _is_kept_back(side):
                yield f"argument {number}", side
    for name, value in os.environ.items():
        if name.startswith(_VARIABLES) and _is_kept_back(value):
            yield f"the variable {name}", value


def _is_kept_back(word: str) -> bool:
    return len(word) >= _SHORTEST and not is_plain(word)
