"""Published messages of a key in order: sequences are not committed in order, and acknowledgements take their time."""

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from consumerkit import outbox as public
from consumerkit.events import Announcer
from consumerkit.relay import Relay, rows
from consumerkit.storage import outbox, outbox_queues
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.outbox import OutboxMessage, Queue
from consumerkit.storage.outbox_queues import OutboxPage, Waiting
from consumerkit.storage.tables import DEFAULT_TABLES
from consumerkit.transports.base import Producer, Record, SendFailure
from consumerkit.transports.memory import MemoryBroker, MemoryProducer
from tests.integration.memory_stage import MemoryStage, opened
from tests.services import PostgresServer

TOPICS = ("out", "other")


@pytest.fixture
async def server_place(postgres: PostgresServer, database: str) -> AsyncIterator[MemoryStage]:
    async with opened(postgres.url(database)) as made:
        for topic in TOPICS:
            made.broker.create_topic(topic, 2)
        yield made


@pytest.fixture
async def place(each_url: str) -> AsyncIterator[MemoryStage]:
    async with opened(each_url) as made:
        for topic in TOPICS:
            made.broker.create_topic(topic, 2)
        yield made


class Delaying:
    """The producer in memory, whose answers take their time; and whose next call can be made to wait at a gate."""

    def __init__(self, broker: MemoryBroker, shortest: float = 0.0, longest: float = 0.0, seed: int = 0) -> None:
        self._real = MemoryProducer(broker)
        self._delays = (shortest, longest)
        self._random = random.Random(seed)
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()
        self.refused: dict[bytes, SendFailure] = {}

    async def start(self) -> None:
        await self._real.start()

    async def send(self, records: Sequence[Record]) -> list[SendFailure | None]:
        self.reached.set()
        await self.gate.wait()
        await asyncio.sleep(self._random.uniform(*self._delays))
        answers: list[SendFailure | None] = []
        for record in records:
            refused = self.refused.get(record.value or b"")
            answers.append(refused or (await self._real.send([record]))[0])
        return answers

    async def stop(self) -> None:
        await self._real.stop()


def relay_of(place: MemoryStage, producer: Producer) -> Relay:
    dialect = dialect_for(place.database.dialect_name, DEFAULT_TABLES)
    return Relay(place.database, dialect, DEFAULT_TABLES, producer, Announcer([]), asyncio.Event())


def message(value: bytes, key: bytes | None = b"K", topic: str = "out") -> OutboxMessage:
    return OutboxMessage(topic, key, value, (("message-id", value[:20]),))


def sent(place: MemoryStage, key: bytes | None = b"K", topic: str = "out") -> list[bytes | None]:
    return [record.value for record in place.broker.records(topic) if record.key == key]


def session_of(place: MemoryStage) -> AsyncSession:
    assert place.database.async_sessions is not None
    return place.database.async_sessions()


# A lower sequence that is committed late.


@pytest.mark.parametrize("held", [False, True], ids=["nothing waits", "something waits"])
@pytest.mark.parametrize("elsewhere", ["out", "other"])
async def test_a_lower_sequence_that_is_committed_late_is_not_overtaken(
    server_place: MemoryStage, elsewhere: str, held: bool
) -> None:
    place = server_place
    producer = Delaying(place.broker)
    made = relay_of(place, producer)
    if held:
        await place.publish(message(b"m0", topic="missing"))
        assert await made.publish() == 0
        producer.reached.clear()
    await committed_late(place, made, producer, elsewhere)
    while len(await place.pending()) > held:
        await made.publish()
    assert sent(place) == [b"m1", b"m2"]


async def committed_late(place: MemoryStage, made: Relay, producer: Delaying, elsewhere: str) -> None:
    first = session_of(place)
    await public.publish(first, "out", key=b"K", value=b"m1")
    await place.publish(message(b"x", key=b"x", topic=elsewhere))
    producer.gate.clear()
    publishing = asyncio.create_task(made.publish())
    await producer.reached.wait()
    await first.commit()
    await public.publish(first, "out", key=b"K", value=b"m2")
    await first.commit()
    await first.close()
    # Longer than the relay waits before it goes on without the answer.
    await asyncio.sleep(0.4)
    producer.gate.set()
    await publishing


