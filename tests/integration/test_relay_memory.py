"""The relay: one at a time, at least once, in order per key; it holds back only messages that cannot be sent."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from consumerkit import events, failpoints
from consumerkit.dead_letters.formats import consumerkit as dead_letter_format
from consumerkit.engine.transaction import failures
from consumerkit.events import Announcer, Event
from consumerkit.failpoints import FailpointError
from consumerkit.message import Message
from consumerkit.outcome import Reason
from consumerkit.relay import Relay, relay, rows
from consumerkit.storage import consumers, outbox
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.outbox import OutboxMessage
from consumerkit.storage.tables import DEFAULT_TABLES
from consumerkit.transports.base import Producer, Record, SendFailure
from consumerkit.transports.memory import MemoryBroker, MemoryProducer
from tests.integration.memory_stage import MemoryStage, opened
from tests.services import PostgresServer
from tests.services.tcp_proxy import TcpProxy


@pytest.fixture
async def place(each_url: str) -> AsyncIterator[MemoryStage]:
    async with opened(each_url) as made:
        made.broker.create_topic("out", 3)
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> "Clock":
    made = Clock()
    monkeypatch.setattr(relay, "time", made)
    return made


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Turns:
    """The producer in memory, which refuses what the test chooses, and waits at its gate."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._real = MemoryProducer(broker)
        self.refused: dict[bytes, SendFailure] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()
        self.batches: list[list[bytes | None]] = []
        self.clock: Clock | None = None

    async def start(self) -> None:
        await self._real.start()

    async def send(self, records: Sequence[Record]) -> list[SendFailure | None]:
        self.batches.append([record.value for record in records])
        self.reached.set()
        await self.gate.wait()
        answers: list[SendFailure | None] = []
        for record in records:
            failure = self.refused.pop(record.value or b"", None)
            answers.append(failure or (await self._real.send([record]))[0])
        if self.clock is not None:
            self.clock.now += 2.0
        return answers

    async def stop(self) -> None:
        await self._real.stop()


def relay_of(
    place: MemoryStage,
    producer: Producer,
    told: list[Event] | None = None,
    *,
    written: asyncio.Event | None = None,
    deadline: float = 60.0,
) -> Relay:
    dialect = dialect_for(place.database.dialect_name, DEFAULT_TABLES)
    announce = Announcer([] if told is None else [told.append])
    woken = written or asyncio.Event()
    return Relay(place.database, dialect, DEFAULT_TABLES, producer, announce, woken, deadline=deadline)


@pytest.mark.parametrize(
    "driver, moment",
    [("psycopg", "while it sends"), ("asyncpg", "while it sends"), ("asyncpg", "while it waits")],
)
async def test_a_database_that_falls_silent_is_left_and_asked_anew(
    postgres: PostgresServer, database: str, driver: str, moment: str
) -> None:
    where = urlsplit(postgres.admin_dsn)
    async with TcpProxy(f"{where.hostname}:{where.port}") as line:
        place = MemoryStage(f"postgresql+{driver}://postgres@{line.address}/{database}")
        await place.create_tables()
        place.broker.create_topic("out", 3)
        producer, told, written = Turns(place.broker), list[Event](), asyncio.Event()
        made = relay_of(place, producer, told, written=written, deadline=1.0)
        task = asyncio.create_task(made.run())
        if moment == "while it sends":
            producer.gate.clear()
            await place.publish(message(b"1"))
            written.set()
            await producer.reached.wait()
            line.stall()
            producer.gate.set()
        else:
            await place.publish(message(b"1"))
            await until(lambda: values(place) == [b"1"])
            line.stall()
        await until(lambda: any(isinstance(one, events.Trouble) for one in told))
        assert line.stalled
        line.flow()
        await place.publish(message(b"2"))
        await until(lambda: b"2" in values(place))
        made.stop()
        await task
        assert any(isinstance(one, events.TroubleOver) for one in told)
        await place.close()


