"""Reads SQL as far as needed to find a statement that ends the transaction.

A driver may send several statements in one text, so each of them is checked. Quotes, dollar quotes and comments hide
their content. The effect of a procedure or a DO block is not visible, but PostgreSQL lets none of them end a
transaction that was begun outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

# A text without any of these words ends no transaction.
_WORDS: Final = ("commit", "end", "abort", "begin", "start", "prepare", "rollback")
_TOKEN: Final = re.compile(
    r"""
      (?P<line>--[^\r\n]*+)
    | (?P<comment>/\*)
    | (?P<escaped>\b[eE]'(?:[^'\\]|\\.|'')*+(?:'|\Z))
    | (?P<string>'[^']*+(?:'|\Z))
    | (?P<identifier>"[^"]*+(?:"|\Z))
    | (?P<dollar>\$(?:[^\W\d]\w*+)?\$)
    | (?P<word>[^\W\d][\w$]*+)
    | (?P<mark>[;()\[`])
    """,
    re.VERBOSE | re.DOTALL,
)
_EDGE: Final = re.compile(r"/\*|\*/")
_ENDS: Final = frozenset({"commit", "end", "abort", "begin"})
_MAY_END: Final = frozenset({"start", "prepare", "rollback"})
_REMEMBERED: Final = 10_000
"""The most characters of a text whose result is cached."""
_LONGEST: Final = 3  # ROLLBACK TRANSACTION TO
_WITH_BODY: Final = frozenset({"function", "procedure", "trigger"})


def ending(sql: str, *, nested: bool = True) -> str | None:
    """Return the word with which a statement in a text ends the transaction or begins another, or None.

    Args:
        sql: The text.
        nested: Whether comments nest, as PostgreSQL's do and SQLite's do not.

    Example:
        >>> ending("UPDATE t SET a = 'x; COMMIT'; ROLLBACK")
        'ROLLBACK'
    """
    return _read(sql, nested) if len(sql) > _REMEMBERED else _known(sql, nested)


def _read(sql: str, nested: bool) -> str | None:
    if not _mentions(sql):
        return None
    for words in _statements(sql, nested=nested):
        if words[0] in _ENDS or (words[0] in _MAY_END and _ends(words)):
            return words[0].upper()
    return None


def _mentions(sql: str) -> bool:
    """Return whether one of the words is in a text, by itself.

    An INSERT of many rows has some 30,000 characters. `str.find` reads them some ten times faster than one regular
    expression with all the words.
    """
    text = sql.lower()
    return any(_has(text, word) for word in _WORDS)


def _has(text: str, word: str) -> bool:
    at = text.find(word)
    while at >= 0:
        after = at + len(word)
        if not (_in_word(text[at - 1 : at]) or _in_word(text[after : after + 1])):
            return True
        at = text.find(word, after)
    return False


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


# The same few statements recur in each transaction. Ours are long, and contain the END of a CASE.
_known: Final = lru_cache(maxsize=256)(_read)


def _ends(words: list[str]) -> bool:
    first, rest = words[0], words[1:]
    if first != "rollback":
        return rest[:1] == ["transaction"]
    if rest[:1] in (["work"], ["transaction"]):
        rest = rest[1:]
    return rest[:1] != ["to"]


def _statements(sql: str, *, nested: bool) -> Iterator[list[str]]:
    """Yield the first words of each statement, in lower case."""
    statement = _Statement()
    for mark in _tokens(sql, nested=nested):
        if mark == ";" and statement.complete:
            if statement.words:
                yield statement.words
            statement = _Statement()
        else:
            statement.add(mark)
    if statement.words:
        yield statement.words


class _Statement:
    """One statement, as far as it has been read."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._parentheses = 0
        self._bodies = 0
        self._has_body = False

    @property
    def complete(self) -> bool:
        """Whether a semicolon ends it; a semicolon in parentheses or in a routine's body does not."""
        return self._parentheses <= 0 and not self._bodies

    def add(self, mark: str) -> None:
        """Add a word or a mark."""
        if mark in "(;)":
            self._parentheses += {"(": 1, ")": -1}.get(mark, 0)
        elif self.words[:1] == ["create"]:
            self._create(mark)
        elif len(self.words) < _LONGEST:
            self.words.append(mark)

    def _create(self, word: str) -> None:
        if word in _WITH_BODY:
            self._has_body = True
        elif self._has_body and (word == "begin" or (word == "case" and self._bodies)):
            self._bodies += 1
        elif word == "end" and self._bodies:
            self._bodies -= 1


def _tokens(sql: str, *, nested: bool) -> Iterator[str]:
    """Yield words in lower case and the relevant marks; skip quotes and comments."""
    at = 0
    while (found := _TOKEN.search(sql, at)) is not None:
        at = found.end()
        kind = found.lastgroup
        if kind == "word":
            yield found[0].lower()
        elif kind == "comment":
            at = _after_comment(sql, at, nested=nested)
        elif kind == "dollar":
            at = _after(sql, found[0], at)
        elif kind == "mark":
            if found[0] in ";()":
                yield found[0]
            elif not nested:  # SQLite takes these for quotes as well
                at = _after(sql, "]" if found[0] == "[" else "`", at)


def _after(sql: str, mark: str, at: int) -> int:
    found = sql.find(mark, at)
    return len(sql) if found < 0 else found + len(mark)


def _after_comment(sql: str, at: int, *, nested: bool) -> int:
    depth = 1
    while depth:
        found = _EDGE.search(sql, at)
        if found is None:
            return len(sql)
        at = found.end()
        if found[0] == "*/":
            depth -= 1
        elif nested:
            depth += 1
    return at
