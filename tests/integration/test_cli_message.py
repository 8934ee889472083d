"""`consumerkit message status` on real databases."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert, update
from sqlalchemy.orm import Session

from consumerkit import Outcome, Reason, coordinates, header
from consumerkit.cli.output import moment
from consumerkit.handlers.message_id import possible_digests, topic_scope
from consumerkit.message import Message
from consumerkit.storage import consumers
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.dialects import Claim, dialect_for
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import ParkedMessage
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.command import CommandLine
from tests.integration.test_cli_database import url

__all__ = ["url"]

RECORD = Message("payments", 1, 7, b"alice", b"secret", (), 0, "T1")
AT = datetime(2026, 11, 24, 8, 0, 0, tzinfo=UTC)
STEPS = [
    f"step         charge: done {moment(AT.replace(second=5))}, begun 2 times",
    f"step         mail: started {moment(AT)}, in doubt from {moment(AT.replace(minute=1))}, begun 1 time",
]


@pytest.fixture
def filled(url: str, command: CommandLine) -> str:
    """A database in which a handler has worked."""
    assert command("db", "upgrade", "--database", url).code == 0
    engine = create_engine(url.replace("+asyncpg", "+psycopg"))
    with Session(engine) as session, session.begin():
        _fill(session)
    engine.dispose()
    return url


def _fill(session: Session) -> None:
    credit = consumers.bind(session, DEFAULT_TABLES, name="credit", group="credit", topics=["payments"])
    connection = session.connection()
    ledger = Ledger(DEFAULT_TABLES, dialect_for(connection.dialect.name, DEFAULT_TABLES), credit)
    ids = {name: possible_digests(name)[0] for name in ("p-1", "p-2", "p-3", "p-4")}
    outcomes = dict(zip(ids, (Outcome.PROCESSED, Outcome.PARKED, Outcome.DEAD, Outcome.PROCESSED), strict=True))
    claims = [Claim(digest, name, b"f" * 16, outcomes[name]) for name, digest in ids.items()]
    (at_place,) = coordinates().digests_of("T1/1/7")
    (by_topic,) = header("id").digests_of("p-9", scope=topic_scope("eu"))
    claims += [Claim(one, "?", b"f" * 16, Outcome.PROCESSED) for one in (at_place, by_topic)]
    ledger.claim(connection, [*claims, Claim(possible_digests("a", "b")[0], "a/b", b"f" * 16, Outcome.PROCESSED)])
    ledger.keep_results(connection, {ids["p-1"]: '{"card": "secret \\u001b[2J"}'})
    parked = ParkedMessage(
        message=RECORD,
        digest=ids["p-2"],
        message_id="p-2",
        fingerprint=b"f" * 16,
        attempts=2,
        wait=60.0,
        error_type="shop.Timeout\x1b",
        error="secret",
    )
    ParkingLot(DEFAULT_TABLES, ledger.dialect, credit).park(connection, [parked])
    for offset, name, reason in ((1, "p-3", Reason.EXHAUSTED), (2, "p-1", Reason.CONFLICT)):
        record = Message("payments", 1, offset, b"alice", b"secret", (), 0, "T1")
        letter = DeadMessage(
            message=record, digest=ids[name], message_id=name, reason=reason, error_type="shop.Refused", error="secret"
        )
        dead_letters.add(connection, DEFAULT_TABLES, credit, [letter])
    steps = [
        {"step": "charge", "state": "done", "calls": 2, "ended_at": AT.replace(second=5)},
        {"step": "mail", "state": "started", "calls": 1, "ended_at": None},
    ]
    for step in steps:
        about = {"consumer": credit, "digest": ids["p-3"], "owner": b"o" * 16, "arguments": b"a" * 16}
        times = {"started_at": AT, "deadline_at": AT.replace(minute=1)}
        connection.execute(insert(DEFAULT_TABLES.message_steps).values(**about, **times, **step))


def test_each_state_is_told_in_words_and_without_a_payload(filled: str, command: CommandLine) -> None:
    answers = {name: command("message", "status", "credit", name, "--database", filled) for name in ("p-1", "p-2")}
    answers["p-3"] = command("message", "status", "credit", "p-3", "--database", filled)
    assert {answer.code for answer in answers.values()} == {0}
    processed, parked, dead = (answer.out.splitlines() for answer in answers.values())
    assert processed[0] == "credit, p-1: processed"
    assert processed[1].startswith("processed    20")
    assert processed[2:] == [
        "result       not shown; --result shows it",
        "conflicts    the same ID came with another payload: dead letter 2",
    ]
    assert (parked[0], parked[2], parked[4]) == (
        "credit, p-2: parked",
        "attempts     2",
        r"last error   shop.Timeout\x1b",
    )
    assert parked[3].startswith("next attempt 20")
    assert (dead[0], dead[2:]) == (
        "credit, p-3: dead",
        ["reason       exhausted", "error        shop.Refused", "attempts     0", "dead letter  1, dead", *STEPS],
    )
    assert not any("secret" in answer.out for answer in answers.values())
    shown = command("dead-letters", "show", "1", "--database", filled)
    assert shown.code == 0, shown.err
    assert [line for line in shown.out.splitlines() if line.startswith("step ")] == STEPS
    told = json.loads(command("dead-letters", "show", "1", "--database", filled, "--json").out)
    assert [(one["step"], one["state"], one["calls"]) for one in told["steps"]] == [
        ("charge", "done", 2),
        ("mail", "started", 1),
    ]


def test_the_result_is_shown_when_it_is_asked_for(filled: str, command: CommandLine) -> None:
    where = ("message", "status", "credit", "p-1", "--database", filled, "--result")
    assert 'result       {"card": "secret \\u001b[2J"}\n' in command(*where).out
    assert json.loads(command(*where, "--json").out)["result"] == {"card": "secret \x1b[2J"}
    assert "result       (none)\n" in command("message", "status", "credit", "p-4", "--database", filled).out


def test_as_json_it_has_every_fact_but_the_result(filled: str, command: CommandLine) -> None:
    told = json.loads(command("message", "status", "credit", "p-2", "--json", "--database", filled).out)
    assert (told["state"], told["attempts"], told["held"], told["conflicts"]) == ("parked", 2, False, [])
    assert told["due_at"].endswith("Z")
    assert "result" not in told
    dead = json.loads(command("message", "status", "credit", "p-3", "--json", "--database", filled).out)
    assert (dead["reason"], dead["letter"], dead["letter_state"]) == ("exhausted", 1, "dead")


def test_an_unknown_message_has_an_exit_status_of_its_own(filled: str, command: CommandLine) -> None:
    answer = command("message", "status", "credit", "p-99", "--database", filled)
    assert (answer.code, answer.err) == (4, "")
    lines = answer.out.splitlines()
    assert (lines[0], lines[2]) == ("credit, p-99: unknown", "forgotten    no: this handler's ledger is complete")
    seen = "not known" if "sqlite" in filled else "no"
    assert lines[1] == f"in flight    {seen}"
    unprobed = command("message", "status", "credit", "p-99", "--no-probe", "--database", filled)
    assert (unprobed.code, unprobed.out.splitlines()[1]) == (4, "in flight    not known")
    told = json.loads(command("message", "status", "credit", "p-99", "--json", "--database", filled).out)
    assert (told["state"], told["may_be_forgotten"], told["probed"]) == ("unknown", False, "sqlite" not in filled)


def test_what_waits_behind_another_and_what_holds_its_key_say_so(filled: str, command: CommandLine) -> None:
    engine = create_engine(filled.replace("+asyncpg", "+psycopg"))
    where = ("message", "status", "credit")
    with engine.begin() as connection:
        connection.execute(update(DEFAULT_TABLES.parked_messages).values(due_at=None))
    waits = command(*where, "p-2", "--database", filled)
    with engine.begin() as connection:
        connection.execute(update(DEFAULT_TABLES.parked_messages).values(kind="held", dead_letter=1))
    holds = command(*where, "p-3", "--database", filled)
    engine.dispose()
    assert "next attempt when the message before it is finished\n" in waits.out
    assert "dead letter  1, dead, holds its key\n" in holds.out


def test_a_message_in_flight_is_told(filled: str, command: CommandLine) -> None:
    if "sqlite" in filled:
        return
    engine = create_engine(filled.replace("+asyncpg", "+psycopg"))
    with engine.connect() as connection:
        ledger = Ledger(DEFAULT_TABLES, dialect_for("postgresql", DEFAULT_TABLES), 1)
        ledger.claim(connection, [Claim(possible_digests("p-50")[0], "p-50", b"f" * 16, Outcome.PROCESSED)])
        answer = command("message", "status", "credit", "p-50", "--database", filled)
    engine.dispose()
    assert answer.code == 0
    assert answer.out == "credit, p-50: in flight\nheld by      a transaction that has not committed yet\n"


def test_ids_of_several_parts_places_and_topics_are_found(filled: str, command: CommandLine) -> None:
    for parts in (("a", "b"), ("T1/1/7",), ("p-9", "--topic", "eu")):
        assert command("message", "status", "credit", *parts, "--database", filled).code == 0
    for parts in (("a/b",), ("b", "a"), ("T1/1/8",), ("p-9",), ("p-9", "--topic", "us")):
        assert command("message", "status", "credit", *parts, "--database", filled).code == 4


def test_a_name_that_no_handler_has_is_one_line(filled: str, command: CommandLine) -> None:
    answer = command("message", "status", "cerdit", "p-1", "--database", filled)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == "error: no handler 'cerdit' has started on this database; these have: 'credit'\n"


APP = """
from consumerkit import Context, Handler, header
from consumerkit.transports.memory import Memory, MemoryBroker
from consumerkit.worker import Worker

class Credit(Handler[bytes]):
    name = "credit"
    topics = ("eu", "us")
    scope = "topic"
    message_id = header("message-id")
    async def handle(self, event: bytes, context: Context) -> None: ...

def build():
    return Worker(database={url!r}, kafka=Memory(MemoryBroker()), handlers=[Credit()])
"""


def test_a_targets_handler_says_how_its_ids_are_read(
    filled: str, command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"app_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(APP.format(url=filled))
    monkeypatch.chdir(tmp_path)
    target = ("--target", f"{name}:build")
    assert command("message", "status", "credit", "p-9", "--topic", "eu", *target).code == 0
    assert command("message", "status", "credit", "p-9", "--topic", "us", *target).code == 4
    missing = command("message", "status", "credit", "p-9", *target)
    assert (missing.code, missing.err) == (2, 'error: Credit has scope="topic": name the topic, one of eu, us\n')
    parts = command("message", "status", "credit", "p", "9", "--topic", "eu", *target)
    assert parts.err == "error: Credit: a message ID of header('message-id') has 1 part(s), and 2 are given\n"