def message(value: bytes, key: bytes | None = b"k", topic: str = "out") -> OutboxMessage:
    return OutboxMessage(topic, key, value, (("message-id", b"id-" + value[:20]), ("raw", b"\xff")))


def values(place: MemoryStage, topic: str = "out") -> list[bytes | None]:
    return [record.value for record in place.broker.records(topic)]


async def test_what_is_acknowledged_is_removed_and_sent_as_it_was_written(place: MemoryStage) -> None:
    sent = [message(b"1"), OutboxMessage("out", None, None, ()), message(b"\x00\xff", key=b"\x00")]
    await place.publish(*sent)
    told: list[Event] = []
    made = relay_of(place, MemoryProducer(place.broker), told)
    assert await made.publish() == 3
    assert await made.publish() == 0
    assert await place.pending() == []
    found = {(record.key, record.value, record.headers) for record in place.broker.records("out")}
    assert found == {(one.key, one.value, one.headers) for one in sent}
    assert told == [events.OutboxPublished(count=3)]


async def test_each_keys_messages_go_one_after_another(place: MemoryStage) -> None:
    """Many pages, and never two messages of one key under way at once."""
    count = 1200
    await place.publish(*(message(b"%d" % n, key=b"key-%d" % (n % 50)) for n in range(count)))
    producer = Turns(place.broker)
    assert await relay_of(place, producer).publish() == count
    for batch in producer.batches:
        keys = [int(value or b"") % 50 for value in batch]
        assert len(keys) == len(set(keys))
    by_key: dict[bytes | None, list[int]] = defaultdict(list)
    for record in place.broker.records("out"):
        by_key[record.key].append(int(record.value or b""))
    assert sum(map(len, by_key.values())) == count
    assert all(found == sorted(found) for found in by_key.values())


async def test_messages_without_a_key_go_together(place: MemoryStage) -> None:
    await place.publish(*(message(b"%d" % n, key=None) for n in range(300)))
    producer = Turns(place.broker)
    assert await relay_of(place, producer).publish() == 300
    assert len(producer.batches) == 1


async def test_what_cannot_go_holds_back_its_topic_or_key_alone(place: MemoryStage, clock: Clock) -> None:
    large = b"l" * 2000
    place.broker.max_record_bytes = 1000
    await place.publish(
        message(large, key=b"a"),
        message(b"a2", key=b"a"),
        message(b"b1", key=b"b"),
        message(b"m1", topic="missing"),
        message(b"m2", topic="missing", key=None),
        message(large, key=None),
        message(b"n1", key=None),
    )
    told: list[Event] = []
    made = relay_of(place, MemoryProducer(place.broker), told)
    assert await made.publish() == 2
    assert sorted(values(place), key=str) == [b"b1", b"n1"]
    left = [large, b"a2", b"m1", b"m2", large]
    assert [one.value for one in await place.pending()] == left
    held = [event for event in told if isinstance(event, events.OutboxHeldBack)]
    assert {(event.topic, event.error.split(":")[0], 1.0 <= event.wait <= 1.25) for event in held} >= {
        ("out", "MSG_SIZE_TOO_LARGE", True),
        ("missing", "UNKNOWN_TOPIC_OR_PART", True),
    }
    # Not before its time.
    assert await made.publish() == 0
    place.broker.max_record_bytes = 10_000
    place.broker.create_topic("missing", 1)
    assert await made.publish() == 0
    clock.now += 2.5
    assert await made.publish() == 5
    assert await place.pending() == []
    of_a = [record.value for record in place.broker.records("out") if record.key == b"a"]
    assert of_a == [large, b"a2"]


