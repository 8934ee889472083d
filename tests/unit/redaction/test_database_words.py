"""A database's errors are kept without rows, keys and bad values, whatever language the server speaks."""

from __future__ import annotations

import html
import json
import logging
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest
from psycopg.pq import DiagnosticField as Field
from sqlalchemy.exc import DBAPIError

from consumerkit import Reject
from consumerkit.cli.database import in_one_line
from consumerkit.engine.transaction import failures
from consumerkit.observability.logs import JsonFormatter, TextFormatter
from consumerkit.redaction.database_words import database_words, remember, without_values
from consumerkit.redaction.text import redact

VALUE = "Mustermann-078"
# State, primary message, detail, and what of the primary one is kept.
REPORTS = {
    "German key": (
        "23505",
        "doppelter Schlüsselwert verletzt Unique-Constraint »kunden_pkey«",
        f"Schlüssel »(name)=({VALUE})« existiert bereits.",
        "doppelter Schlüsselwert verletzt Unique-Constraint »kunden_pkey«",
    ),
    "German row": (
        "23514",
        "neue Zeile verletzt »kunden_pkey«",
        f"Fehlgeschlagene Zeile enthält (1, {VALUE}).",
        "neue Zeile",
    ),
    "Turkish row": ("23502", "null değer", f"Hata veren satır (1, {VALUE}\n\n{VALUE}).", "null değer"),
    "Russian value": (
        "22P02",
        f'неверный синтаксис для типа integer: "{VALUE}"',
        "",
        "неверный синтаксис для типа integer",
    ),
    "Chinese value": ("22007", f"无效的类型 date 输入语法: \u201c{VALUE}\u201d", "", "无效的类型 date 输入语法"),
    "lines": ("22P02", f'invalid input syntax for type json: "a"\n{VALUE}"', f"x {VALUE}", "invalid input syntax"),
    "a query": ("42601", f'syntax error in tsquery: "{VALUE}"', "", "syntax error in tsquery"),
    "another quoted": ("23503", f"so »{VALUE}« nicht, »kunden_pkey«", "", "so ***"),
}


def of_psycopg(state: str, primary: str, detail: str) -> BaseException:
    report = {
        Field.SQLSTATE: state.encode(),
        Field.MESSAGE_PRIMARY: primary.encode(),
        Field.MESSAGE_DETAIL: detail.encode() or None,
        Field.CONTEXT: f"COPY kunden, Zeile 1: »{VALUE}«".encode(),
        Field.CONSTRAINT_NAME: b"kunden_pkey",
    }
    text = f"{primary}\nDETAIL:  {detail}\nCONTEXT:  COPY kunden, Zeile 1: »{VALUE}«"
    info: Any = {field: report.get(field) for field in Field}
    return psycopg.errors.lookup(state)(text, info=info)


def of_asyncpg(state: str, primary: str, detail: str) -> BaseException:
    fields = {"C": state, "M": primary, "W": f"COPY kunden, Zeile 1: »{VALUE}«", "n": "kunden_pkey"}
    error: BaseException = asyncpg.PostgresError.new(fields | ({"D": detail} if detail else {}))
    return error


def adapted(error: BaseException) -> BaseException:
    """As SQLAlchemy raises it, over its own adapter with asyncpg."""
    orig = error
    if not isinstance(error, psycopg.Error):
        orig = Exception(f"{type(error)}: {error}")
        orig.__cause__ = error
    return DBAPIError("SELECT 1", None, orig)


ESCAPED: dict[str, Callable[[object, object], str]] = {
    "JSON": lambda error, detail: json.dumps({"e": str(error), "d": detail}),
    "JSON in HTML": lambda error, detail: html.escape(json.dumps({"e": str(error), "d": detail})),
    "HTML in JSON": lambda error, detail: json.dumps(html.escape(f"{error} {detail}"), ensure_ascii=False),
    "its repr in JSON": lambda error, detail: json.dumps([repr(error), repr(detail)]),
    "a URL": lambda error, detail: quote(f"{error} {detail}"),
}
DRIVERS: dict[str, Callable[[str, str, str], BaseException]] = {
    "psycopg": of_psycopg,
    "asyncpg": of_asyncpg,
    "psycopg under SQLAlchemy": lambda *report: adapted(of_psycopg(*report)),
    "asyncpg under SQLAlchemy": lambda *report: adapted(of_asyncpg(*report)),
}


