"""Expiry: old parked messages become dead letters, and old undecided letters lose their payload."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Select, create_engine, delete, func, insert, select, update
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from consumerkit import (
    ConfigurationError,
    Context,
    DeadLetter,
    Handler,
    Ordering,
    PayloadRetention,
    Retry,
    fixed,
    header,
    redrive,
)
from consumerkit.events import (
    Announcer,
    Event,
    MessageDeadLettered,
    OutboxGivenUp,
    OutboxOld,
    PartitionInDoubt,
    PayloadsErased,
    UndecidedPayloadsErased,
    WorkerStarted,
)
from consumerkit.maintenance import pruner
from consumerkit.maintenance.expirer import Expired, Expiry, Unsent
from consumerkit.message import Message, TopicPartition
from consumerkit.outcome import Outcome, Reason
from consumerkit.relay import Relay
from consumerkit.storage import consumers, fence, outbox
from consumerkit.storage.database import Database
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.dialects import Claim, dialect_for
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.maintenance import expiry as statements
from consumerkit.storage.maintenance.expiry import ExpireStatements, Terms
from consumerkit.storage.outbox import OutboxMessage
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import Kind, ParkedMessage
from consumerkit.storage.tables import DEFAULT_TABLES as TABLES
from consumerkit.transports.base import Producer, Record, SendFailure
from consumerkit.transports.memory import Memory
from tests.integration.command import CommandLine
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import MemoryStage, Write, opened
from tests.services import PostgresServer
from tests.services.tables import make_tables

pytestmark = pytest.mark.every_variant

NOW = datetime.now(UTC).replace(microsecond=0)
OLD = NOW - timedelta(days=40)
MONTH = timedelta(days=30)


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin now: a long run would make what is new at its beginning old for its last tests."""
    monkeypatch.setattr(sys.modules[__name__], "NOW", datetime.now(UTC).replace(microsecond=0))


def digest(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=16).digest()


def copied(dead: DeadMessage) -> OutboxMessage:
    return OutboxMessage("t.dlq", dead.message.key, dead.message.value, (("reason", dead.reason.encode()),))


