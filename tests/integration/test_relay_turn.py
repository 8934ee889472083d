"""The relay's turn: a frozen process keeps it for seconds, and a process that waits for it reports that."""

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from consumerkit import events
from consumerkit.events import Announcer, Event
from consumerkit.relay import Relay, turn
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.outbox import OutboxMessage
from consumerkit.storage.tables import DEFAULT_TABLES
from consumerkit.transports.base import Record, SendFailure
from consumerkit.transports.memory import MemoryProducer
from consumerkit.worker.readiness import States
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import MemoryStage, opened
from tests.services.process import freeze

COUNT = 4


async def until(condition: Callable[[], bool], within: float = 100.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within} s"
        await asyncio.sleep(0.02)


class ToFile:
    """A producer whose topic is a file; it answers the first call, and another one once `gate` exists."""

    def __init__(self, topic: Path, gate: Path | None = None) -> None:
        self._topic = topic
        self._gate = gate
        self.calls = 0

    async def start(self) -> None:
        pass

    async def send(self, records: Sequence[Record]) -> list[SendFailure | None]:
        self.calls += 1
        with self._topic.open("ab") as topic:
            topic.write(b"".join((record.value or b"") + b"\n" for record in records))
        if self.calls > 1 and self._gate is not None:
            print("holding", flush=True)
            await until(self._gate.exists)
        return [None] * len(records)

    async def stop(self) -> None:
        pass


def relay_to(database: Database, producer: ToFile | MemoryProducer, told: list[Event]) -> Relay:
    dialect = dialect_for(database.dialect_name, DEFAULT_TABLES)
    return Relay(database, dialect, DEFAULT_TABLES, producer, Announcer([told.append]), asyncio.Event())


async def hold(url: str, topic: str, gate: str) -> None:
    """In a process of its own: publish, and never come further than the second answer."""
    database, told = Database(url), list[Event]()
    producer = ToFile(Path(topic), Path(gate))
    made = relay_to(database, producer, told)
    running = asyncio.create_task(made.run())
    await until(lambda: any(isinstance(event, events.Trouble) for event in told))
    made.stop()
    await running
    await database.dispose()
    print(f"{producer.calls} calls; {[event.error for event in told if isinstance(event, events.Trouble)]}", flush=True)


@asynccontextmanager
async def frozen(url: str, topic: Path, gate: Path) -> AsyncIterator[Process]:
    """A process that has the turn and is frozen."""
    code = "import asyncio, sys; from tests.integration.test_relay_turn import hold; asyncio.run(hold(*sys.argv[1:]))"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, url, str(topic), str(gate), stdout=PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"holding\n"
        freeze(process.pid)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryStage]:
    async with opened(fresh_url(request, tmp_path)) as made:
        await made.publish(*(OutboxMessage("out", b"k", b"%d" % n, ()) for n in range(COUNT)))
        yield made


@pytest.mark.calm
@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
async def test_a_frozen_process_loses_its_turn_and_sends_nothing_more(place: MemoryStage, tmp_path: Path) -> None:
    topic, gate = tmp_path / "topic", tmp_path / "gate"
    told: list[Event] = []
    async with frozen(place.url, topic, gate) as process:
        made = relay_to(place.database, ToFile(topic), told)
        assert await made.publish() == 0
        sent, end = 0, time.monotonic() + 60
        while not sent:
            assert time.monotonic() < end, "the frozen process keeps the turn"
            await asyncio.sleep(0.2)
            sent = await made.publish()
        assert await place.pending() == []
        gate.touch()
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout is not None
        last = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        assert last.startswith("2 calls; "), "it went on sending after it had lost its turn"
        assert "the relay's turn was lost" in last
        await asyncio.wait_for(process.wait(), 60)
    firsts = list(dict.fromkeys(topic.read_text().split()))
    assert firsts == [str(n) for n in range(COUNT)]


@pytest.mark.calm
@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
async def test_who_waits_for_a_frozen_process_says_so(
    place: MemoryStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server ends a process that keeps a file locked: a person must."""
    monkeypatch.setattr(turn, "SILENCE_LIMIT", 1.0)
    topic, gate = tmp_path / "topic", tmp_path / "gate"
    told: list[Event] = []
    states = States()
    states(events.WorkerStarted(handlers=()))
    async with frozen(place.url, topic, gate) as process:
        made = relay_to(place.database, ToFile(topic), told)
        end = time.monotonic() + 60
        while not told:
            assert time.monotonic() < end, "nothing was told"
            assert await made.publish() == 0
            await asyncio.sleep(0.1)
        (awaited,) = told
        assert isinstance(awaited, events.OutboxTurnAwaited)
        assert "fresh.sqlite-consumerkit-relay" in awaited.holder
        states(awaited)
        assert "end that process" in str(states.readiness(time.monotonic()))
        process.kill()
        await process.wait()
        assert await made.publish() > 0
    over = next(event for event in told if isinstance(event, events.OutboxTurnCame))
    states(over)
    assert states.readiness(time.monotonic()).ready


@pytest.mark.parametrize("place", ["postgresql", "sqlite"], indirect=True)
async def test_a_process_that_works_or_an_empty_outbox_is_nothing_to_tell(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(turn, "SILENCE_LIMIT", 1.0)
    monkeypatch.setattr(turn, "KEPT_ALIVE", 0.1)
    topic, gate = tmp_path / "topic", tmp_path / "gate"
    told: list[Event] = []
    holding = asyncio.create_task(relay_to(place.database, ToFile(topic, gate), []).publish())
    await until(lambda: topic.exists() and len(topic.read_text().split()) == 2)
    waiting = relay_to(place.database, ToFile(topic), told)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        assert await waiting.publish() == 0
        await asyncio.sleep(0.1)
    gate.touch()
    assert await holding == COUNT
    assert told == []


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
async def test_a_turn_that_another_transaction_holds_is_told_by_the_servers_process(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "SILENCE_LIMIT", 0.5)
    told: list[Event] = []
    dialect = dialect_for("postgresql", DEFAULT_TABLES)
    async with place.database.transaction() as run:
        assert await run(dialect.lock_relay)
        pid = await run(lambda session: session.scalar(text("SELECT pg_backend_pid()")))
        waiting = relay_to(place.database, MemoryProducer(place.broker), told)
        end = time.monotonic() + 60
        while not told:
            assert time.monotonic() < end, "nothing was told"
            await waiting.publish()
            await asyncio.sleep(0.1)
    (awaited,) = told
    assert isinstance(awaited, events.OutboxTurnAwaited)
    assert f"process {pid}" in awaited.holder


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
async def test_what_was_acknowledged_is_removed_before_anything_is_sent_after_a_lost_turn(
    place: MemoryStage, tmp_path: Path
) -> None:
    topic, gate = tmp_path / "topic", tmp_path / "gate"
    made = relay_to(place.database, ToFile(topic, gate), [])
    publishing = asyncio.create_task(made.publish())
    await until(lambda: topic.exists() and len(topic.read_text().split()) == 2)
    end_others = (
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid() "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    ended = await place.database.run(lambda session: session.execute(text(end_others)).all())
    assert ended
    gate.touch()
    with pytest.raises(turn.TurnLost):
        await asyncio.wait_for(publishing, 60)
    while await made.publish() or await place.pending():
        pass
    assert topic.read_text().split() == [str(n) for n in range(COUNT)]
