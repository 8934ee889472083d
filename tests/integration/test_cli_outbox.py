"""`consumerkit outbox` lists without payloads, and discards one message with an audit record."""

import json
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from consumerkit.storage import outbox
from consumerkit.storage.outbox import OutboxMessage
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.command import CommandLine
from tests.services.tables import make_tables


@pytest.fixture
def url(tmp_path: Path) -> str:
    made = f"sqlite:///{tmp_path}/outbox.sqlite"
    sent = [
        OutboxMessage("a", b"key", b"secret", (("message-id", b"m-1"),)),
        OutboxMessage("b", None, b"secret" * 100, ()),
        OutboxMessage("a", b"key", None, (("message-id", b"m-3"),)),
    ]
    engine = create_engine(made)
    with Session(engine) as session, session.begin():
        make_tables(session)
    with Session(engine) as session, session.begin():
        outbox.append(session.connection(), DEFAULT_TABLES, sent)
    engine.dispose()
    return made


def test_what_waits_is_listed_without_payloads(url: str, command: CommandLine) -> None:
    answer = command("outbox", "list", "--database", url)
    assert answer.code == 0
    assert [line.split()[0] for line in answer.out.splitlines()] == ["id", "1", "2", "3"]
    assert "secret" not in answer.out
    listed = command("outbox", "list", "--database", url, "--topic", "a", "--json").out.splitlines()
    assert [(one["sequence"], one["topic"]) for one in map(json.loads, listed)] == [(1, "a"), (3, "a")]
    assert command("outbox", "list", "--database", url, "--limit", "2").out.endswith("there may be more: --after 2\n")
    assert command("outbox", "list", "--database", url, "--topic", "c").out == "no message waits for topic 'c'\n"


def test_a_message_is_given_up_on_the_record(url: str, command: CommandLine) -> None:
    assert command("outbox", "discard", "2", "--database", url, "--yes").out == "discarded message 2 for b\n"
    engine = create_engine(url)
    with Session(engine) as session:
        assert [one.sequence for one in outbox.page(session.connection(), DEFAULT_TABLES, 10, 1 << 20)] == [1, 3]
        (action,) = session.execute(select(DEFAULT_TABLES.operator_actions))
    engine.dispose()
    assert action.action == "outbox discard"
    assert action.actor
    assert json.loads(action.details) == {"sequence": 2, "topic": "b", "message_id": None, "value_bytes": 600}
    again = command("outbox", "discard", "2", "--database", url, "--yes")
    assert (again.code, again.out) == (1, "")
    assert again.err.startswith("error: there is no message 2 in the outbox")