async def test_a_key_is_not_overtaken_when_another_of_its_topic_is_taken(place: MemoryStage, clock: Clock) -> None:
    """One partition's leader is away for a moment: what failed comes first when it is back."""
    await place.publish(message(b"a1", key=b"a"), message(b"b1", key=b"b"), message(b"a2", key=b"a"))
    producer = Turns(place.broker)
    producer.refused[b"a1"] = SendFailure("_MSG_TIMED_OUT", "no answer", permanent=False)
    made = relay_of(place, producer)
    assert await made.publish() == 1
    clock.now += 5
    assert await made.publish() == 2
    assert [value for value in values(place) if value != b"b1"] == [b"a1", b"a2"]


async def test_nothing_is_overtaken_when_its_wait_ends_within_a_round(
    place: MemoryStage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "PAGE", 2)
    producer = Turns(place.broker)
    producer.refused[b"a1"] = SendFailure("MSG_SIZE_TOO_LARGE", "too large", permanent=True)
    producer.refused[b"m1"] = SendFailure("UNKNOWN_TOPIC_OR_PART", "missing", permanent=True)
    place.broker.create_topic("late", 1)
    await place.publish(message(b"a1", key=b"a"), message(b"m1", topic="late"))
    made = relay_of(place, producer)
    assert await made.publish() == 0
    # Both wait a second, which is over before the next round has come to the later ones.
    producer.clock = clock
    others = [message(b"o%d" % n, key=b"other-%d" % n) for n in range(5)]
    await place.publish(*others, message(b"a2", key=b"a"), message(b"m2", topic="late"))
    assert await made.publish() + await made.publish() == 9
    assert [value for value in values(place) if (value or b"").startswith(b"a")] == [b"a1", b"a2"]
    assert values(place, "late") == [b"m1", b"m2"]


async def test_only_one_relay_sends_at_a_time(place: MemoryStage) -> None:
    await place.publish(*(message(b"%d" % n, key=None) for n in range(10)))
    one, other = Turns(place.broker), Turns(place.broker)
    one.gate.clear()
    first = asyncio.create_task(relay_of(place, one).publish())
    await asyncio.wait_for(one.reached.wait(), 120)
    assert await relay_of(place, other).publish() == 0
    assert other.batches == []
    one.gate.set()
    assert await first == 10
    assert await relay_of(place, other).publish() == 0
    assert len(values(place)) == 10


async def test_what_was_sent_but_not_removed_is_sent_again_with_the_same_id(place: MemoryStage) -> None:
    await place.publish(message(b"1"), message(b"2"))
    made = relay_of(place, MemoryProducer(place.broker))
    failpoints.arm({"CONSUMERKIT_FAILPOINT": "dlq_acked:raise"})
    try:
        with pytest.raises(FailpointError):
            await made.publish()
    finally:
        failpoints.arm({})
    assert len(await place.pending()) == 2
    # As after a death: another relay does not know what this one sent.
    assert await relay_of(place, MemoryProducer(place.broker)).publish() == 2
    assert await place.pending() == []
    found = [(record.value, record.header("message-id")) for record in place.broker.records("out")]
    assert found == [(b"1", b"id-1"), (b"2", b"id-2")] * 2


async def test_an_outage_is_waited_for_and_said(place: MemoryStage) -> None:
    await place.publish(message(b"1"))
    told: list[Event] = []
    producer = MemoryProducer(place.broker)
    dialect = dialect_for(place.database.dialect_name, DEFAULT_TABLES)
    made = Relay(place.database, dialect, DEFAULT_TABLES, producer, Announcer([told.append]), asyncio.Event())
    running: asyncio.Task[None]
    with place.broker.outage():
        running = asyncio.create_task(made.run())
        await until(lambda: bool(told))
        assert values(place) == []
    await until(lambda: values(place) == [b"1"])
    made.stop()
    await asyncio.wait_for(running, 120)
    assert values(place) == [b"1"]
    assert [type(event) for event in told[:1]] == [events.OutboxHeldBack]


