"""Errors out of a TaskGroup decide as they would alone, whatever else is in the group."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from consumerkit import Context, Defer, Reject, Retry, Unavailable, fixed
from consumerkit.events import Event, MessageDeadLettered, Trouble
from consumerkit.outcome import Reason
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.memory_stage import MemoryStage, Write, opened

RETRY = Retry(attempts=3, wait=fixed(0), on=(TimeoutError, ConnectionError))
ONCE: dict[str, list[Exception]] = {
    "0": [TimeoutError("slow")],
    "1": [TimeoutError("slow"), Defer(0.1, "closed")],
    "2": [Unavailable("the provider"), Reject("no")],
}
ALWAYS: dict[str, list[Exception]] = {
    "3": [TimeoutError("slow"), Defer(9), Reject("no such account")],
    "4": [ValueError("bad"), TimeoutError("slow")],
    "5": [TimeoutError("slow"), ConnectionError("gone")],
    "6": [KeyError("deep")],
}


@pytest.fixture
async def place(each_url: str) -> AsyncIterator[MemoryStage]:
    async with opened(each_url, partitions=1) as made:
        yield made


async def raises(error: BaseException) -> None:
    raise error


async def test_each_error_of_a_group_has_its_say(place: MemoryStage) -> None:
    attempts: dict[str, list[int]] = {}

    async def before(context: Context) -> None:
        number = context.message_id
        seen = attempts.setdefault(number, [])
        seen.append(context.attempt)
        errors = ALWAYS.get(number) or (ONCE.get(number, []) if len(seen) == 1 else [])
        if number == "6":
            deep: Exception = errors[0]
            for _ in range(5_000):
                deep = ExceptionGroup("", [deep])
            raise deep
        async with asyncio.TaskGroup() as group:
            for error in errors:
                group.create_task(raises(error))

    for number in range(8):
        place.append(number, key=b"%d" % number)
    async with place.run(Write(before, retry=RETRY, batch_size=1)) as run:
        await place.until_written(run, 4)
        await run.until(lambda: len(run.seen(MessageDeadLettered)) == 4, "the dead letters")
        assert not run.task.done()
    assert {line.message_id for line in await place.lines()} == {"0", "1", "2", "7"}
    reasons = {event.message_id: event.reason for event in run.seen(MessageDeadLettered)}
    assert reasons == {"3": Reason.REJECTED, "4": Reason.EXHAUSTED, "5": Reason.EXHAUSTED, "6": Reason.EXHAUSTED}
    # A failing service is no attempt, nor is a message that is deferred.
    assert {number: seen[-1] for number, seen in attempts.items()} == {
        "0": 2,
        "1": 1,
        "2": 1,
        "3": 1,
        "4": 1,
        "5": 3,
        "6": 1,
        "7": 1,
    }
    c = DEFAULT_TABLES.dead_letters.c
    rows = await place.database.run(lambda s: list(s.execute(select(c.message_id, c.error_type, c.error))))
    assert {tuple(row) for row in rows} == {
        ("3", "consumerkit.errors.Reject", "no such account"),
        ("4", "ValueError", "bad"),
        ("5", "TimeoutError", "slow"),
        ("6", "KeyError", "'deep'"),
    }
    assert len(run.seen(Trouble)) == 1


async def test_what_is_no_exception_among_them_ends_no_lane(place: MemoryStage) -> None:
    async def before(context: Context) -> None:
        if context.message_id == "0":
            raise BaseExceptionGroup("", [SystemExit(3), Reject("no")])

    for number in range(2):
        place.append(number, key=b"%d" % number)
    events: list[Event] = []
    async with place.run(Write(before)) as run:
        await place.until_written(run, 1)
        await run.until(lambda: bool(run.seen(MessageDeadLettered)), "the dead letter")
        events += run.events
    assert [event.reason for event in run.seen(MessageDeadLettered)] == [Reason.REJECTED]


async def test_a_lost_connection_in_a_group_is_no_attempt(place: MemoryStage) -> None:
    attempts: list[int] = []

    async def before(context: Context) -> None:
        attempts.append(context.attempt)
        if len(attempts) == 1:
            lost = OperationalError("SELECT 1", None, ConnectionResetError())
            raise ExceptionGroup("", [ValueError("bad"), Reject("no"), lost])

    place.append(0)
    async with place.run(Write(before)) as run:
        await place.until_written(run, 1)
    assert attempts == [1, 1]
    assert not run.seen(MessageDeadLettered)