class InTheirSequence(rows.Rows):
    """The rule taken out: a page goes on after the last sequence of the page before."""

    last = 0

    async def lowest(self) -> OutboxPage:
        def read(session: Session) -> OutboxPage:
            found = outbox.page(session.connection(), self._tables, 1_000, 1 << 30)
            beyond = [one for one in found if one.sequence > self.last]
            self.last = beyond[-1].sequence if beyond else 0
            return OutboxPage(beyond, beyond[-1].queue if beyond else None, frozenset())

        return await self._removed(read)

    async def next_queues(self, after: Queue | None, waiting: Waiting) -> OutboxPage:
        return await self.lowest()


async def test_the_rule_taken_out_is_noticed(server_place: MemoryStage) -> None:
    place = server_place
    producer = Delaying(place.broker)
    made = relay_of(place, producer)
    made._rows = InTheirSequence(place.database, dialect_for("postgresql", DEFAULT_TABLES), DEFAULT_TABLES, 60.0)
    await committed_late(place, made, producer, "other")
    while await place.pending():
        await made.publish()
    assert sent(place) == [b"m2", b"m1"]


@pytest.mark.parametrize("size", [2, 500])
async def test_a_row_that_comes_between_two_pages_is_not_overtaken(
    server_place: MemoryStage, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The first page is sent while K's first message is not committed; K's second is in the next page's reach."""
    monkeypatch.setattr(rows, "PAGE", size)
    place = server_place
    first = session_of(place)
    await public.publish(first, "out", key=b"K", value=b"m1")
    await place.publish(*(message(b"o%d" % n, key=b"o%d" % n) for n in range(7)))
    turns = iter([(b"m2", b"m3"), (b"m4",)])

    class Between(Delaying):
        async def send(self, records: Sequence[Record]) -> list[SendFailure | None]:
            answers = await super().send(records)
            for value in next(turns, ()):
                await first.commit()
                await public.publish(first, "out", key=b"K", value=value)
            await first.commit()
            return answers

    made = relay_of(place, Between(place.broker))
    while await place.pending():
        await made.publish()
    await first.close()
    assert sent(place) == [b"m1", b"m2", b"m3", b"m4"]


@pytest.mark.parametrize("fault", ["none", "a topic without an end", "a key refused", "the relay dies"])
async def test_with_four_writers_and_slow_answers_each_key_stays_in_order(place: MemoryStage, fault: str) -> None:
    each, writers = (75, 4) if place.database.dialect_name == "postgresql" else (20, 4)
    producer = Delaying(place.broker, 0.04, 0.1, seed=7)
    if fault == "a topic without an end":
        await place.publish(*(message(b"m", topic="missing") for _ in range(50)))
    if fault == "a key refused":
        producer.refused[b"poison"] = SendFailure("MSG_SIZE_TOO_LARGE", "too large", permanent=True)
        await place.publish(message(b"poison", key=b"P"), message(b"behind", key=b"P"))
    writing = [asyncio.create_task(writer(place, number, each)) for number in range(writers)]
    deaths = 0
    made = relay_of(place, producer)
    while not all(task.done() for task in writing) or await to_come(place):
        publishing = asyncio.create_task(made.publish())
        if fault == "the relay dies" and deaths < 6:
            await asyncio.sleep(0.3)
            if not publishing.done():
                deaths += 1
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)
                made = relay_of(place, producer)
        await asyncio.gather(publishing, return_exceptions=True)
    await asyncio.gather(*writing)
    found: dict[tuple[str, bytes | None], list[int]] = defaultdict(list)
    for topic in TOPICS:
        for record in place.broker.records(topic):
            number = int(record.value or b"0")
            if number not in found[topic, record.key]:  # what is sent again counts where it came first
                found[topic, record.key].append(number)
    assert sum(map(len, found.values())) == each * writers * 2
    assert {place_: numbers for place_, numbers in found.items() if numbers != sorted(numbers)} == {}
    assert (deaths > 0) == (fault == "the relay dies")


async def to_come(place: MemoryStage) -> bool:
    return any(one.topic != "missing" and one.key != b"P" for one in await place.pending())


async def writer(place: MemoryStage, number: int, count: int) -> None:
    """Commit message after message, each with a pause between its INSERT and its COMMIT."""
    pauses = random.Random(number)
    for n in range(count):
        async with session_of(place) as session:
            for topic in TOPICS:
                await public.publish(session, topic, key=b"%d-%d" % (number, n % 2), value=b"%d" % n)
            await asyncio.sleep(pauses.uniform(0, 0.02))
            await session.commit()


