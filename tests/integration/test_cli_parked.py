"""`consumerkit parked` lists without payloads, and retries now with an audit record."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session

from consumerkit.message import Message
from consumerkit.storage import consumers
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.parking import listing as parked_listing
from consumerkit.storage.parking.listing import ParkedSelection
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import Kind, ParkedMessage
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.command import CommandLine
from tests.integration.fresh_url import fresh_url
from tests.services.tables import make_tables

FAILED = datetime(2026, 11, 1, 12, tzinfo=UTC)


def _parked(offset: int, key: bytes | None, wait: float | None, **more: Any) -> ParkedMessage:
    message = Message("orders", 0, offset, key, b"secret", (("h", b"secret"),), 0, "T1")
    made = ParkedMessage(message=message, digest=bytes([offset] * 16), message_id=f"m-{offset}", fingerprint=b"f" * 16)
    return replace(made, wait=wait, **more)


ROWS = [
    _parked(1, b"a", 3_600, attempts=2, error_type="Timeout", error="no answer\n\x1b[31m", stack="f.py:1 in f"),
    _parked(2, b"a", None),
    _parked(3, b"b", 7_200, attempts=1, error_type="Timeout", error="no answer"),
    _parked(4, b"c", 0, attempts=1, error_type="ValueError"),
    _parked(5, b"d", None, kind=Kind.HELD, dead_letter=9),
]


@pytest.fixture(params=["postgresql", "sqlite"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    url = fresh_url(request, tmp_path)
    engine = create_engine(url)
    with Session(engine) as session, session.begin():
        make_tables(session)
    with Session(engine) as session, session.begin():
        number = consumers.bind(
            session, DEFAULT_TABLES, name="credit", group="credit", topics=["orders"], ordering="key"
        )
        consumers.bind(session, DEFAULT_TABLES, name="mail", group="mail", topics=["orders"])
        lot = ParkingLot(DEFAULT_TABLES, dialect_for(engine.dialect.name, DEFAULT_TABLES), number)
        assert list(lot.park(session.connection(), ROWS).values()) == [1, 2, 3, 4, 5]
    yield engine
    engine.dispose()


@pytest.fixture
def url(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def test_what_is_parked_is_listed_with_its_next_attempt(url: str, command: CommandLine) -> None:
    answer = command("parked", "list", "--database", url)
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0].split()[:3] == ["id", "parked", "since"]
    assert "m-1" in lines[1]
    assert re.search(r"in \d+ min", lines[1])
    assert r"Timeout: no answer\n\x1b[31m" in lines[1]
    assert "behind another" in lines[2]
    assert re.search(r"in (\d+ min|2 h)", lines[3])
    assert "due" in lines[4]
    assert "held: decide on the dead letter before it" in lines[5]
    assert "secret" not in answer.out


def test_the_list_is_filtered_and_paged(url: str, command: CommandLine) -> None:
    some = command("parked", "list", "--database", url, "--error-type", "Timeout", "--json").out.splitlines()
    assert [json.loads(line)["message_id"] for line in some] == ["m-1", "m-3"]
    page = command("parked", "list", "--database", url, "--limit", "2").out
    assert page.endswith("there may be more: --after 2\n")
    rest = command("parked", "list", "--database", url, "--after", "2", "--json").out.splitlines()
    assert [json.loads(line)["id"] for line in rest] == [3, 4, 5]
    assert command("parked", "list", "--database", url, "--handler", "mail").out == "no parked messages\n"
    mistyped = command("parked", "list", "--database", url, "--handler", "crdit")
    assert mistyped.code == 2
    assert "no handler 'crdit'" in mistyped.err


def test_groups_tell_the_errors_apart(url: str, command: CommandLine) -> None:
    found = [json.loads(line) for line in command("parked", "groups", "--database", url, "--json").out.splitlines()]
    assert [(one["error_type"], one["messages"], one["due"], one["first"]) for one in found] == [
        ("Timeout", 2, 0, 1),
        ("", 1, 0, 2),
        ("ValueError", 1, 1, 4),
    ]
    assert "(none yet)" in command("parked", "groups", "--database", url).out


def test_one_message_is_shown_with_what_it_waits_for(url: str, command: CommandLine) -> None:
    first = command("parked", "show", "1", "--database", url).out
    assert "orders[0]@1 (topic ID T1)" in first
    assert re.search(r"next attempt in \d+ min", first)
    assert "f.py:1 in f" in first
    assert "secret" not in first
    assert "next attempt behind 1" in command("parked", "show", "2", "--database", url).out
    assert "consumerkit dead-letters show 9" in command("parked", "show", "5", "--database", url).out
    assert "value        secret" in command("parked", "show", "1", "--value", "--database", url).out
    told = json.loads(command("parked", "show", "2", "--json", "--value", "--database", url).out)
    assert (told["behind"], told["value"]) == (1, "secret")
    gone = command("parked", "show", "77", "--database", url)
    assert (gone.code, gone.out) == (1, "")
    assert "no parked message has the ID 77" in gone.err


def test_messages_are_made_due_on_the_record(url: str, engine: Engine, command: CommandLine) -> None:
    done = command("parked", "retry-now", "1", "2-5", "--by", "ann", "--database", url)
    assert done.out == "2 messages are due now; running workers retry within seconds\n"
    rest = command("parked", "retry-now", "--all", "--database", url)
    assert rest.out == "nothing to do: no such message waits for a later time\n"
    with Session(engine) as session:
        rows = parked_listing.listed(session, DEFAULT_TABLES, ParkedSelection())
        due = {row.id for row in rows if row.due_in is not None and row.due_in >= 0}
        (action,) = session.execute(select(DEFAULT_TABLES.operator_actions))
    assert due == set()
    assert {row.id: row.attempts for row in rows} == {1: 2, 2: 0, 3: 1, 4: 1, 5: 0}
    assert [row.id for row in rows if row.due_at is None] == [2, 5]
    assert (action.actor, action.action) == ("ann", "parked retry-now")
    assert json.loads(action.details) == {"messages": 2, "first": [1, 3]}


@pytest.mark.parametrize(
    "words, said",
    [((), "no message is chosen"), (("--all", "--handler", "credit"), "--all does not go with")],
)
def test_what_is_not_chosen_is_not_touched(url: str, command: CommandLine, words: tuple[str, ...], said: str) -> None:
    answer = command("parked", "retry-now", *words, "--database", url)
    assert answer.code == 2
    assert said in answer.err