async def test_what_fails_together_is_one_failure_and_waits_as_one(place: MemoryStage, clock: Clock) -> None:
    """However much was under way when the broker went, the wait is as short as it was said to be."""
    await place.publish(*(message(b"%d" % n, key=b"k%d" % n) for n in range(30)))
    told: list[Event] = []
    made = relay_of(place, MemoryProducer(place.broker), told)
    with place.broker.outage():
        assert await made.publish() == 0
    (held,) = told
    assert isinstance(held, events.OutboxHeldBack)
    clock.now += 0.9 * held.wait
    assert await made.publish() == 0
    clock.now += 0.2 * held.wait
    assert await made.publish() == 30


async def test_what_is_held_back_does_not_hide_what_comes_behind_it(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "PAGE", 5)
    monkeypatch.setattr(relay, "PAGES", 2)
    await place.publish(*(message(b"%d" % n) for n in range(30)), message(b"last", key=b"other"))
    producer = Turns(place.broker)
    producer.refused[b"0"] = SendFailure("MSG_SIZE_TOO_LARGE", "too large", permanent=True)
    assert await relay_of(place, producer).publish() == 1
    assert values(place) == [b"last"]


async def test_a_broker_slower_than_the_servers_timeout_gets_nothing_twice(
    postgres: PostgresServer, database: str
) -> None:
    place = MemoryStage(postgres.url(database))
    await place.create_tables()
    place.broker.create_topic("out", 3)
    setting = f"ALTER DATABASE {database} SET idle_in_transaction_session_timeout = 100"
    await place.database.run(lambda session: session.execute(text(setting)))
    await place.database.dispose()
    await place.publish(message(b"1"))
    producer = Turns(place.broker)
    producer.gate.clear()
    sending = asyncio.create_task(relay_of(place, producer).publish())
    await producer.reached.wait()
    await asyncio.sleep(0.5)
    producer.gate.set()
    assert await sending == 1
    assert await place.pending() == []
    await place.close()


