"""The engine under control: lanes, budget, drain, stop, halt; on the broker in memory, databases real."""

import asyncio
import gc
import re
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from consumerkit import Context, Events, Handler, Ordering, header
from consumerkit.errors import Unavailable
from consumerkit.events import (
    GroupCommitted,
    GroupRolledBack,
    HandlerPaused,
    HandlerStopped,
    MessagesSkipped,
    MessageSuspected,
    PartitionsRevoked,
    PartitionTaken,
    WorkerStopped,
)
from consumerkit.handlers.handler import AnyHandler
from consumerkit.transports.memory.group import MemoryConsumer
from tests.integration import memory_stage
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, opened
from tests.services import PostgresServer


@pytest.fixture
async def place(each_url: str) -> AsyncIterator[MemoryStage]:
    """On each database; SQLite has one lane."""
    async with opened(each_url) as made:
        yield made


@pytest.fixture
async def server_place(postgres: PostgresServer, database: str) -> AsyncIterator[MemoryStage]:
    """Where lanes write at once."""
    async with opened(postgres.url(database)) as made:
        yield made


class Gate:
    """Stops handlers until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.reached = asyncio.Event()

    async def __call__(self, context: Context) -> None:
        self.reached.set()
        await self.opened.wait()


def once(message_ids: list[str], count: int) -> None:
    """Each ID from 0 on is there exactly once."""
    assert Counter(message_ids) == Counter(map(str, range(count)))


# Order.


async def test_each_keys_order_is_kept_through_lanes_and_failures(server_place: MemoryStage) -> None:
    failed: set[str] = set()

    async def fail_at_times(context: Context) -> None:
        if int(context.message_id) % 97 == 13 and context.attempt < 3 and len(failed) < 40:
            failed.add(context.message_id)
            raise ValueError(context.message_id)

    for number in range(2000):
        server_place.append(number, key=b"key-%d" % (number % 40))
    async with server_place.run(Write(fail_at_times, concurrency=4)) as run:
        lines = await server_place.until_written(run, 2000)
    once([line.message_id for line in lines], 2000)
    by_key: dict[bytes | None, list[int]] = defaultdict(list)
    for line in lines:
        by_key[line.key].append(int(line.message_id))
    assert all(numbers == sorted(numbers) for numbers in by_key.values())
    assert failed
    assert len({event.lane for event in run.seen(GroupCommitted)}) == 4
    assert server_place.committed() == server_place.ends()


async def test_each_partitions_order_is_kept_where_that_is_declared(server_place: MemoryStage) -> None:
    for number in range(1000):
        server_place.append(number, key=b"key-%d" % (number % 40))
    async with server_place.run(Write(concurrency=3, ordering=Ordering.PARTITION)) as run:
        lines = await server_place.until_written(run, 1000)
    offsets: dict[int, list[int]] = defaultdict(list)
    for line in lines:
        offsets[line.partition].append(line.offset)
    assert all(found == list(range(len(found))) for found in offsets.values())


async def test_a_key_that_waits_holds_up_no_other_lane(server_place: MemoryStage) -> None:
    gate = Gate()

    async def wait_for_one(context: Context) -> None:
        if context.message.key == b"slow":
            await gate(context)

    lanes = 4
    free = [b"key-%d" % n for n in range(40) if hash(b"key-%d" % n) % lanes != hash(b"slow") % lanes]
    server_place.append(0, key=b"slow")
    for number, key in enumerate(free, start=1):
        server_place.append(number, key=key)
    async with server_place.run(Write(wait_for_one, concurrency=lanes)) as run:
        assert free
        await server_place.until_written(run, len(free))
        await run.until(lambda: bool(server_place.committed()), "offsets of the others")
        slow = server_place.broker.records(TOPIC)
        [place_of_slow] = [message for message in slow if message.key == b"slow"]
        committed = {at.partition: offset for at, offset in server_place.committed().items()}
        # Its partition's position stays at it, whatever was finished behind it.
        assert committed.get(place_of_slow.partition, 0) <= place_of_slow.offset
        gate.opened.set()
        await server_place.until_written(run, len(free) + 1)
    assert server_place.committed() == server_place.ends()


async def test_a_position_never_passes_what_is_unfinished(place: MemoryStage) -> None:
    """Killed in effect: what the broker has is never ahead of what the database has."""
    seen: list[tuple[int, int]] = []

    async def look(context: Context) -> None:
        message = context.message
        committed = {at.partition: offset for at, offset in place.committed().items()}
        seen.append((committed.get(message.partition, 0), message.offset))
        await asyncio.sleep(0.002)

    for number in range(400):
        place.append(number, key=b"key-%d" % (number % 20))
    async with place.run(Write(look, concurrency=3, batch_size=7)) as run:
        await place.until_written(run, 400)
    assert len(seen) >= 400
    assert all(committed <= offset for committed, offset in seen)
    assert max(committed for committed, _ in seen) > 0


async def test_what_is_skipped_and_what_fails_in_one_group_are_both_accounted_for(place: MemoryStage) -> None:
    async def fail_once(context: Context) -> None:
        if context.message_id == "30" and handler.seen.count("30") < 3:
            raise ValueError

    handler = Write(fail_once, events=Events(by=header("type"), types={"known": bytes}, unknown="skip"))
    for number in range(60):
        kind = b"known" if number % 3 == 0 else b"unknown"
        place.broker.append(TOPIC, b"v", key=b"k", headers=(("id", b"%d" % number), ("type", kind)))
    async with place.run(handler) as run:
        lines = await place.until_written(run, 20)
        await run.until(lambda: place.committed() == place.ends(), "all offsets")
    assert [int(line.message_id) for line in lines] == list(range(0, 60, 3))
    assert run.seen(GroupRolledBack)
    assert sum(event.count for event in run.seen(MessagesSkipped)) == 40


# The transaction.


async def test_a_handlers_transaction_is_read_committed_and_has_our_limits(server_place: MemoryStage) -> None:
    settings = ("transaction_isolation", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    shown: list[object] = []

    async def look(context: Context) -> None:
        shown.extend([await context.session.scalar(text(f"SHOW {name}")) for name in settings])

    server_place.append(0)
    engine = create_async_engine(server_place.url, isolation_level="SERIALIZABLE")
    server_place.given = engine
    async with server_place.run(Write(look), transaction_timeout=14.0) as run:
        await server_place.until_written(run, 1)
    await engine.dispose()
    assert shown == ["read committed", "14s", "7s", "14s"]


# The budget.


async def test_what_is_in_hand_stays_within_the_budget(place: MemoryStage) -> None:
    gate = Gate()
    for number in range(30):
        place.append(number, value=b"x" * 10_000)
    async with place.run(Write(gate), memory_budget=200_000) as run:
        await asyncio.wait_for(gate.reached.wait(), 120)
        [consumer] = place.broker.group("write").members
        paused = "_paused"
        await run.until(lambda: bool(getattr(consumer, paused)), "the pause")
        for number in range(30, 60):
            place.append(number, value=b"x" * 10_000)
        await asyncio.sleep(0.7)
        assert set(getattr(consumer, "_reading").values()) <= {0, 30}  # noqa: B009 - the broker's own account
        gate.opened.set()
        lines = await place.until_written(run, 60)
        assert not getattr(consumer, paused)
    once([line.message_id for line in lines], 60)


# Rebalances.


async def test_what_is_under_way_is_finished_before_its_partition_goes(server_place: MemoryStage) -> None:
    gate = Gate()
    for number in range(80):
        server_place.append(number, key=b"key-%d" % number)
    first, second = Write(gate, batch_size=10, batch_time=30.0), Write(batch_size=10)
    async with server_place.run(first) as one:
        await asyncio.wait_for(gate.reached.wait(), 120)
        async with server_place.run(second) as other:
            await other.until(lambda: len(server_place.broker.group("write").members) == 2, "the second member")
            await asyncio.sleep(0.2)
            assert not one.seen(PartitionsRevoked)
            gate.opened.set()
            await server_place.until_written(other, 80)
            lines = await server_place.lines()
            await other.until(lambda: server_place.committed() == server_place.ends(), "all offsets")
    once([line.message_id for line in lines], 80)
    revoked = one.seen(PartitionsRevoked)[0]
    assert 60 <= revoked.dropped < 80
    assert not revoked.lost
    # Nothing was begun in vain: each message was handled once, by one of the two.
    assert not one.seen(GroupRolledBack)
    assert len(first.seen) + len(second.seen) == 80
    assert second.seen


async def test_a_drain_ends_at_its_limit_and_nothing_is_doubled(server_place: MemoryStage) -> None:
    gate = Gate()
    server_place.append(0, partition=1)  # which goes to the second member
    async with server_place.run(Write(gate), drain_timeout=0.4) as one:
        await asyncio.wait_for(gate.reached.wait(), 120)
        began = time.monotonic()
        second = Write()
        async with server_place.run(second) as other:
            await one.until(lambda: bool(one.seen(PartitionsRevoked)), "the revocation")
            assert time.monotonic() - began > 0.3
            await asyncio.sleep(0.3)
            # The next owner waits at the ledger's unique key.
            assert await server_place.lines() == []
            gate.opened.set()
            await other.until(lambda: bool(other.seen(GroupCommitted)) or bool(second.seen), "the copy")
            await other.until(lambda: server_place.committed() == server_place.ends(), "offsets")
            lines = await server_place.lines()
    once([line.message_id for line in lines], 1)
    assert second.seen == [] or one.seen(GroupRolledBack)


async def test_lost_partitions_are_delivered_again_and_nothing_is_doubled(place: MemoryStage) -> None:
    async def take_time(_: Context) -> None:
        await asyncio.sleep(0.005)

    for number in range(200):
        place.append(number, key=b"key-%d" % number)
    handler = Write(take_time, batch_size=20)
    async with place.run(handler) as run:
        await run.until(lambda: len(handler.seen) > 30, "some work")
        await place.broker.expire("write")
        lines = await place.until_written(run, 200)
        await run.until(lambda: place.committed() == place.ends(), "all offsets")
    once([line.message_id for line in lines], 200)
    assert any(event.lost for event in run.seen(PartitionsRevoked))


# The end.


async def test_partitions_that_go_while_the_broker_does_not_tell_of_them_end_nothing(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe, asked, gone = MemoryConsumer.describe, asyncio.Event(), asyncio.Event()

    async def silent(self: MemoryConsumer, partitions: Any) -> Any:
        asked.set()
        if not gone.is_set():
            await gone.wait()
            raise Unavailable("no answer")
        return await describe(self, partitions)

    monkeypatch.setattr(MemoryConsumer, "describe", silent)
    for number in range(10):
        place.append(number)
    async with place.run(Write()) as run:
        await asyncio.wait_for(asked.wait(), 120)
        for member in place.broker.group("write").members:
            await member.lose()
        gone.set()
        await asyncio.sleep(0.1)
        await place.broker.expire("write")
        await place.until_written(run, 10)


async def test_stopping_finishes_what_is_under_way_and_begins_nothing(place: MemoryStage) -> None:
    gate = Gate()
    for number in range(50):
        place.append(number)
    async with place.run(Write(gate, batch_size=5)) as run:
        await asyncio.wait_for(gate.reached.wait(), 120)
        stopping = asyncio.create_task(run.stop())
        await asyncio.sleep(0.2)
        gate.opened.set()
        assert await stopping
    lines = await place.lines()
    assert [int(line.message_id) for line in lines] == [0, 1, 2, 3, 4]
    assert sum(place.committed().values()) == 5


async def test_a_handler_beyond_grace_is_rolled_back_and_delivered_again(place: MemoryStage) -> None:
    gate = Gate()
    place.append(0)
    async with place.run(Write(gate), grace=0.3) as run:
        await asyncio.wait_for(gate.reached.wait(), 120)
        assert not await asyncio.wait_for(run.stop(), 120)
    assert await place.lines() == []
    assert sum(place.committed().values()) == 0
    async with place.run(Write()) as run:
        lines = await place.until_written(run, 1)
    once([line.message_id for line in lines], 1)


async def test_a_handler_that_cannot_run_leaves_the_others_running(place: MemoryStage) -> None:
    async def look_elsewhere(context: Context) -> None:
        await context.session.execute(text("SELECT * FROM nowhere"))

    broken = Write(look_elsewhere, name="broken")
    place.append(0)
    async with place.run(broken, Write()) as run:
        await run.until(lambda: bool(run.seen(MessageSuspected)), "the suspicion")
        place.append(1, key=b"other")
        lines = await place.until_written(run, 2)
        await run.until(lambda: bool(run.seen(HandlerPaused)), "the pause")
        assert {event.handler for event in run.seen(HandlerPaused)} == {"broken"}
        assert "nowhere" in run.seen(HandlerPaused)[0].error
        assert not run.seen(HandlerStopped)
    once([line.message_id for line in lines], 2)
    assert place.committed("write") == place.ends()


async def test_two_lanes_that_cannot_run_are_one_halt_and_no_error_is_forgotten(
    server_place: MemoryStage, caplog: pytest.LogCaptureFixture
) -> None:
    async def halted() -> None:
        broken = Write(name="broken", ordering=Ordering.NONE, batch_size=1, concurrency=2)
        async with server_place.run(broken, Write()) as run:
            await run.until(lambda: bool(run.seen(PartitionTaken)), "the partitions")
            replace = "UPDATE consumerkit_consumers SET id = id + 10 WHERE name = 'broken'"
            await server_place.database.run(lambda session: session.execute(text(replace)).close())
            for number in range(2):
                server_place.append(number)
            await run.until(lambda: bool(run.seen(HandlerStopped)), "the halt")
            assert await run.stop()
            assert len(run.seen(HandlerStopped)) == 1

    await halted()
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_worker_whose_last_handler_cannot_run_ends(place: MemoryStage) -> None:
    async with place.run(Write()) as run:
        await run.until(lambda: bool(run.seen(PartitionTaken)), "the partitions")
        replace = "UPDATE consumerkit_consumers SET id = id + 10"
        await place.database.run(lambda session: session.execute(text(replace)).close())
        place.append(0)
        assert re.match("handler 'write' stopped, and no other is left: .*replaced", str(await run.failure()))


# Waiting for one's turn, and a stop that keeps its grace.


class PlainWrite(Handler[bytes]):
    name = "plain"
    topic = TOPIC
    message_id = header("id")

    def handle(self, event: bytes, context: Context[Session]) -> None:
        context.session.add(memory_stage.line(context))


@pytest.mark.parametrize("handler", [Write(), PlainWrite()], ids=["coroutine", "plain"])
async def test_waiting_for_the_turn_to_write_is_no_transaction(tmp_path: Path, handler: AnyHandler) -> None:
    file = tmp_path / "lines.sqlite"
    place = MemoryStage(f"sqlite:///{file}")
    await place.create_tables()
    async with place.run(handler) as run:
        await run.until(lambda: len(run.seen(PartitionTaken)) == 4, "all partitions")
        [engine] = run.worker._parts.engines
        with closing(sqlite3.connect(file, isolation_level=None, timeout=120, check_same_thread=False)) as another:
            # In a thread: a transaction of the worker's, such as its retention's, can only end while this loop runs.
            await asyncio.to_thread(another.execute, "BEGIN IMMEDIATE")
            place.append(1)
            executor = next(iter(engine._lanes)).grouping.executor
            await run.until(lambda: executor.busy_since is not None, "the wait for the turn")
            await asyncio.sleep(0.3)
            # Otherwise a process whose database is busy elsewhere would be ended by its watchdog.
            assert engine.oldest_transaction() == 0.0
            another.execute("ROLLBACK")
        await place.until_written(run, 1)
    await place.close()


async def test_a_transaction_counts_from_its_beginning(place: MemoryStage) -> None:
    gate = Gate()
    place.append(1)
    async with place.run(Write(gate)) as run:
        await gate.reached.wait()
        [engine] = run.worker._parts.engines
        await run.until(lambda: engine.oldest_transaction() > 0.2, "a transaction that lasts")
        gate.opened.set()
        await place.until_written(run, 1)


async def test_a_stop_keeps_its_grace_whatever_does_not_answer(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that is away keeps the client from leaving its group; the wait for that is part of the grace."""
    left = asyncio.Event()
    stop = MemoryConsumer.stop

    async def silent(self: MemoryConsumer) -> None:
        left.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await stop(self)

    monkeypatch.setattr(MemoryConsumer, "stop", silent)
    gate = Gate()
    place.append(1)
    async with place.run(Write(gate), grace=2.0, transaction_timeout=600.0) as run:
        await gate.reached.wait()
        run.stopping.set()
        assert not await run.task
    assert left.is_set()
    # Without the bound it is the grace and fifteen seconds for the client, at least.
    [stopped] = run.seen(WorkerStopped)
    assert stopped.seconds < 15