class Shelf:
    """A database with one handler's parked messages and dead letters."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = Database(url)
        self.dialect = dialect_for(self.database.dialect_name, TABLES)
        self.events: list[Event] = []
        self.consumer = 0

    async def create(self) -> None:
        await self.database.run(make_tables)
        bind = consumers.bind
        self.consumer = await self.database.run(
            lambda s: bind(s, TABLES, name="credit", group="credit", topics=["t"], ordering="key")
        )

    async def park(
        self,
        *numbers: int,
        at: datetime = OLD,
        partition: int = 0,
        outcome: Outcome = Outcome.PARKED,
        **more: Any,
    ) -> None:
        """Park messages with their claims, as if that had been a while ago."""

        def work(session: Session) -> None:
            connection = session.connection()
            rows = [parked(n, partition, **more) for n in numbers]
            claims = [Claim(row.digest, row.message_id, b"f" * 16, outcome) for row in rows if row.digest]
            Ledger(TABLES, self.dialect, self.consumer).claim(connection, claims)
            found = ParkingLot(TABLES, self.dialect, self.consumer).park(connection, rows).values()
            table = TABLES.parked_messages
            connection.execute(update(table).where(table.c.id.in_(list(found))).values(parked_at=at))

        await self.database.run(work)

    def expiry(self, given: PayloadRetention, **terms: Any) -> Expiry:
        kept = Terms("credit", **{"copy": copied, **terms})
        guard = partial(self.dialect.relay_guard, self.database.location)
        announce = Announcer([self.events.append])
        return Expiry(self.database.run, ExpireStatements(TABLES, self.dialect), given, [kept], guard, announce)

    async def all(self, query: Select[Any]) -> list[Any]:
        return await self.database.run(lambda s: list(s.execute(query)))

    async def letters(self) -> list[Any]:
        return await self.all(select(TABLES.dead_letters).order_by(TABLES.dead_letters.c.offset))

    async def lot(self) -> list[Any]:
        return await self.all(select(TABLES.parked_messages).order_by(TABLES.parked_messages.c.offset))

    async def ledger(self) -> dict[str, Outcome]:
        c = TABLES.processed_messages.c
        return {row.message_id: Outcome(row.outcome) for row in await self.all(select(c.message_id, c.outcome))}

    async def outbox(self) -> int:
        [row] = await self.all(select(func.count()).select_from(TABLES.outbox_messages))
        return int(row[0])


def parked(number: int, partition: int = 0, **more: Any) -> ParkedMessage:
    message = Message("t", partition, number, b"k%d" % (number % 2), b"secret", (("h", b"secret"),), 0, "T")
    name = f"m-{number}"
    made = {"digest": digest(name), "message_id": name, "fingerprint": b"f" * 16, "wait": 3600.0, "attempts": 3}
    return ParkedMessage(message=message, **{**made, "error_type": "E", "error": "broke", **more})


@pytest.fixture(params=["psycopg", "asyncpg", "sqlite"])
async def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shelf]:
    url = fresh_url(request, tmp_path)
    made = Shelf(url)
    await made.create()
    yield made
    await made.database.dispose()


@pytest.fixture
async def server_shelf(postgres: PostgresServer, database: str) -> AsyncIterator[Shelf]:
    made = Shelf(postgres.url(database))
    await made.create()
    yield made
    await made.database.dispose()


async def test_what_was_parked_for_too_long_becomes_a_dead_letter_with_its_payload(shelf: Shelf) -> None:
    await shelf.park(1, 2)
    await shelf.park(3, at=NOW)
    expiry = shelf.expiry(PayloadRetention(parked=MONTH))
    assert await expiry.counted() == [Expired(handler="credit", parked=2)]
    assert await shelf.letters() == []
    assert await expiry.turn() == [Expired(handler="credit", parked=2)]
    letters = await shelf.letters()
    assert [(row.offset, row.reason, row.state, bytes(row.value)) for row in letters] == [
        (1, "expired", "dead", b"secret"),
        (2, "expired", "dead", b"secret"),
    ]
    first = letters[0]
    assert (first.attempts, first.error_type, bytes(first.digest)) == (3, "Expired", digest("m-1"))
    assert letters[0].error == (
        "it was parked for longer than the 2592000 s that payload_retention allows; it had failed with E: broke"
    )
    # Its owner has the keys blocked in memory: the rows stay until it has taken them out, without what they held.
    lot = [(row.offset, row.kind, row.value, row.headers, row.digest is None) for row in await shelf.lot()]
    assert lot[:2] == [(1, "released", None, "[]", True), (2, "released", None, "[]", True)]
    assert [row[:2] for row in lot[2:]] == [(3, "message")]
    assert await shelf.ledger() == {"m-1": Outcome.DEAD, "m-2": Outcome.DEAD, "m-3": Outcome.PARKED}
    assert await shelf.outbox() == 2
    told = [event for event in shelf.events if isinstance(event, MessageDeadLettered)]
    assert [(event.handler, event.offset, event.message_id, event.reason) for event in told] == [
        ("credit", 1, "m-1", Reason.EXPIRED),
        ("credit", 2, "m-2", Reason.EXPIRED),
    ]
    assert await expiry.turn() == [Expired(handler="credit")]


async def test_by_default_what_is_parked_or_undecided_stays_for_ever(shelf: Shelf) -> None:
    await shelf.park(1)
    await shelf.database.run(lambda s: letter(s, shelf.consumer, 7))
    assert await shelf.expiry(PayloadRetention()).turn() == [Expired(handler="credit")]
    assert len(await shelf.lot()) == 1


async def test_a_key_is_held_for_what_expired_where_that_is_declared(shelf: Shelf) -> None:
    await shelf.park(1, 3)
    await shelf.expiry(PayloadRetention(parked=MONTH), holds_key=True).turn()
    held = {row.offset: (row.kind, row.due_at, row.value, row.dead_letter) for row in await shelf.lot()}
    numbers = {row.offset: row.id for row in await shelf.letters()}
    assert held == {n: ("held", None, None, numbers[n]) for n in (1, 3)}


async def test_what_holds_a_key_for_a_letter_is_not_ended(shelf: Shelf) -> None:
    await shelf.park(1, kind=Kind.HELD, digest=None, wait=None)
    assert await shelf.expiry(PayloadRetention(parked=MONTH)).turn() == [Expired(handler="credit")]
    assert [row.kind for row in await shelf.lot()] == ["held"]


async def test_what_was_redriven_is_dead_again_in_its_own_letter(shelf: Shelf) -> None:
    number = await shelf.database.run(lambda s: letter(s, shelf.consumer, 1, state="redriven", redrives=2))
    await shelf.park(1, dead_letter=number)
    await shelf.expiry(PayloadRetention(parked=MONTH)).turn()
    [row] = await shelf.letters()
    assert (row.id, row.state, row.reason, row.redrives) == (number, "dead", "expired", 2)


@pytest.mark.parametrize("outcome", [Outcome.PROCESSED, Outcome.PARKED])
async def test_a_further_copy_leaves_the_first_ones_outcome_alone(shelf: Shelf, outcome: Outcome) -> None:
    await shelf.park(1, kind=Kind.REPEAT, outcome=outcome)
    await shelf.expiry(PayloadRetention(parked=MONTH)).turn()
    assert [row.reason for row in await shelf.letters()] == ["failed_duplicate"]
    assert await shelf.ledger() == {"m-1": outcome}


def letter(session: Session, consumer: int, offset: int, **more: Any) -> int:
    place = {"topic": "t", "topic_id": "T", "partition": 0, "offset": offset, "timestamp": 0, "size": 5}
    facts = {"reason": "exhausted", "error_type": "E", "error": "broke", "stack": "s", "attempts": 2}
    made = {"consumer": consumer, "key": b"k", "value": b"secret", "headers": "[]", "message_id": "m", "dead_at": OLD}
    values = {**place, **facts, **made, "digest": digest(f"m-{offset}"), "state": "dead", **more}
    made_by = insert(TABLES.dead_letters).values(values).returning(TABLES.dead_letters.c.id)
    return int(session.execute(made_by).scalar_one())


async def test_undecided_letters_lose_their_payload_only_where_asked_and_stay_dead(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "LETTERS", 1)
    states = {1: ("dead", None), 2: ("dead", NOW), 3: ("redriven", OLD), 4: ("resolved", OLD), 5: ("dead", OLD)}
    for offset, (state, at) in states.items():
        await shelf.database.run(partial(letter, consumer=shelf.consumer, offset=offset, state=state, state_at=at))
    expiry = shelf.expiry(PayloadRetention(dead=MONTH))
    assert await expiry.counted() == [Expired(handler="credit", decided=1, dead=2)]
    assert await expiry.turn() == [Expired(handler="credit", decided=1, dead=2)]
    letters = await shelf.letters()
    assert [row.offset for row in letters if row.value is None] == [1, 4, 5]
    assert [row.state for row in letters] == ["dead", "dead", "redriven", "resolved", "dead"]
    assert '"what": "erased", "by": "retention"' in letters[0].history
    assert [event for event in shelf.events if isinstance(event, UndecidedPayloadsErased | PayloadsErased)] == [
        PayloadsErased(handler="credit", count=1),
        UndecidedPayloadsErased(handler="credit", count=2),
    ]
    # An undecided letter is still there, and says why it cannot be redriven.
    report = await redrive.redrive(shelf.url, redrive.Selection(ids=[letters[0].id]))
    assert report.redriven == 0
    assert "erased" in str(report)


@pytest.mark.parametrize("kind, state", [(PayloadsErased, "resolved"), (UndecidedPayloadsErased, "dead")])
async def test_payloads_that_were_erased_are_told_although_a_later_batch_fails(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, kind: type[Event], state: str
) -> None:
    monkeypatch.setattr(statements, "LETTERS", 2)
    for offset in range(3):
        row = partial(letter, consumer=shelf.consumer, offset=offset, state=state, state_at=OLD)
        await shelf.database.run(row)
    erase, batches = ExpireStatements.letters, list[int]()

    def breaks(self: ExpireStatements, session: Session, *given: Any, decided: bool, **more: Any) -> int:
        if decided == (state == "resolved"):
            batches.append(1)
            if len(batches) == 2:
                raise ConnectionError("as asked")
        return erase(self, session, *given, decided=decided, **more)

    monkeypatch.setattr(ExpireStatements, "letters", breaks)
    expiry = shelf.expiry(PayloadRetention(dead=MONTH, decided=MONTH))
    with pytest.raises(ConnectionError):
        await expiry.turn()
    assert shelf.events == [kind(handler="credit", count=2)]  # type: ignore[call-arg]
    await expiry.turn()
    assert shelf.events[1:] == [kind(handler="credit", count=1)]  # type: ignore[call-arg]


async def test_what_no_owner_takes_out_goes_after_a_day_and_what_waited_is_next(shelf: Shelf) -> None:
    await shelf.park(1, 3, 5)
    rows = TABLES.parked_messages
    await shelf.database.run(
        lambda s: s.execute(update(rows).where(rows.c.offset == 5).values(parked_at=NOW, due_at=None))
    )
    expiry = shelf.expiry(PayloadRetention(parked=MONTH))
    await expiry.turn()
    await expiry.turn()
    assert [row.kind for row in await shelf.lot()] == ["released", "released", "message"]
    await shelf.database.run(
        lambda s: s.execute(update(rows).where(rows.c.kind == "released").values(due_at=NOW - timedelta(days=2)))
    )
    await expiry.turn()
    [left] = await shelf.lot()
    assert (left.offset, left.due_at is None) == (5, False)


# Among others.


async def test_a_busy_partition_does_not_end_the_turn_for_the_others(
    server_shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "FENCE_WAIT", 0.2)
    shelf = server_shelf
    for partition in range(3):
        await shelf.park(10 * partition, partition=partition)
    number = fence.number(TABLES, shelf.consumer, TopicPartition("t", 0))
    expiry = shelf.expiry(PayloadRetention(parked=MONTH))
    async with shelf.database.transaction() as run:
        await run(lambda s: shelf.dialect.take_over(s.connection(), number, wait=1))
        assert await expiry.turn() == [Expired(handler="credit", parked=2, skipped=("t[0]",))]
    assert await expiry.turn() == [Expired(handler="credit", parked=1)]


async def test_what_a_partition_s_first_batches_ended_counts_where_a_later_one_finds_it_busy(
    server_shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "FENCE_WAIT", 0.2)
    monkeypatch.setattr(statements, "PARKED", 2)
    shelf = server_shelf
    await shelf.park(1, 2, 3)
    number = fence.number(TABLES, shelf.consumer, TopicPartition("t", 0))
    other = create_engine(shelf.url, poolclass=NullPool).connect()

    class Owner(list[Event]):
        """Takes the partition's fence as soon as the first batch is committed."""

        def append(self, event: Event) -> None:
            if not self:
                assert shelf.dialect.take_over(other, number, wait=1)
            super().append(event)

    shelf.events = Owner()
    expiry = shelf.expiry(PayloadRetention(parked=MONTH))
    with closing(other):
        assert await expiry.turn() == [Expired(handler="credit", parked=2, skipped=("t[0]",))]
    assert await expiry.turn() == [Expired(handler="credit", parked=1)]
    assert len(shelf.events) == 3


