"""Payloads that are sealed in the tables, and in the clear everywhere else."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from consumerkit import Context, DeadLetter, Handler, Reject, Retry, StartError, Tables, Worker, fixed, header, outbox
from consumerkit.errors import ConfigurationError, PayloadSealed
from consumerkit.events import GroupCommitted, MessageDeadLettered
from consumerkit.redrive import Selection, discard
from consumerkit.storage.payload import payload
from consumerkit.storage.tables import DEFAULT_TABLES
from consumerkit.transports.memory import Memory
from tests.integration.command import CommandLine
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import MemoryStage, opened


class Mirror:
    """No cipher: shows that what is stored went through it, and that what it did not seal is refused."""

    def seal(self, payload: bytes) -> bytes:
        return b"1" + payload[::-1]

    def unseal(self, sealed: bytes) -> bytes:
        if not sealed.startswith(b"1"):
            raise ValueError(f"{sealed!r} is not of this key")
        return sealed[:0:-1]


SEALED = Tables(sealer=Mirror())


class Reads(Handler[bytes]):
    """Fails once on what says so, rejects what says so, and passes everything on."""

    name = "reads"
    topic = "t"
    message_id = header("id")
    retry = Retry(attempts=3, wait=fixed(0.3))
    dead_letter = DeadLetter("t.dlq")

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bytes | None]] = []

    async def handle(self, event: bytes, context: Context) -> None:
        if b"reject" in event:
            raise Reject("no")
        if b"once" in event and context.attempt == 1:
            raise ValueError("once")
        self.seen.append((event, context.message.header("who")))
        context.publish("out", key="k", value=b"passed " + event)


@pytest.fixture(params=["psycopg", "sqlite"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryStage]:
    async with opened(fresh_url(request, tmp_path), partitions=1) as made:
        made.broker.create_topic("t.dlq", 1)
        made.broker.create_topic("out", 1)
        yield made


def send(place: MemoryStage, number: int, value: bytes) -> None:
    headers = (("id", b"%d" % number), ("who", b"alice secret"))
    place.broker.append("t", value, key=b"k%d" % number, headers=headers)


def stored(session: Session, table: str) -> list[Any]:
    return list(session.execute(select(getattr(DEFAULT_TABLES, table))))


async def rows(place: MemoryStage, table: str) -> list[Any]:
    return await place.database.run(lambda s: stored(s, table))


def assert_sealed(row: Any) -> None:
    assert row.sealed
    assert b"secret" not in bytes(row.value or b"") + row.headers.encode()
    with pytest.raises(PayloadSealed, match=r"is sealed; give Tables\(sealer=...\)"):
        payload(None, row)


async def test_what_is_parked_dead_or_to_be_sent_is_sealed_and_everybody_reads_it(place: MemoryStage) -> None:
    handler = Reads()
    send(place, 1, b"secret once")
    send(place, 2, b"secret reject")
    send(place, 3, b"secret")
    handler.retry = Retry(attempts=3, wait=fixed(1))
    async with place.run(handler, tables=SEALED) as run:
        await run.until(lambda: any(event.parked for event in run.seen(GroupCommitted)), "one is parked")
        [parked] = await rows(place, "parked_messages")
        assert_sealed(parked)
        assert payload(SEALED.sealer, parked) == (b"secret once", (("id", b"1"), ("who", b"alice secret")))
        await run.until(lambda: len(place.broker.records("out")) == 2, "both were passed on")
        await run.until(lambda: len(place.broker.records("t.dlq")) == 1, "the dead letter was sent")
    assert sorted(handler.seen) == [(b"secret", b"alice secret"), (b"secret once", b"alice secret")]
    assert sorted(record.value or b"" for record in place.broker.records("out")) == [
        b"passed secret",
        b"passed secret once",
    ]
    [dead] = place.broker.records("t.dlq")
    assert (dead.value, dead.header("who")) == (b"secret reject", b"alice secret")
    [letter] = await rows(place, "dead_letters")
    assert_sealed(letter)
    assert bytes(letter.key) == b"k2"


async def test_the_outbox_is_sealed_too_and_older_rows_stay_readable(place: MemoryStage) -> None:
    def work(session: Session) -> None:
        outbox.publish(session, "out", key="k", value=b"secret before")
        outbox.publish(session, "out", key="k", value=b"secret after", tables=SEALED)
        outbox.publish(session, "out", key="k", value=None, tables=SEALED)

    await place.database.run(work)
    before, after, tombstone = await rows(place, "outbox_messages")
    assert (before.sealed, bytes(before.value)) == (False, b"secret before")
    assert_sealed(after)
    assert_sealed(tombstone)
    assert tombstone.value is None
    async with place.run(Reads(), tables=SEALED) as run:
        await run.until(lambda: len(place.broker.records("out")) == 3, "all were sent")
    assert [record.value for record in place.broker.records("out")] == [b"secret before", b"secret after", None]


async def test_a_worker_without_the_sealer_does_not_start(place: MemoryStage) -> None:
    await place.database.run(lambda s: outbox.publish(s, "out", value=b"secret", tables=SEALED))
    with pytest.raises(StartError) as caught:
        await place.make(Reads()).start()
    assert str(caught.value) == (
        "database: there are messages to send that are sealed; give Tables(sealer=...) the sealer that sealed them"
    )


def test_another_sealers_payload_is_refused_without_a_word_of_it() -> None:
    class Row:
        value, headers, sealed = b"other secret", "b3RoZXI=", True

    with pytest.raises(PayloadSealed) as caught:
        payload(Mirror(), Row())
    assert str(caught.value) == "the payload was not sealed by this sealer: ValueError"


def test_what_is_no_sealer_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"give an object with the methods seal\(bytes\), unseal\(bytes\)"):
        Tables(sealer=object())  # type: ignore[arg-type]
    assert "Mirror" not in repr(SEALED)
    assert SEALED == DEFAULT_TABLES


worker: Worker


async def test_a_command_shows_it_by_its_targets_sealer_and_says_so_otherwise(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("CONSUMERKIT_APP", "CONSUMERKIT_DATABASE"):
        monkeypatch.delenv(variable, raising=False)
    command = CommandLine(monkeypatch, capsys)
    send(place, 1, b"secret reject")
    async with place.run(Reads(), tables=SEALED) as run:
        await run.until(lambda: bool(run.seen(MessageDeadLettered)), "a dead letter")
    show = ("dead-letters", "show", "1", "--value")
    blind = await asyncio.to_thread(command, *show, "--database", place.url)
    assert blind.code == 1
    assert blind.err == "error: the payload is sealed; give Tables(sealer=...) the sealer that sealed it\n"
    assert "secret" not in blind.out
    global worker
    worker = Worker(database=place.url, kafka=Memory(place.broker), handlers=[Reads()], tables=SEALED)
    shown = await asyncio.to_thread(command, *show, "tests.integration.test_sealing:worker", "--json")
    told = json.loads(shown.out)
    assert (told["value"], told["headers"][1], told["sealed"]) == ("secret reject", ["who", "alice secret"], False)
    exported = await asyncio.to_thread(command, "dead-letters", "export", "--database", place.url)
    told = json.loads(exported.out.splitlines()[0])
    assert (told["value"], told["headers"], told["sealed"], told["key"]) == (None, None, True, "k1")


class Holds(Reads):
    """Fails for ever on what says so, and keeps what follows waiting."""

    retry = Retry(attempts=2, wait=fixed(0.1))
    dead_letter = DeadLetter("t.dlq", hold_key=True, resend="run")
    healed = False

    async def handle(self, event: bytes, context: Context) -> None:
        if not self.healed and b"forever" in event:
            raise ValueError("for ever")
        await super().handle(event, context)


@pytest.mark.parametrize("after", ["discard", "resend"])
async def test_a_key_is_held_and_let_go_of_with_sealed_payloads(place: MemoryStage, after: str) -> None:
    handler = Holds()
    headers = (("id", b"1"), ("who", b"alice secret"))
    place.broker.append("t", b"secret forever", key=b"k", headers=headers)
    place.broker.append("t", b"secret next", key=b"k", headers=(("id", b"2"), ("who", b"alice secret")))
    async with place.run(handler, tables=SEALED) as run:
        await run.until(lambda: len(place.broker.records("t.dlq")) == 1, "the dead letter was sent")
        handler.healed = True
        if after == "discard":
            await discard(place.database, Selection(), note="seen to", tables=SEALED)
        else:
            place.broker.append("t", b"secret forever", key=b"k", headers=headers)
        await run.until(lambda: any(b"next" in event for event, _ in handler.seen), "what waited")
    told = [] if after == "discard" else [(b"secret forever", b"alice secret")]
    assert handler.seen == [*told, (b"secret next", b"alice secret")]
    assert await rows(place, "parked_messages") == []
