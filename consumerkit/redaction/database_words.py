"""A database's error text without values, found by the fields of its report, in any language.

PostgreSQL reports an error in fields: the primary message, DETAIL, CONTEXT, and the names of the
objects. Rows and keys appear in all fields but the first, and in the first only between quotation
marks. A driver's error has the fields, so no words need to be known. If another error repeats the
text of one in its chain, the fields show what to cut.
"""

from __future__ import annotations

import html
import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import quote, quote_plus

from sqlalchemy.exc import DBAPIError

from consumerkit.error_tree import all_in, is_a
from consumerkit.redaction.text import HIDDEN

_DRIVERS: Final = frozenset(("psycopg", "psycopg2", "asyncpg"))
_QUOTES: Final = '"»«„“”‚‘「『《」』》'
_QUOTED: Final = re.compile(rf"[{_QUOTES}].*[{_QUOTES}]|[{_QUOTES}].*\Z", re.DOTALL)
_EACH_QUOTED: Final = re.compile(rf"([{_QUOTES}]\s?)([^{_QUOTES}]*)(\s?(?:[{_QUOTES}]|\Z))")
# A driver's quotation of an argument or of a column's value, as Python writes it.
_SENT: Final = re.compile(r"(?<=: )(?!argument ).*\Z|(?<=[\s(])[\"'].*\Z", re.DOTALL)
# Bad data and syntax errors quote what they cannot read: a statement's text, a query of words, a
# path.
_BAD_DATA: Final = ("22", "42601")
_VIOLATED: Final = "23"
_NAMES: Final = ("constraint_name", "table_name", "column_name", "schema_name", "datatype_name", "data_type_name")
_ADDED: Final = ("message_detail", "detail", "context", "internal_query")
_SHORTEST: Final = 3
_SHORTEST_VALUE: Final = 5
"""Characters of a value that is cut out wherever it appears; shorter values are words of many texts."""
_REMEMBERED: Final = 64
_KEY: Final = re.compile(r"\)\s?=\s?\((.*?)\)(?=[\s.«»”\"」']|$)", re.DOTALL)
_ROW: Final = re.compile(r"[(（](.*)[)）]", re.DOTALL)
_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{3,}")
_ESCAPES: Final[tuple[Callable[[str], str], ...]] = (
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: repr(text)[1:-1],
    lambda text: ascii(text)[1:-1],
    html.escape,
    lambda text: html.escape(text, quote=False),
    lambda text: quote(text, errors="replace"),
    lambda text: quote_plus(text, errors="replace"),
)
_COMPARED: Final = 200
"""Characters by which a text is found that may have been cut."""


def database_words(error: BaseException) -> str | None:
    """Return the first line of a driver's error without values, or None for any other error.

    Example:
        >>> import asyncpg
        >>> database_words(asyncpg.PostgresError.new({"C": "22P02", "M": 'invalid input for type integer: "078"'}))
        'invalid input for type integer: ***'
    """
    driver = _driver(error)
    if driver is None:
        return None
    primary = _primary(driver)
    if primary is None:
        primary = _text(driver)
    return next(iter(_without_values(driver, primary).splitlines()), "")


def without_values(text: str, error: BaseException) -> str:
    """Return a text without the values that databases added to the messages of the errors in a chain.

    Args:
        text: A text that may repeat their words: an error's own, or a traceback.
        error: The error; the errors that caused it, or that were being handled when it was raised,
            count too.
    """
    chain = list(all_in(error, suppressed=True))
    said = [part for one in chain for part in _said(one)] + [value for one in chain for value in _values_said(one)]
    for earlier in tuple(_recent):
        said += earlier
    for part in dict.fromkeys(said):
        text = _replaced(text, part)
    return text


def remember(error: BaseException) -> None:
    """Keep a database's latest error, for texts that repeat it after the error is gone."""
    if said := tuple(_said(error)):
        _recent.append(said)


class _Said(NamedTuple):
    """A part of a report, and the part of it that may be kept."""

    part: str
    safe: str


_recent: Final[deque[tuple[_Said, ...]]] = deque(maxlen=_REMEMBERED)


def _said(error: BaseException) -> Iterator[_Said]:
    """Yield the parts of a driver's error, by its fields."""
    driver = _driver(error)
    if driver is None:
        return
    primary = _primary(driver) or _of_its_own(driver)
    if primary and (safe := _without_values(driver, primary)) != primary:
        yield _Said(primary, safe)
    for part in _added(driver):
        yield _Said(part, HIDDEN)