def lock(session: Session, query: Select[Any]) -> None:
    session.execute(query.with_for_update()).all()


async def test_rows_that_somebody_has_in_hand_starve_nobody(
    server_shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "PARKED", 2)
    shelf = server_shelf
    number = await shelf.database.run(lambda s: letter(s, shelf.consumer, 3, state="redriven"))
    await shelf.park(1)
    await shelf.park(3, dead_letter=number)
    await shelf.park(2, 4, 5, 6)
    ledger, lot, letters = TABLES.processed_messages.c, TABLES.parked_messages.c, TABLES.dead_letters.c
    held = [
        select(ledger.digest).where(ledger.message_id == "m-1"),
        select(lot.id).where(lot.offset == 2),
        select(letters.id).where(letters.id == number),
    ]
    expiry = shelf.expiry(PayloadRetention(parked=MONTH))
    async with shelf.database.transaction() as run:
        for query in held:
            await run(partial(lock, query=query))
        assert await asyncio.wait_for(expiry.turn(), 120) == [Expired(handler="credit", parked=3)]
    assert [row.offset for row in await shelf.lot() if row.kind == "message"] == [1, 2, 3]
    assert await expiry.turn() == [Expired(handler="credit", parked=3)]


async def test_several_at_once_end_each_message_once(server_shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "PARKED", 7)
    shelf = server_shelf
    for partition in range(2):
        await shelf.park(*range(100 * partition, 100 * partition + 60), partition=partition)
    turns = await asyncio.gather(*(shelf.expiry(PayloadRetention(parked=MONTH)).turn() for _ in range(3)))
    assert sum(one.parked for [one] in turns) == 120
    assert (len(await shelf.letters()), await shelf.outbox()) == (120, 120)
    assert set((await shelf.ledger()).values()) == {Outcome.DEAD}


