"""A database's error may quote rows besides its message: they are cut wherever an error's text is kept or logged."""

from __future__ import annotations

from collections.abc import Callable

import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest
from sqlalchemy.exc import IntegrityError

from consumerkit.engine.transaction import failures
from consumerkit.errors import Reject

SSN = "078-05-1120"
WORDS = f'duplicate key value violates unique constraint "people_ssn"\nDETAIL:  Key (ssn)=({SSN}) already exists.'


class Ours(Exception):
    pass


def psycopgs() -> Exception:
    return psycopg.errors.UniqueViolation(WORDS)


def asyncpgs() -> Exception:
    first, _, detail = WORDS.partition("\nDETAIL:  ")
    error: Exception = asyncpg.exceptions.UniqueViolationError(first)
    vars(error)["detail"] = detail
    return error


def wrapped() -> IntegrityError:
    return IntegrityError(f"INSERT INTO people VALUES ('{SSN}')", {"ssn": SSN}, psycopgs())


def caused() -> Exception:
    error = Ours("no")
    error.__cause__ = wrapped().orig
    return error


def during() -> Exception:
    error = Ours("no")
    error.__context__ = psycopgs()
    return error


def noted() -> Exception:
    error = Ours("no")
    error.add_note(WORDS)
    return error


MADE: list[Callable[[], Exception]] = [
    psycopgs,
    asyncpgs,
    wrapped,
    caused,
    during,
    noted,
    lambda: Ours(f"cannot: {wrapped()}"),
    lambda: Ours(f"cannot: {psycopgs()!r}"),
    lambda: Ours(wrapped()),
    lambda: Reject(f"cannot: {psycopgs()}"),
    lambda: Reject(f"cannot: {asyncpgs()}"),
    lambda: ExceptionGroup("several", [psycopgs(), Ours(str(wrapped()))]),
    lambda: ExceptionGroup(WORDS, [asyncpgs()]),
]


@pytest.mark.parametrize("make", MADE)
def test_neither_the_letter_nor_the_log_has_the_row(make: Callable[[], Exception]) -> None:
    try:
        raise make()
    except Exception as error:
        texts = [failures.recorded_text(error), failures.described(error), failures.stack_of(error)]
    assert SSN not in "\n".join(texts)
    assert all(texts)


def test_what_the_database_says_first_is_kept() -> None:
    assert "people_ssn" in failures.recorded_text(wrapped())
    assert "people_ssn" in failures.recorded_text(caused())