def _values_said(error: BaseException) -> Iterator[_Said]:
    """Yield the values in those fields: a handler may have taken them out."""
    driver = _driver(error)
    for part in () if driver is None else _added(driver):
        for value in _values(part):
            yield _Said(value, HIDDEN)


def _values(detail: str) -> Iterator[str]:
    """Yield the values in a key or a row, as PostgreSQL writes them in any language."""
    keys = [found[1] for found in _KEY.finditer(detail)]
    row = None if keys else _ROW.search(detail)
    for values in [*keys, *([row[1]] if row else [])]:
        if len(values) >= _SHORTEST_VALUE:
            yield values
        for value in values.split(", "):
            if len(value) >= _SHORTEST_VALUE:
                yield value


def _replaced(text: str, said: _Said) -> str:
    """Replace a part of a report in a text, however it is escaped there."""
    words = _WORD.findall(said.part[:_COMPARED])
    # A word without any escaped character stays unchanged, and most texts do not contain it.
    if words and max(words, key=len) not in text:
        return text
    for form in _escaped_forms(said.part):
        if said.safe == HIDDEN:
            text = _cut_out(text, form)
        elif form in text:
            text = text.replace(form, said.safe)
    return text


def _escaped_forms(part: str) -> Iterator[str]:
    """Yield a text as it is, as JSON, HTML, a URL and Python's `repr` write it, and as two of them nested."""
    first = dict.fromkeys(escape(part) for escape in _ESCAPES)
    second = dict.fromkeys(escape(form) for form in first for escape in _ESCAPES)
    yield from dict.fromkeys([part, *first, *second])


def _cut_out(text: str, part: str) -> str:
    """Replace a part wherever it appears; if the text has only its beginning, replace up to the text's end."""
    begin = part[:_COMPARED]
    at = text.find(begin)
    while at >= 0:
        end = at + len(part) if text.startswith(part, at) else len(text)
        text = text[:at] + HIDDEN + text[end:]
        at = text.find(begin, at + len(HIDDEN))
    return text


def _driver(error: BaseException) -> BaseException | None:
    """Return a driver's own error: this one, or the one that SQLAlchemy wraps."""
    found: Any = _asked(error, "orig") if is_a(error, DBAPIError) else error
    for one in (found, _asked(found, "__cause__")):
        if isinstance(one, BaseException) and any(
            kind.__module__.partition(".")[0] in _DRIVERS for kind in type(one).__mro__
        ):
            return one
    return None


def _primary(driver: BaseException) -> str | None:
    diag = _asked(driver, "diag")
    found = _asked(diag, "message_primary") if diag is not None else _asked(driver, "message")
    return found if isinstance(found, str) and found else None


def _of_its_own(driver: BaseException) -> str | None:
    """Return a driver's own text about data that it cannot send or read, and quotes."""
    is_data = any(kind.__name__ == "DataError" for kind in type(driver).__mro__)
    return _text(driver) if is_data else None


def _added(driver: BaseException) -> Iterator[str]:
    diag = _asked(driver, "diag")
    for source in (driver, diag):
        for name in _ADDED:
            found = _asked(source, name)
            if isinstance(found, str) and len(found) >= _SHORTEST:
                yield found


def _without_values(driver: BaseException, primary: str) -> str:
    state = next((found for name in ("sqlstate", "pgcode") if isinstance(found := _asked(driver, name), str)), "")
    if not state and _of_its_own(driver) is not None:
        return _SENT.sub(HIDDEN, primary)
    if state.startswith(_BAD_DATA):
        return _QUOTED.sub(HIDDEN, primary)
    if not state.startswith(_VIOLATED):
        return primary
    sources = (driver, _asked(driver, "diag"))
    names = {found for source in sources for name in _NAMES if (found := _asked(source, name))}
    if not names:  # code in the database raised it, in words of its own choice
        return primary
    return _EACH_QUOTED.sub(lambda part: part[0] if part[2].strip() in names else HIDDEN, primary)


def _asked(source: Any, name: str) -> Any:
    try:
        return getattr(source, name, None)
    except BaseException:  # noqa: BLE001 - an error may be of any class, and raise whatever it is asked
        return None


def _text(error: BaseException) -> str:
    try:
        return str.__str__(str(error))
    except BaseException:  # noqa: BLE001 - as above
        return ""