async def test_a_long_transaction_elsewhere_holds_nothing_back(server_place: MemoryStage) -> None:
    place = server_place
    long, other = session_of(place), session_of(place)
    await public.publish(long, "out", key=b"K", value=b"late")
    await other.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    await other.execute(text("SELECT count(*) FROM consumerkit_outbox_messages"))
    await place.publish(message(b"m1"), message(b"x", key=None))
    assert await relay_of(place, Delaying(place.broker)).publish() == 2
    assert await place.pending() == []
    await long.commit()
    await long.close()
    await other.close()
    assert await relay_of(place, Delaying(place.broker)).publish() == 1


async def test_what_a_key_publishes_twice_in_one_transaction_goes_in_that_order(place: MemoryStage) -> None:
    async with session_of(place) as session:
        for value in (b"1", b"2", b"3"):
            await public.publish(session, "out", key=b"K", value=value)
        await session.commit()
    assert await relay_of(place, Delaying(place.broker)).publish() == 3
    assert sent(place) == [b"1", b"2", b"3"]


# Queues.


async def test_an_empty_key_is_a_key_and_rows_without_one_have_no_order(place: MemoryStage) -> None:
    producer = Delaying(place.broker)
    producer.refused = {
        value: SendFailure("MSG_SIZE_TOO_LARGE", "too large", permanent=True) for value in (b"empty 1", b"none 1")
    }
    await place.publish(
        message(b"empty 1", key=b""),
        message(b"none 1", key=None),
        message(b"empty 2", key=b""),
        message(b"none 2", None),
    )
    made = relay_of(place, producer)
    assert await made.publish() == 1
    assert await made.publish() == 0
    assert sent(place, None) == [b"none 2"]
    assert [one.value for one in await place.pending()] == [b"empty 1", b"none 1", b"empty 2"]


async def test_a_key_of_any_length_can_be_published_and_has_its_order(place: MemoryStage) -> None:
    keys = [bytes(random.Random(n).randbytes(100_000)) for n in range(2)]
    await place.publish(*(message(b"%d" % n, key=key) for n in range(3) for key in keys))
    producer = Delaying(place.broker)
    producer.refused[b"9"] = SendFailure("MSG_SIZE_TOO_LARGE", "too large", permanent=True)
    assert await relay_of(place, producer).publish() == 6
    assert [sent(place, key) for key in keys] == [[b"0", b"1", b"2"]] * 2


async def test_rows_that_another_release_or_a_person_wrote_are_in_order_too(place: MemoryStage) -> None:
    """The database makes the digests, for every writer."""
    statement = (
        "INSERT INTO consumerkit_outbox_messages (topic, key, value, headers) VALUES ('out', :key, :value, '[]')"
    )
    await place.publish(message(b"m0", topic="missing"))
    made = relay_of(place, Delaying(place.broker))
    for n in range(4):
        given = {"key": b"K", "value": b"%d" % n}
        if n % 2:
            await place.publish(message(given["value"]))
        else:
            await place.database.run(lambda session, given=given: session.execute(text(statement), given))  # type: ignore[misc]
    assert await made.publish() == 4
    assert sent(place) == [b"0", b"1", b"2", b"3"]


async def test_more_rows_without_a_key_than_a_page_that_wait_hide_nothing(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "PAGE", 4)
    producer = Delaying(place.broker)
    refusal = SendFailure("MSG_SIZE_TOO_LARGE", "too large", permanent=True)
    large = [b"large %d" % n for n in range(30)]
    producer.refused = dict.fromkeys(large, refusal)
    await place.publish(*(message(value, key=None) for value in large), *(message(b"%d" % n, None) for n in range(9)))
    made = relay_of(place, producer)
    assert await made.publish() == 9
    await place.publish(message(b"9", None), message(b"10", key=b"K"))
    assert await made.publish() == 2
    producer.refused = {}
    while await place.pending():
        await asyncio.sleep(0.1)
        await made.publish()


