"""The tables of the reference pages are those of the code."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from typing import Any

import pytest

import consumerkit
from consumerkit import (
    Brake,
    Events,
    Handler,
    Kafka,
    Kerberos,
    OAuthBearer,
    PayloadRetention,
    Reason,
    Retry,
    Sasl,
    Tables,
    Tls,
    TokenEndpoint,
    Worker,
    events,
)
from consumerkit.dead_letters.formats import consumerkit as dead_letter_format
from consumerkit.engine.transaction import failures
from consumerkit.handlers.message_id import WHOLE_VALUE
from consumerkit.observability import sentences
from tests.docs.markdown import ROOT

REQUIRED = object()
ABSENT = object()
# What the page says in words.
WORDS = {"required": REQUIRED, "-": REQUIRED, "the name": REQUIRED, "the whole value": WHOLE_VALUE}


ITEM = re.compile(r"\* (`[^`]+`(?:, `[^`]+`)*)(?: \((.*?)\))?: (.+)")
"""A row as an item of a list: name, default or level in parentheses, meaning."""


def _rows(page: str, heading: str) -> Iterator[list[str]]:
    """The rows of the tables, or the items of the lists, under a heading."""
    section = re.split(rf"^## {re.escape(heading)}$", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)[1]
    text = re.split(r"^## ", section, flags=re.MULTILINE)[0].replace("\n  ", " ")
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        elif found := ITEM.fullmatch(line):
            yield [cell for cell in found.groups() if cell is not None]


def _described(heading: str) -> dict[str, Any]:
    rows = [row for row in _rows("configuration.md", heading) if len(row) == 3]
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0].strip("`"): _default(row[1]) for row in rows}


def _default(text: str) -> Any:
    return WORDS[text] if text in WORDS else eval(text.strip("`"), dict(vars(consumerkit)))


def _arguments(kind: type) -> dict[str, Any]:
    if not is_dataclass(kind):
        parameters = inspect.signature(kind).parameters.values()
        return {p.name: REQUIRED if p.default is p.empty else p.default for p in parameters}
    found = {}
    for field in fields(kind):
        if field.init:
            made = field.default_factory
            found[field.name] = made() if made is not MISSING else field.default
    return {name: REQUIRED if value is MISSING else value for name, value in found.items()}


@pytest.mark.parametrize(
    "kind",
    [Worker, PayloadRetention, Kafka, Sasl, OAuthBearer, Kerberos, TokenEndpoint, Tls, Tables, Retry, Brake, Events],
    ids=lambda kind: kind.__name__,
)
def test_every_argument_is_described_with_its_default(kind: type) -> None:
    described, there = _described(kind.__name__), _arguments(kind)
    assert list(described) == list(there)
    for name, value in there.items():
        assert repr(described[name]) == repr(value), name


def test_every_declaration_is_described_with_its_default() -> None:
    declared = Handler.__mro__[1]
    there = {name: getattr(declared, name, REQUIRED) for name in declared.__annotations__ if name.islower()}
    described = _described("Handler attributes")
    assert list(described) == list(there)
    for name, value in there.items():
        assert repr(described[name]) == repr(value), name


def test_every_method_of_a_handler_is_described() -> None:
    described = {row[0].strip("`").partition("(")[0] for row in _rows("configuration.md", "Handler methods")}
    assert described == {"handle", "handle_batch", *Handler.OPTIONAL_METHODS}


def test_every_reason_is_described_and_whether_it_holds_a_claim() -> None:
    rows = [row for row in _rows("concepts.md", "Dead letters") if len(row) == 3]
    assert issubclass(Reason, StrEnum)
    assert [row[0].strip("`") for row in rows] == [reason.value for reason in Reason]
    assert {row[0].strip("`") for row in rows if row[2] == "yes"} == {r.value for r in Reason if r.has_ledger_row}


def test_every_header_of_a_dead_letter_is_described() -> None:
    from consumerkit.message import Message
    from consumerkit.storage.dead_letters.letters import DeadMessage

    dead = DeadMessage(
        message=Message("t", 0, 0),
        digest=None,
        message_id=None,
        reason=Reason.REJECTED,
        error_type="",
        error="",
        redrives=1,
    )
    sent = dead_letter_format.written(dead, "t.dlq", "c", failures.now())
    rows = [row for row in _rows("concepts.md", "Dead letters") if len(row) == 2]
    names = [name.strip("` ") for row in rows for name in row[0].split(",")]
    described = {name if name.startswith("consumerkit") else f"consumerkit-dlq{name}" for name in names}
    assert described == {name for name, _ in sent.headers}


def test_every_line_of_the_log_is_described() -> None:
    described = {row[0].strip("`"): row[1] for row in _rows("operations.md", "The log")}
    kinds = {
        kind.__name__ for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)
    }
    assert set(described) == kinds - {"Event"}
    import logging

    for kind, (level, _) in sentences.LINES.items():
        if isinstance(level, int):
            assert described[kind.__name__] == logging.getLevelName(level), kind