async def test_a_topic_that_does_not_answer_is_waited_for_beside_the_others(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New messages for the others are sent at once, although a thousand messages of the silent topic wait."""
    monkeypatch.setattr(relay, "POLL_INTERVAL", 3600.0)  # so that it is not this that finds them
    place.broker.create_topic("silent", 1)
    await place.publish(*(message(b"s%d" % n, topic="silent") for n in range(1000)), message(b"1", key=None))
    producer = Silent(place.broker, "silent")
    written = asyncio.Event()
    made = relay_of(place, producer, written=written)
    publishing = asyncio.create_task(made.publish())
    await asyncio.wait_for(until(lambda: values(place) == [b"1"]), 120)
    for n in range(2, 6):
        await place.publish(message(b"%d" % n, key=None))
        written.set()
        await asyncio.wait_for(until(lambda n=n: len(values(place)) == n), 120)  # type: ignore[misc]
    assert not publishing.done()
    # What went is removed, not only at the end.
    assert len(await place.pending()) <= 1001
    assert await relay_of(place, MemoryProducer(place.broker)).publish() == 0
    producer.answers.set()
    assert await asyncio.wait_for(publishing, 240) == 1005
    assert values(place, "silent") == [b"s%d" % n for n in range(1000)]
    assert await place.pending() == []


async def test_ten_thousand_held_back_hide_nothing(place: MemoryStage, clock: Clock) -> None:
    await place.publish(*(message(b"m", topic="missing") for _ in range(10_000)))
    made = relay_of(place, MemoryProducer(place.broker))
    assert await made.publish() == 0
    producer = Turns(place.broker)
    made._producer = producer
    await place.publish(message(b"1"))
    assert await made.publish() == 1
    assert producer.batches == [[b"1"]]
    # After its wait one goes ahead, not ten thousand.
    clock.now += 2
    assert await made.publish() == 0
    assert producer.batches[1:] == [[b"m"]]
    place.broker.create_topic("missing", 1)
    clock.now += 5
    assert await made.publish() + await made.publish() == 10_000
    assert await place.pending() == []


async def test_a_page_is_bounded_by_bytes(place: MemoryStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PAGE_BYTES", 25_000)
    sizes = [10_000, 10_000, 10_000, 40_000, 10]
    await place.publish(*(message(b"%d" % at * size, key=None) for at, size in enumerate(sizes)))
    producer = Turns(place.broker)
    assert await relay_of(place, producer).publish() == 5
    assert [len(batch) for batch in producer.batches] == [2, 1, 1, 1]


async def test_a_record_that_no_client_can_send_holds_back_its_key_alone(place: MemoryStage) -> None:
    await place.publish(message(b"bad", key=b"a"), message(b"a2", key=b"a"), message(b"b1", key=b"b"))
    producer = Turns(place.broker)
    producer.refused[b"bad"] = SendFailure("UnicodeEncodeError", "the client cannot encode the record", permanent=True)
    told: list[Event] = []
    assert await relay_of(place, producer, told).publish() == 1
    assert values(place) == [b"b1"]
    (held,) = [event for event in told if isinstance(event, events.OutboxHeldBack)]
    (first, _) = await place.sequences()
    assert held.sequence == first
    assert f"consumerkit outbox discard {first}" in held.way_out


async def test_it_is_told_once_that_a_topic_waits_and_once_that_it_goes_on(place: MemoryStage, clock: Clock) -> None:
    await place.publish(*(message(b"%d" % n, topic="late", key=None) for n in range(600)))
    told: list[Event] = []
    made = relay_of(place, MemoryProducer(place.broker), told)
    for _ in range(10):
        assert await made.publish() == 0
        clock.now += 61
    (held,) = told
    assert isinstance(held, events.OutboxHeldBack)
    assert (held.topic, held.sequence) == ("late", None)
    assert "consumerkit topics create" in held.way_out
    place.broker.create_topic("late", 1)
    assert await made.publish() == 600
    resumed = [event for event in told if isinstance(event, events.OutboxResumed)]
    assert [(event.topic, event.sequence) for event in resumed] == [("late", None)]
    assert resumed[0].seconds >= 600


async def test_a_message_that_was_discarded_by_hand_lets_the_next_one_of_its_key_go(
    place: MemoryStage, clock: Clock
) -> None:
    place.broker.max_record_bytes = 1000
    await place.publish(message(b"l" * 2000), message(b"2"))
    told: list[Event] = []
    made = relay_of(place, MemoryProducer(place.broker), told)
    assert await made.publish() == 0
    (first, _) = await place.sequences()
    assert await place.database.run(lambda session: outbox.discard(session, DEFAULT_TABLES, first, actor="me")) == "out"
    clock.now += 2
    assert await made.publish() == 1
    assert [type(event) for event in told] == [events.OutboxHeldBack, events.OutboxResumed, events.OutboxPublished]


async def test_a_row_that_has_the_number_of_one_that_was_lost_is_sent(place: MemoryStage) -> None:
    """The database was restored after the acknowledgement, and the removed number belongs to another message."""
    await place.publish(message(b"old"))
    producer = Turns(place.broker)
    made = relay_of(place, producer)
    producer.gate.clear()
    under_way = asyncio.create_task(made.publish())
    await producer.reached.wait()
    (number,) = await place.sequences()
    await place.database.run(lambda session: session.execute(text("DELETE FROM consumerkit_outbox_messages")))
    await place.publish(message(b"new"))
    again = text("UPDATE consumerkit_outbox_messages SET sequence = :number")
    await place.database.run(lambda session: session.execute(again, {"number": number}))
    producer.gate.set()
    await under_way
    await made.publish()
    assert values(place) == [b"old", b"new"]
    assert await place.pending() == []


async def test_a_dead_letter_that_is_too_large_goes_by_reference(place: MemoryStage) -> None:
    place.broker.max_record_bytes = 2000
    copies = [await dead(place, offset, size=1900 if offset == 1 else 100) for offset in range(3)]
    await place.publish(*copies)
    told: list[Event] = []
    assert await relay_of(place, MemoryProducer(place.broker), told).publish() == 3
    found = place.broker.records("out")
    whole, cut, last = sorted(found, key=lambda record: record.header("consumerkit-dlq-offset") or b"")
    assert [whole.value, cut.value, last.value] == [copies[0].value, None, copies[2].value]
    assert cut.key == copies[1].key
    assert cut.header("consumerkit-dlq-by-reference") == b"true"
    assert cut.header("consumerkit-dlq-offset") == b"1"
    assert cut.header("own") == b"header"
    assert cut.header("consumerkit-dlq-stack") is None
    assert whole.header("consumerkit-dlq-by-reference") is None
    assert [event.topic for event in told if isinstance(event, events.DeadLetterByReference)] == ["out"]
    assert not [event for event in told if isinstance(event, events.OutboxHeldBack)]


async def test_if_its_own_headers_are_too_large_it_goes_with_ours_alone(place: MemoryStage) -> None:
    place.broker.max_record_bytes = 2000
    letter = await dead(place, 0, size=100)
    large = letter._replace(headers=(("own", b"h" * 5000), *letter.headers[1:]))
    await place.publish(large)
    assert await relay_of(place, MemoryProducer(place.broker)).publish() == 1
    (record,) = place.broker.records("out")
    assert (record.key, record.value, record.header("own")) == (None, None, None)
    assert record.header("consumerkit-dlq-offset") == b"0"


@pytest.mark.parametrize("how", ["not a dead letter", "published by a handler", "not in the table", "erased"])
async def test_what_the_table_does_not_hold_is_never_cut(place: MemoryStage, how: str) -> None:
    place.broker.max_record_bytes = 2000
    letter = await dead(place, 0, size=1900)
    if how == "not a dead letter":
        letter = message(b"v" * 2000)
    elif how == "published by a handler":  # which sends a dead letter's headers on
        letter = letter._replace(headers=(*letter.headers, ("message-id", b"id")))
    else:
        change = "DELETE FROM consumerkit_dead_letters" if how == "not in the table" else ERASE
        await place.database.run(lambda session: session.execute(text(change)))
    await place.publish(letter)
    told: list[Event] = []
    assert await relay_of(place, MemoryProducer(place.broker), told).publish() == 0
    assert [one.value for one in await place.pending()] == [letter.value]
    assert [type(event) for event in told] == [events.OutboxHeldBack]


ERASE = "UPDATE consumerkit_dead_letters SET value = NULL, erased_at = CURRENT_TIMESTAMP"


async def dead(place: MemoryStage, offset: int, *, size: int) -> OutboxMessage:
    """Enter a dead letter into its table, and return its copy for the topic."""
    origin = Message("in", 0, offset, b"key-%d" % offset, b"v" * size, (("own", b"header"),), 0, "id")
    letter = DeadMessage(
        message=origin, digest=None, message_id=None, reason=Reason.REJECTED, error_type="E", error="e", stack="s" * 500
    )

    def enter(session: Session) -> None:
        number = consumers.bind(session, DEFAULT_TABLES, name="h", group="h", topics=["in"], adopt=False)
        assert dead_letters.add(session.connection(), DEFAULT_TABLES, number, [letter])

    await place.database.run(enter)
    return dead_letter_format.written(letter, "out", "h", failures.now())


async def until(condition: Callable[[], bool], within: float = 120.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within} s"
        await asyncio.sleep(0.01)


class Silent:
    """The producer in memory, where one topic answers only when the test lets it."""

    def __init__(self, broker: MemoryBroker, topic: str) -> None:
        self._real = MemoryProducer(broker)
        self._topic = topic
        self.answers = asyncio.Event()

    async def start(self) -> None:
        await self._real.start()

    async def send(self, records: Sequence[Record]) -> list[SendFailure | None]:
        if any(record.topic == self._topic for record in records):
            await self.answers.wait()
        return await self._real.send(records)

    async def stop(self) -> None:
        await self._real.stop()