# The outbox.


async def publish(shelf: Shelf, *topics: str, at: datetime = OLD) -> None:
    def work(session: Session) -> None:
        known = set(session.scalars(select(TABLES.outbox_messages.c.sequence)))
        messages = [OutboxMessage(topic, b"k", b"secret", (("message-id", topic.encode()),)) for topic in topics]
        outbox.append(session.connection(), TABLES, messages)
        c = TABLES.outbox_messages.c
        session.execute(update(TABLES.outbox_messages).where(c.sequence.not_in(known)).values(created_at=at))

    await shelf.database.run(work)


async def test_what_nobody_sends_is_given_up_on_the_record_which_claims_no_more_than_is_known(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "UNSENT", 2)
    await publish(shelf, "a", "b", "a")
    await publish(shelf, "late", at=NOW)
    assert await shelf.expiry(PayloadRetention()).unsent() == Unsent(0)
    expiry = shelf.expiry(PayloadRetention(outbox=MONTH))
    assert await expiry.count_unsent() == Unsent(3)
    assert await expiry.unsent() == Unsent(3)
    assert await shelf.outbox() == 1
    given_up = [event for event in shelf.events if isinstance(event, OutboxGivenUp)]
    assert [(event.topic, event.count, event.oldest) for event in given_up] == [
        ("a", 1, OLD),
        ("b", 1, OLD),
        ("a", 1, OLD),
    ]
    actions = await shelf.all(select(TABLES.operator_actions).order_by(TABLES.operator_actions.c.id))
    assert [(one.actor, one.action) for one in actions] == [("retention", "outbox expire")] * 2
    told = [json.loads(one.details) for one in actions]
    assert all(one["may_have_been_published"] for one in told)
    assert [one["message_id"] for each in told for one in each["messages"]] == ["a", "b", "a"]
    assert "secret" not in str(told)
    assert await expiry.unsent() == Unsent(0)


