"""Erasure of one key's stored payloads, beside a running worker and by command; and of old payloads."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from consumerkit import ConfigurationError, Context, Handler, Retry, fixed, header
from consumerkit.events import PayloadsErased
from consumerkit.maintenance import pruner
from consumerkit.message import Message, TopicPartition
from consumerkit.operations.erasure import Erased, erase
from consumerkit.outcome import Outcome
from consumerkit.storage import consumers, fence, outbox
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import Claim, dialect_for
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.maintenance import erasure as statements
from consumerkit.storage.maintenance import expiry
from consumerkit.storage.outbox import OutboxMessage
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import ParkedMessage
from consumerkit.storage.tables import DEFAULT_TABLES as TABLES
from tests.integration.command import CommandLine
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import MemoryStage, Write, opened
from tests.services import PostgresServer
from tests.services.tables import make_tables

pytestmark = pytest.mark.every_variant

NOW = datetime.now(UTC).replace(microsecond=0)
FACTS = {"reason": "exhausted", "error_type": "E", "error": "alice is broke", "stack": "s", "attempts": 2}


def digest(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=16).digest()


@pytest.fixture(params=["psycopg", "asyncpg", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return fresh_url(request, tmp_path)


@pytest.fixture
async def open_database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    await database.run(make_tables)
    yield database
    await database.dispose()


def letter(consumer: int, offset: int, key: bytes, **more: Any) -> dict[str, Any]:
    place = {"topic": "t", "topic_id": "T", "partition": 0, "offset": offset, "timestamp": 0, "size": 5}
    made = {"consumer": consumer, "key": key, "value": b"secret", "headers": '[["h", "secret"]]', "message_id": "m"}
    return {**FACTS, **place, **made, "digest": digest(f"{key!r}{offset}"), "state": "dead", **more}


def fill(session: Session) -> None:
    """Two keys, with two dead letters, one parked message and an unsent one each; two handlers."""
    connection = session.connection()
    for name in ("credit", "mail"):
        number = consumers.bind(session, TABLES, name=name, group=name, topics=["t"], ordering="key")
        dialect = dialect_for(connection.dialect.name, TABLES)
        ledger, lot = Ledger(TABLES, dialect, number), ParkingLot(TABLES, dialect, number)
        for at, key in enumerate((b"alice", b"bob")):
            rows = [letter(number, 10 * at, key), letter(number, 10 * at + 1, key, state="resolved", state_at=NOW)]
            session.execute(insert(TABLES.dead_letters), rows)
            claims = [Claim(row["digest"], "m-1", b"f" * 16, Outcome.DEAD) for row in rows]
            parked = digest(f"parked{key!r}")
            ledger.claim(connection, [*claims, Claim(parked, "m-2", b"f" * 16, Outcome.PARKED)])
            ledger.keep_results(connection, {rows[1]["digest"]: '"secret"'})
            message = Message("t", 0, 100 + at, key, b"secret", (("h", b"secret"),), 0, "T")
            lot.park(
                connection,
                [ParkedMessage(message=message, digest=parked, message_id="m-2", fingerprint=b"f" * 16, wait=3600)],
            )
    outbox.append(connection, TABLES, [OutboxMessage("r", key, b"secret", ()) for key in (b"alice", b"bob")])


def all_rows(session: Session, table: str, *names: str) -> list[tuple[Any, ...]]:
    found = getattr(TABLES, table)
    return [
        tuple(row) for row in session.execute(select(*(found.c[name] for name in names)).order_by(found.c[names[0]]))
    ]


async def test_everything_of_a_key_goes_and_the_facts_stay(open_database: Database, url: str) -> None:
    await open_database.run(fill)
    wanted = [Erased(handler=name, dead_letters=2, parked=1) for name in ("credit", "mail")] + [
        Erased(handler="", outbox=1)
    ]
    assert await erase(url, "alice", by="ann", dry_run=True) == wanted
    assert await erase(url, b"alice", by="ann") == wanted
    c = TABLES.dead_letters.c

    def letters(session: Session) -> list[Any]:
        return list(session.execute(select(TABLES.dead_letters).where(c.consumer == 1).order_by(c.offset)))

    rows = await open_database.run(letters)
    gone = [row for row in rows if row.offset in (0, 1, 100)]
    assert [row.state for row in gone] == ["discarded", "resolved", "discarded"]
    for row in gone:
        assert (row.key, row.value, row.headers, row.message_id, row.error) == (None, None, "[]", None, "")
        assert row.erased_at is not None
    assert [(row.reason, row.attempts, row.topic) for row in gone[:2]] == [("exhausted", 2, "t")] * 2
    others = [row for row in rows if row not in gone]
    assert [(bytes(row.key), bytes(row.value), row.erased_at) for row in others] == [(b"bob", b"secret", None)] * 2

    found = await open_database.run(lambda s: all_rows(s, "processed_messages", "digest", "outcome", "message_id"))
    ours = {bytes(row[0]): row[1:] for row in found}
    assert ours[digest("parkedb'alice'")] == (Outcome.DEAD, "(erased)")
    assert ours[digest("parkedb'bob'")] == (Outcome.PARKED, "m-2")
    assert ours[digest("b'alice'0")] == (Outcome.DEAD, "(erased)")
    assert ours[digest("b'bob'10")] == (Outcome.DEAD, "m-1")
    results = await open_database.run(lambda s: all_rows(s, "message_results", "digest"))
    assert {bytes(row[0]) for row in results} == {digest("b'bob'11")}
    assert [bytes(r[0]) for r in await open_database.run(lambda s: all_rows(s, "parked_messages", "key"))] == [
        b"bob"
    ] * 2
    assert [bytes(r[0]) for r in await open_database.run(lambda s: all_rows(s, "outbox_messages", "key"))] == [b"bob"]

    recorded = await open_database.run(lambda s: all_rows(s, "operator_actions", "id", "actor", "action", "details"))
    assert [row[1:3] for row in recorded] == [("ann", "erase")] * 5
    assert all(json.loads(row[3])["key_digest"] == digest("alice").hex() for row in recorded)
    assert "alice" not in str(recorded)
    nothing = [Erased(handler="credit"), Erased(handler="mail"), Erased(handler="")]
    assert await erase(url, "alice") == nothing


async def test_one_handlers_alone(open_database: Database, url: str) -> None:
    await open_database.run(fill)
    assert await erase(url, "alice", handlers=["mail"]) == [Erased(handler="mail", dead_letters=2, parked=1)]
    with pytest.raises(ConfigurationError, match=r"no handler 'mial' has started on this database; these have: '"):
        await erase(url, "alice", handlers=["mial"])
    assert len(await open_database.run(lambda s: all_rows(s, "outbox_messages", "key"))) == 2


async def test_payloads_of_decided_letters_go_when_they_are_old(
    open_database: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "LETTERS", 1)
    old = NOW - timedelta(days=40)
    place = MemoryStage(url)
    await place.create_tables()

    def work(session: Session) -> None:
        number = consumers.bind(session, TABLES, name="write", group="write", topics=["t"])
        states = ["dead", "redriven", "resolved", "discarded", "resolved"]
        for offset, state in enumerate(states):
            at = NOW if offset == 4 else old
            session.execute(
                insert(TABLES.dead_letters).values(letter(number, offset, b"k", state=state, state_at=at, dead_at=old))
            )

    await open_database.run(work)
    monkeypatch.setattr(pruner, "INTERVAL", 0.1)
    async with place.run(Write(), payload_retention=timedelta(days=30)) as run:
        await run.until(lambda: bool(run.seen(PayloadsErased)), "payloads were erased")
        await asyncio.sleep(0.3)
    assert [event.count for event in run.seen(PayloadsErased)] == [2]
    found = await open_database.run(lambda s: all_rows(s, "dead_letters", "offset", "value", "state"))
    assert [row[0] for row in found if row[1] is None] == [2, 3]
    assert [row[2] for row in found] == ["dead", "redriven", "resolved", "discarded", "resolved"]
    await place.close()


# Beside a running worker.


class Fails(Handler[bytes]):
    """Fails for ever on one key, whose messages therefore are parked."""

    name = "fails"
    topic = "t"
    message_id = header("id")
    retry = Retry(attempts=100, wait=fixed(3600))

    def __init__(self) -> None:
        self.mended = False
        self.seen: list[str] = []

    async def handle(self, event: bytes, context: Context) -> None:
        if context.message.key == b"alice" and not self.mended:
            raise ValueError("no")
        self.seen.append(context.message_id)


@pytest.fixture
async def place(postgres: PostgresServer, database: str) -> AsyncIterator[MemoryStage]:
    async with opened(postgres.url(database), partitions=1) as made:
        yield made


async def test_a_running_worker_goes_on_after_its_parked_messages_were_erased(place: MemoryStage) -> None:
    handler = Fails()
    place.append(1, key=b"alice")
    place.append(2, key=b"alice")
    place.append(3, key=b"bob")
    async with place.run(handler) as run:
        await run.until(lambda: "3" in handler.seen, "the other key flows")
        async with asyncio.timeout(120):
            while len(await place.database.run(lambda s: all_rows(s, "parked_messages", "id"))) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        handler.mended = True
        [of_handler, _] = await erase(place.url, "alice")
        assert (of_handler.parked, of_handler.busy) == (2, ())
        place.append(4, key=b"alice")
        await run.until(lambda: "4" in handler.seen, "the rest was handled")
        deaths = await place.database.run(lambda s: all_rows(s, "partition_progress", "partition", "deaths"))
    assert handler.seen == ["3", "4"]
    assert deaths == [(0, 0)]
    assert await place.database.run(lambda s: all_rows(s, "parked_messages", "id")) == []


async def test_a_busy_partition_is_named_and_left_alone(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch, command: CommandLine
) -> None:
    monkeypatch.setattr(statements, "FENCE_WAIT", 0.2)
    await place.database.run(fill)
    dialect = dialect_for("postgresql", TABLES)
    number = fence.number(TABLES.within("public"), 1, TopicPartition("t", 0))
    async with place.database.transaction() as run:
        await run(lambda s: dialect.take_over(s.connection(), number, wait=1))
        told = await asyncio.to_thread(command, "data", "erase", "--key", "alice", "--database", place.url)
    assert told.code == 1
    assert told.err == "error: the owner's transactions did not end in time: credit: t[0]; run this again\n"
    assert len(await place.database.run(lambda s: all_rows(s, "parked_messages", "id"))) == 3
    again = await asyncio.to_thread(command, "data", "erase", "--key", "alice", "--database", place.url, "--json")
    assert [json.loads(line)["parked"] for line in again.out.splitlines()] == [1, 0, 0]


async def test_the_command_counts_and_erases(open_database: Database, url: str, command: CommandLine) -> None:
    await open_database.run(fill)
    tried = await asyncio.to_thread(command, "data", "erase", "--key", "alice", "--database", url, "--dry-run")
    assert (tried.code, tried.err) == (0, "")
    assert [line.split() for line in tried.out.splitlines()[1:]] == [
        ["credit", "2", "1", "0"],
        ["mail", "2", "1", "0"],
        ["(outbox)", "0", "0", "1"],
    ]
    assert len(await open_database.run(lambda s: all_rows(s, "parked_messages", "id"))) == 4
    done = await asyncio.to_thread(command, "data", "erase", "--key", "alice", "--database", url)
    assert done.out.splitlines()[1].split() == ["credit", "2", "1", "0"]
    assert len(await open_database.run(lambda s: all_rows(s, "parked_messages", "id"))) == 2