def raised(error: BaseException, how: str) -> BaseException:
    """An error as a handler may make one of another."""
    detail = getattr(error, "detail", None) or getattr(getattr(error, "diag", None), "message_detail", None)
    try:
        try:
            raise error
        except BaseException as caught:
            match how:
                case "itself":
                    raise
                case "from":
                    raise RuntimeError("no") from caught
                case "from None":
                    raise RuntimeError(f"no: {caught}") from None
                case "its repr":
                    raise RuntimeError(f"no: {caught!r}") from None
                case "its orig":
                    raise RuntimeError(f"no: {getattr(caught, 'orig', caught)}") from getattr(caught, "orig", caught)
                case "its detail":
                    raise RuntimeError(f"no: {detail}")  # noqa: B904 - as a handler may
                case _ if how in ESCAPED:
                    raise RuntimeError(ESCAPED[how](caught, detail)) from None
                case "refused":
                    raise Reject(f"no: {caught}") from None
                case _:
                    raise ExceptionGroup("g", [RuntimeError(f"no: {caught}")])  # noqa: B904 - as a handler may
    except BaseException as again:
        return again


@pytest.mark.parametrize(
    "how", ["itself", "from", "from None", "its repr", "its orig", "its detail", "refused", "a group", *ESCAPED]
)
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", REPORTS)
def test_no_value_of_a_databases_error_is_kept_in_any_language(name: str, driver: str, how: str) -> None:
    state, primary, detail, kept = REPORTS[name]
    error = raised(DRIVERS[driver](state, primary, detail), how)
    texts = [failures.recorded_text(error), failures.described(error), in_one_line(error) if how == "itself" else ""]
    record = logging.LogRecord("other", logging.ERROR, "", 1, "no", (), (type(error), error, error.__traceback__))
    texts += [TextFormatter().format(record), JsonFormatter().format(record)]
    for text in texts:
        assert VALUE not in text
    if how in ("itself", "from"):
        assert kept in texts[0]
        assert "\n" not in texts[0]


def test_a_text_that_was_cut_is_cut_to_its_end() -> None:
    error = of_psycopg("23514", "no", f"Satır ({VALUE * 500}).")
    cut = str(error)[: 300 * len(VALUE)]
    assert VALUE not in without_values(cut, error)


def test_what_is_no_database_error_has_its_own_words() -> None:
    assert database_words(ValueError('"x"')) is None
    assert without_values('"x"', ValueError('"x"')) == '"x"'
    assert sys.exc_info() == (None, None, None)


@pytest.mark.parametrize("how", ["itself", "from", "from None", "its repr", "a group"])
@pytest.mark.parametrize(
    "error",
    [
        asyncpg.DataError(f"invalid input for query argument $1: {VALUE!r} ('str' object is no integer)"),
        asyncpg.DataError(f"invalid input for query argument $2: [{VALUE}, 7] (an integer is required)"),
        psycopg.DataError(f"can't parse date {VALUE!r}: year is out of range"),
    ],
)
def test_no_value_that_a_driver_could_not_send_or_read_is_kept(error: BaseException, how: str) -> None:
    for one in (error, adapted(error)):
        told = raised(one, how)
        assert VALUE not in failures.recorded_text(told) + failures.described(told)


class Odd(psycopg.Error):
    @property
    def diag(self) -> Any:
        raise RuntimeError

    def __str__(self) -> str:
        raise RuntimeError


def test_an_odd_drivers_error_raises_nothing() -> None:
    assert database_words(Odd()) == ""
    assert without_values("x", Odd()) == "x"


@pytest.mark.parametrize("how", ESCAPED)
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", REPORTS)
def test_what_was_remembered_is_cut_from_a_text_without_its_error(name: str, driver: str, how: str) -> None:
    state, primary, detail, _ = REPORTS[name]
    error = DRIVERS[driver](state, primary, detail)
    remember(error)
    told = without_values(ESCAPED[how](error, detail), RuntimeError("another"))
    # Every other part of the report is cut by its form.
    assert VALUE not in redact(told)