async def test_what_is_sealed_is_given_up_and_discarded_without_its_name(shelf: Shelf) -> None:
    """Its ID is among the headers, which cannot be read without the sealer, nor need be to be rid of it."""
    await publish(shelf, "a", "b")
    sealed = update(TABLES.outbox_messages).values(headers="c2VhbGVk", sealed=True)
    await shelf.database.run(lambda s: s.execute(sealed))
    assert await shelf.database.run(lambda s: outbox.discard(s, TABLES, 2, actor="ann")) == "b"
    assert await shelf.expiry(PayloadRetention(outbox=MONTH)).unsent() == Unsent(1)
    actions = await shelf.all(select(TABLES.operator_actions.c.details).order_by(TABLES.operator_actions.c.id))
    discarded, expired = (json.loads(one.details) for one in actions)
    assert discarded["message_id"] is expired["messages"][0]["message_id"] is None


async def test_an_old_outbox_is_told_of_once_for_as_long_as_it_is_old(shelf: Shelf) -> None:
    expiry = shelf.expiry(PayloadRetention())

    async def told() -> list[Event]:
        await expiry.watch_outbox()
        return [event for event in shelf.events if isinstance(event, OutboxOld)]

    await publish(shelf, "new", at=NOW)
    assert await told() == []
    c = TABLES.outbox_messages
    await shelf.database.run(lambda s: s.execute(update(c).values(created_at=OLD)))
    assert await told() == await told() == [OutboxOld(topic="new", sequence=1, since=OLD)]
    await shelf.database.run(lambda s: s.execute(delete(c)))
    assert len(await told()) == 1
    await publish(shelf, "again")
    assert len(await told()) == 2


