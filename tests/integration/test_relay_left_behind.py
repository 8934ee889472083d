"""A relay that held messages back learns from the database that others sent them, or that a person discarded them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from consumerkit import events
from consumerkit.events import Announcer, Event
from consumerkit.relay import Relay, relay
from consumerkit.relay.turn import Awaited, taken
from consumerkit.storage import outbox
from consumerkit.storage.dialects import RelayHolder, dialect_for
from consumerkit.storage.outbox import OutboxMessage
from consumerkit.storage.tables import DEFAULT_TABLES
from consumerkit.transports.memory import MemoryProducer
from tests.integration.memory_stage import MemoryStage, opened

Told = list[Event]


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
async def place(each_url: str) -> AsyncIterator[MemoryStage]:
    async with opened(each_url) as made:
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(relay, "time", made)
    return made


def message(value: bytes, topic: str = "late", key: bytes | None = b"k") -> OutboxMessage:
    return OutboxMessage(topic, key, value, ((outbox.MESSAGE_ID_HEADER, b"id-" + value[:8]),))


def relay_of(place: MemoryStage, told: Told) -> Relay:
    dialect = dialect_for(place.database.dialect_name, DEFAULT_TABLES)
    producer = MemoryProducer(place.broker)
    return Relay(place.database, dialect, DEFAULT_TABLES, producer, Announcer([told.append]), asyncio.Event())


def kinds(told: Told) -> list[type[Event]]:
    return [type(event) for event in told if isinstance(event, events.OutboxHeldBack | events.OutboxResumed)]


async def failed(place: MemoryStage, told: Told, clock: Clock) -> Relay:
    """A relay that has failed so often that its next try is far away."""
    made = relay_of(place, told)
    for _ in range(8):
        assert await made.publish() == 0
        clock.now += 61
    assert await made.publish() == 0
    assert kinds(told) == [events.OutboxHeldBack]
    return made


async def without_the_turn(place: MemoryStage, made: Relay, clock: Clock) -> None:
    """One publication of a relay while another process has the turn."""
    clock.now += 1
    dialect = dialect_for(place.database.dialect_name, DEFAULT_TABLES)
    async with taken(place.database, dialect, 60.0) as turn:
        assert turn is not None
        assert await made.publish() == 0


@pytest.mark.parametrize("has_turn", [True, False])
async def test_who_failed_learns_that_another_process_sent(place: MemoryStage, clock: Clock, has_turn: bool) -> None:
    told: Told = []
    await place.publish(*(message(b"%d" % n, key=None) for n in range(3)))
    made = await failed(place, told, clock)
    place.broker.create_topic("late", 1)
    assert await relay_of(place, []).publish() == 3
    clock.now += 1
    if has_turn:
        assert await made.publish() == 0
    else:
        await without_the_turn(place, made, clock)
    assert kinds(told) == [events.OutboxHeldBack, events.OutboxResumed]
    await place.publish(message(b"next"))
    assert await made.publish() == 1
    assert kinds(told) == [events.OutboxHeldBack, events.OutboxResumed]  # once


async def test_who_has_no_turn_learns_it_though_messages_for_the_topic_come_all_the_time(
    place: MemoryStage, clock: Clock
) -> None:
    told: Told = []
    await place.publish(message(b"1"))
    made = await failed(place, told, clock)
    await place.publish(message(b"2"))
    await without_the_turn(place, made, clock)
    assert kinds(told) == [events.OutboxHeldBack]  # its message still waits
    place.broker.create_topic("late", 1)
    assert await relay_of(place, []).publish() == 2
    await place.publish(message(b"3"))
    await without_the_turn(place, made, clock)
    assert kinds(told) == [events.OutboxHeldBack, events.OutboxResumed]


async def test_who_has_the_turn_tries_at_once_when_another_process_sent(place: MemoryStage, clock: Clock) -> None:
    told: Told = []
    await place.publish(message(b"1"))
    made = await failed(place, told, clock)
    place.broker.create_topic("late", 1)
    assert await relay_of(place, []).publish() == 1
    await place.publish(message(b"2"))
    clock.now += 1
    assert await made.publish() == 1
    assert kinds(told) == [events.OutboxHeldBack, events.OutboxResumed]


async def test_a_discarded_message_ends_no_hold_of_a_topic_for_which_others_wait(
    place: MemoryStage, clock: Clock
) -> None:
    told: Told = []
    await place.publish(message(b"1"))
    made = await failed(place, told, clock)
    (first,) = await place.sequences()
    await place.database.run(lambda session: outbox.discard(session, DEFAULT_TABLES, first, actor="me"))
    await place.publish(message(b"2"))
    clock.now += 1
    assert await made.publish() == 0
    assert kinds(told) == [events.OutboxHeldBack]


@pytest.mark.parametrize("has_turn", [True, False])
async def test_a_discarded_message_at_fault_ends_its_hold(place: MemoryStage, clock: Clock, has_turn: bool) -> None:
    told: Told = []
    place.broker.create_topic("late", 1)
    place.broker.max_record_bytes = 100
    await place.publish(message(b"l" * 1000))
    made = await failed(place, told, clock)
    (first,) = await place.sequences()
    await place.database.run(lambda session: outbox.discard(session, DEFAULT_TABLES, first, actor="me"))
    clock.now += 1
    if has_turn:
        assert await made.publish() == 0
    else:
        await without_the_turn(place, made, clock)
    assert kinds(told) == [events.OutboxHeldBack, events.OutboxResumed]


async def test_the_database_is_asked_in_one_interval_once(place: MemoryStage, clock: Clock) -> None:
    await place.publish(message(b"1"))
    made = await failed(place, [], clock)
    asked = 0
    remaining = made._rows.remaining

    async def counted(*args: object) -> object:
        nonlocal asked
        asked += 1
        return await remaining(*args)  # type: ignore[arg-type]

    made._rows.remaining = counted  # type: ignore[assignment]
    clock.now += 1
    for _ in range(5):
        assert await made.publish() == 0
    assert asked == 1


async def test_a_silent_process_that_lost_the_turn_to_a_third_one_is_waited_for_no_longer() -> None:
    """This process may not get the turn for hours: the third one works."""
    told: Told = []
    holder: RelayHolder | None = RelayHolder("process 7", 0.0)

    async def look() -> RelayHolder | None:
        return holder

    awaited = Awaited(look, Announcer([told.append]))
    await awaited.note(0.0)
    await awaited.note(20.0)
    assert told == []  # it gives signs of life
    holder = RelayHolder("process 7", 20.0)
    await awaited.note(40.0)
    await awaited.note(41.0)
    holder = RelayHolder("process 8", 0.1)
    await awaited.note(42.0)
    await awaited.note(43.0)
    assert [type(event) for event in told] == [events.OutboxTurnAwaited, events.OutboxTurnCame]
    holder = RelayHolder("process 8", None)  # whose signs of life cannot be seen
    await awaited.note(100.0)
    assert len(told) == 2
    await awaited.note(103.0)
    assert isinstance(told[-1], events.OutboxTurnAwaited)
    holder = None
    await awaited.note(104.0)
    assert [type(event) for event in told[2:]] == [events.OutboxTurnAwaited, events.OutboxTurnCame]