async def test_a_busy_key_leaves_the_others_their_turn(place: MemoryStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """While something waits each queue has one turn a round."""
    monkeypatch.setattr(rows, "PAGE", 10)
    await place.publish(
        message(b"m0", topic="missing"),
        *(message(b"%d" % n) for n in range(40)),
        *(message(b"o%d" % n, key=b"o%d" % n) for n in range(40)),
    )
    made = relay_of(place, Delaying(place.broker))
    assert await made.publish() == 80
    assert sent(place) == [b"%d" % n for n in range(40)]


# What a page costs.

KEYS = {
    "a topic of one key": "'k'",
    "a topic of many keys": "'k' || n",
    "a key": "'k'",
    "many keys": "'k' || mod(n, 100)",
}


@pytest.mark.parametrize("statistics", ["fresh", "stale", "of one key", "of the empty table"])
@pytest.mark.parametrize("what", [*KEYS, "no key"])
async def test_a_page_reads_as_much_beside_many_rows_that_wait_as_beside_few(
    server_place: MemoryStage, what: str, statistics: str
) -> None:
    few = await cost_of_a_page(server_place, what, 1_000, statistics="fresh")
    if statistics == "of one key":
        await run(server_place, "DELETE FROM consumerkit_outbox_messages WHERE topic <> 'held' OR sequence % 100 > 0")
        await run(server_place, "UPDATE consumerkit_outbox_messages SET key = 'k'")
        await run(server_place, "ANALYZE consumerkit_outbox_messages")
    many = await cost_of_a_page(server_place, what, 30_000, statistics=statistics)
    assert few.messages == many.messages > 0
    assert many.rows <= few.rows + 10
    # The index may be a level deeper.
    assert many.buffers <= 2 * few.buffers


_SEEN_EMPTY = """
    UPDATE pg_class SET reltuples = 0, relpages = 300, relallvisible = 300 WHERE relname = 'consumerkit_outbox_messages'
"""


class Cost(NamedTuple):
    messages: int
    rows: int
    buffers: int


async def cost_of_a_page(place: MemoryStage, what: str, waiting: int, *, statistics: str) -> Cost:
    """Read a page as a relay does, beside so many rows that wait; return what the server says that it read."""
    key = f"convert_to({KEYS[what]}, 'UTF8')" if what in KEYS else "NULL"
    fill = f"""
        INSERT INTO consumerkit_outbox_messages (topic, key, value, headers)
        SELECT 'held', {key}, 'v', '[]' FROM generate_series(1, {waiting}) AS s (n)
    """
    await run(place, "TRUNCATE consumerkit_outbox_messages")
    await run(place, fill)
    await place.publish(
        *(message(b"f", key=b"free %d" % (n % 40), topic=topic) for topic in ("a", "held", "z") for n in range(120))
    )
    if statistics == "fresh":
        await run(place, "ANALYZE consumerkit_outbox_messages")
    if statistics == "of the empty table":
        # What a vacuum says of a table whose rows have all gone, and that fills up before it comes again.
        await run(place, _SEEN_EMPTY)
    found = await run(
        place, "SELECT DISTINCT topic_digest, key_digest FROM consumerkit_outbox_messages WHERE value = 'v'"
    )
    queues = [Queue(bytes(topic), bytes(key)) for topic, key in found]
    left_out = Waiting(topics=[queues[0].topic]) if what.startswith("a topic") else Waiting(queues=queues)
    if what == "no key":
        left_out = Waiting(topics=[b"another"])
    plans: list[dict[str, Any]] = []

    def explained(connection: Any, _cursor: Any, statement: str, given: Any, _context: Any, _many: bool) -> None:
        if "RECURSIVE" in statement and not statement.startswith("EXPLAIN"):
            answer = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", given)
            plans.append(answer.scalar_one()[0]["Plan"])

    def work(session: Session) -> int:
        connection = session.connection()
        dialect = dialect_for("postgresql", DEFAULT_TABLES)
        event.listen(connection, "before_cursor_execute", explained)
        return len(outbox_queues.page(connection, dialect, DEFAULT_TABLES, 100, 1 << 30, waiting=left_out).pending)

    messages = await place.database.run(work)
    (plan,) = plans
    print(json.dumps(plan, indent=1))
    return Cost(messages, rows_read(plan), plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def run(place: MemoryStage, statement: str) -> Sequence[Any]:
    def work(session: Session) -> Sequence[Any]:
        result = session.execute(text(statement))
        return result.all() if result.returns_rows else []  # type: ignore[attr-defined]

    return await place.database.run(work)


def rows_read(plan: dict[str, Any]) -> int:
    """Return how many rows the scans of tables and indexes came by."""
    own = 0
    if "Relation Name" in plan:
        each = plan["Actual Rows"] + sum(number for name, number in plan.items() if name.startswith("Rows Removed"))
        own = round(each * plan["Actual Loops"])
    return own + sum(map(rows_read, plan.get("Plans", [])))