async def test_nothing_is_given_up_while_a_relay_sends(place: MemoryStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay holds no row while the broker is waited for; its turn keeps the outbox as it is."""
    monkeypatch.setattr(statements, "RELAY_WAIT", 0.2)
    monkeypatch.setattr("consumerkit.maintenance.expirer._TRIES", 2)
    shelf = Shelf(place.url)
    producer = Slow(Memory(place.broker).producer())
    await publish(shelf, "t.dlq")
    relay = Relay(shelf.database, shelf.dialect, TABLES, producer, Announcer(), asyncio.Event())
    running = asyncio.create_task(relay.run())
    expiry = shelf.expiry(PayloadRetention(outbox=MONTH))
    try:
        await asyncio.wait_for(producer.sending.wait(), 120)
        assert await expiry.unsent() == Unsent(0, complete=False)
        assert (await shelf.outbox(), place.broker.records("t.dlq")) == (1, [])
        producer.go.set()
        async with asyncio.timeout(120):
            while await shelf.outbox():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await expiry.unsent() == Unsent(0)
    finally:
        producer.go.set()
        relay.stop()
        await running
        await shelf.database.dispose()
    assert len(place.broker.records("t.dlq")) == 1
    assert await place.database.run(lambda s: s.execute(select(TABLES.operator_actions)).all()) == []


class Slow:
    """A producer whose sends wait until they are let."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.sending = asyncio.Event()
        self.go = asyncio.Event()

    async def start(self) -> None:
        await self.producer.start()

    async def send(self, records: Sequence[Record]) -> list[SendFailure | None]:
        self.sending.set()
        await self.go.wait()
        return list(await self.producer.send(records))

    async def stop(self) -> None:
        await self.producer.stop()


async def test_a_relay_that_sends_all_the_time_lets_who_waits_have_a_turn(server_shelf: Shelf) -> None:
    """Between two of its transactions there are only milliseconds: a look without a wait would miss them."""
    shelf, began, ended = server_shelf, asyncio.Event(), asyncio.Event()
    await publish(shelf, "a", "b")

    async def busy() -> None:
        while not ended.is_set():
            async with shelf.database.transaction() as run:
                if await run(shelf.dialect.lock_relay):
                    began.set()
                    await asyncio.sleep(0.3)

    relay = asyncio.create_task(busy())
    await began.wait()
    try:
        assert await shelf.expiry(PayloadRetention(outbox=MONTH)).unsent() == Unsent(2)
    finally:
        ended.set()
        await relay


# By command.


APP = """
from consumerkit import DeadLetter, Handler, PayloadRetention, Worker, header
from consumerkit.transports.memory import Memory, MemoryBroker


class Credit(Handler[bytes]):
    name = "credit"
    topic = "t"
    message_id = header("id")
    dead_letter = DeadLetter("t.dlq")

    async def handle(self, event, context):
        pass


days = 86400
kept = PayloadRetention(decided=30 * days, dead=30 * days, parked=30 * days, outbox=30 * days)
kafka = Memory(MemoryBroker(topics={{"t": 1}}))
worker = Worker(database={url!r}, kafka=kafka, handlers=[Credit()], payload_retention=kept)
"""


async def test_the_command_ends_by_its_targets_terms_and_says_what(
    shelf: Shelf, command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "FENCE_WAIT", 0.2)
    name = f"app_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(APP.format(url=shelf.url))
    monkeypatch.syspath_prepend(str(tmp_path))
    target = f"{name}:worker"
    await shelf.park(1, 2)
    await shelf.park(11, partition=1)
    await shelf.database.run(partial(letter, consumer=shelf.consumer, offset=7))
    await publish(shelf, "a", "b")
    tried = await asyncio.to_thread(command, "db", "prune", target, "--dry-run")
    assert (tried.code, tried.err) == (0, "")
    assert "decided: payloads to erase  undecided: payloads to erase  parked: to expire" in tried.out
    assert [line.split() for line in tried.out.splitlines() if line.startswith("credit  ")][1] == [
        "credit",
        "0",
        "1",
        "3",
    ]
    assert "outbox: 2 unsent messages would be given up" in tried.out
    assert (len(await shelf.letters()), len(await shelf.lot()), await shelf.outbox()) == (1, 3, 2)
    ids_alone = await asyncio.to_thread(command, "db", "prune", "--database", shelf.url, "--json")
    assert "ended" not in ids_alone.out
    if shelf.database.dialect_name == "postgresql":
        number = fence.number(TABLES.within("public"), shelf.consumer, TopicPartition("t", 1))
        async with shelf.database.transaction() as run:
            await run(lambda s: shelf.dialect.take_over(s.connection(), number, wait=1))
            done = await asyncio.to_thread(command, "db", "prune", target, "--handler", "credit")
        assert [line.split() for line in done.out.splitlines() if line.startswith("credit  ")][1][1:] == ["0", "1", "2"]
        why = "t[1] was in use all the time, or one of its payloads cannot be unsealed; run the command again"
        assert f"credit: {why}" in done.out
        assert await shelf.outbox() == 2 + 2  # the copies for the dead-letter topic
    again = await asyncio.to_thread(command, "db", "prune", target, "--json")
    credit, unsent = json.loads(again.out) if again.out.startswith("[") else map(json.loads, again.out.splitlines())
    assert credit["ended"]["skipped"] == []
    assert unsent == {"handler": "", "outbox": 2, "complete": True}
    assert [row.reason for row in await shelf.letters() if row.offset != 7] == ["expired"] * 3


# Beside a running worker.


class Fails(Handler[bytes]):
    """Fails on one key until it is mended."""

    name = "fails"
    topic = "t"
    message_id = header("id")
    ordering = Ordering.KEY
    retry = Retry(attempts=100, wait=fixed(3600))
    dead_letter = DeadLetter("t.dlq")

    def __init__(self) -> None:
        self.mended = False
        self.seen: list[str] = []

    async def handle(self, event: bytes, context: Context) -> None:
        if context.message.key == b"alice" and not self.mended:
            raise ValueError("no")
        self.seen.append(context.message_id)


@pytest.fixture(params=["psycopg", "sqlite"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryStage]:
    async with opened(fresh_url(request, tmp_path), partitions=1) as made:
        made.broker.create_topic("t.dlq", 1)
        yield made


async def count(place: MemoryStage) -> int:
    return await place.database.run(
        lambda s: int(s.execute(select(func.count()).select_from(TABLES.parked_messages)).scalar_one())
    )


async def test_a_running_worker_ends_what_it_parked_and_its_key_flows_and_it_comes_back(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruner, "INTERVAL", 0.2)
    handler = Fails()
    place.append(1, key=b"alice")
    place.append(2, key=b"alice")
    async with place.run(handler, payload_retention=PayloadRetention(parked=MONTH)) as run:
        async with asyncio.timeout(120):
            while await count(place) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        handler.mended = True
        await place.database.run(
            lambda s: s.execute(
                update(TABLES.parked_messages).where(TABLES.parked_messages.c.offset == 0).values(parked_at=OLD)
            )
        )
        await run.until(lambda: handler.seen == ["2"], "what waited behind it")
        await run.until(lambda: len(place.broker.records("t.dlq")) == 1, "its dead letter's copy")
        [told] = run.seen(MessageDeadLettered)
        assert (told.message_id, told.reason) == ("1", Reason.EXPIRED)
        assert (await redrive.redrive(place.url, redrive.Selection())).redriven == 1
        await run.until(lambda: handler.seen == ["2", "1"], "it came back")
        place.append(3, key=b"alice")
        await run.until(lambda: handler.seen == ["2", "1", "3"], "its key goes on")
        assert not run.seen(PartitionInDoubt)
    assert await count(place) == 0


async def test_a_sqlite_worker_ends_things_in_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, SQLite's own waiting decides, which is not fair: here the turn is taken, so nothing must happen."""
    monkeypatch.setattr(pruner, "INTERVAL", 0.05)
    place = MemoryStage(f"sqlite:///{tmp_path}/fresh.sqlite")
    await place.create_tables()

    def fill(session: Session) -> None:
        number = consumers.bind(session, TABLES, name="write", group="write", topics=["t"])
        letter(session, number, 1, state="resolved", state_at=OLD)

    async with place.run(Write()) as run:
        # Not before: the start looks where the tables are, and takes turns from then on.
        await run.until(lambda: bool(run.seen(WorkerStarted)), "the start")
        async with run.worker._assembly.turn:
            await place.database.run(fill)
            await asyncio.sleep(0.5)
            assert not run.seen(PayloadsErased)
        await run.until(lambda: bool(run.seen(PayloadsErased)), "its turn")
    await place.close()


def test_a_span_that_is_none_is_refused() -> None:
    assert PayloadRetention(dead=timedelta(days=2)).seconds("dead") == 172_800.0
    with pytest.raises(ConfigurationError, match=r"PayloadRetention\(parked=0\): give a timedelta or a number of sec"):
        PayloadRetention(parked=0)
