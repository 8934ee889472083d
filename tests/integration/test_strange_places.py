"""Places in the log that a foreign record names: its letter never counts as one of our messages, nor the reverse."""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from consumerkit import Context, DeadLetter, Ordering, Reject, Retry, fixed, header
from consumerkit.events import MessageDeadLettered, OriginClash
from consumerkit.message import Headers
from consumerkit.redrive import Selection, redrive
from consumerkit.redrive.importing.api import ImportReport, ImportResult, import_letters
from consumerkit.storage.dead_letters.letters import State
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, line
from tests.unit.dead_letters.records import connect, spring

DLQ, DEAD = "dlq", "dead"
Named = Callable[[MemoryStage, int, int], Headers]
LETTERS, LOT = DEFAULT_TABLES.dead_letters, DEFAULT_TABLES.parked_messages


def ours(stage: MemoryStage, partition: int, offset: int, topic_id: str | None = None) -> Headers:
    facts = {
        "reason": "exhausted",
        "error-type": "ValueError",
        "topic": TOPIC,
        "topic-id": topic_id or stage.broker.logs.topics[TOPIC].id,
        "partition": str(partition),
        "offset": str(offset),
        "timestamp": "1700000000000",
        "consumer": "write",
        "attempts": "1",
        "first-failed-at": "2026-01-01T00:00:00+00:00",
    }
    return tuple((f"consumerkit-dlq-{name}", fact.encode()) for name, fact in facts.items())


NAMED: dict[str, Named] = {
    "spring": lambda _, partition, offset: spring(TOPIC, partition, offset),
    "connect": lambda _, partition, offset: connect(TOPIC, partition, offset),
    "ours": ours,
    "another-incarnation": lambda stage, p, offset: ours(stage, p, offset, "AAAAAAAAAAAAAAAAAAAAAA"),
}


@pytest.fixture
async def stage(each_url: str) -> AsyncIterator[MemoryStage]:
    made = MemoryStage(each_url)
    made.broker.create_topic(DEAD, 2)
    made.broker.create_topic(DLQ, 4)
    await made.create_tables()
    try:
        yield made
    finally:
        await made.close()


class Picky(Write):
    """Gives up messages whose value begins so, fails those that shall wait, and takes the others."""

    dead_letter = DeadLetter(DLQ)
    retry = Retry(attempts=5, wait=fixed(3600))

    def __init__(self, **declared: Any) -> None:
        super().__init__(None, **declared)
        self.ran: list[tuple[str, bytes]] = []
        self.healed = False

    async def handle(self, event: bytes, context: Context) -> None:
        self.ran.append((context.message_id, event))
        if event.startswith(b"bad") and not self.healed:
            raise Reject("not this one")
        if event.startswith(b"wait") and not self.healed:
            raise ConnectionRefusedError
        context.session.add(line(context))


async def imported(stage: MemoryStage, handler: Any = None, topic: str = DEAD, **options: Any) -> ImportReport:
    worker = stage.make(handler or Picky())
    try:
        return await import_letters(worker, "write", topic, **options)
    finally:
        await worker.database.dispose()


async def rows(stage: MemoryStage, table: Any = LETTERS) -> list[Any]:
    return await stage.database.run(lambda session: list(session.execute(select(table).order_by(table.c.id))))


def stranger(stage: MemoryStage, headers: Headers, number: int = 666, value: bytes = b"a stranger's") -> None:
    stage.broker.append(DEAD, value, key=b"k", headers=(("id", b"%d" % number), *headers), partition=0)


async def until(what: Callable[[], Any], why: str) -> None:
    for _ in range(1500):
        found = what()
        if await found if inspect.isawaitable(found) else found:
            return
        await asyncio.sleep(0.02)
    pytest.fail(why)


@pytest.mark.parametrize("convention", NAMED)
@pytest.mark.parametrize("begun", [False, True], ids=["before-the-first-run", "beyond-the-mark"])
async def test_a_message_that_dies_where_a_letter_says_it_stood_has_its_letter_its_record_and_its_line(
    stage: MemoryStage, convention: str, begun: bool
) -> None:
    """Another cluster's, an older incarnation's, or forged: beyond the log's end, where a real message comes later."""
    if begun:
        stage.append(1, partition=1)
        async with stage.run(Picky()) as run:
            await run.until(lambda: stage.committed() == stage.ends(), "the first message")
    at = stage.broker.logs.topics[TOPIC].partitions[1].end
    stranger(stage, NAMED[convention](stage, 1, at))
    assert (await imported(stage)).counts == {ImportResult.IMPORTED: 1}
    sent = stage.append(7, value=b"bad", partition=1)
    assert sent.offset == at
    async with stage.run(Picky()) as run:
        await run.until(lambda: stage.committed() == stage.ends(), "the offset")
        await until(lambda: bool(stage.broker.records(DLQ)), "no record in the dead-letter topic")
    assert [(row.message_id, bytes(row.value)) for row in await rows(stage)] == [
        ("666", b"a stranger's"),
        ("7", b"bad"),
    ]
    assert [event.message_id for event in run.seen(MessageDeadLettered)] == ["7"]
    (record,) = stage.broker.records(DLQ)
    assert (record.value, record.header("id")) == (b"bad", b"7")
    # Its own record is found again, by its ID and its payload; the foreign one is still there once.
    assert (await imported(stage, topic=DLQ)).counts == {ImportResult.PRESENT: 1}
    assert (await imported(stage)).counts == {ImportResult.PRESENT: 1}


async def occupied(stage: MemoryStage, partition: int, offset: int, **more: Any) -> None:
    """Another message's letter is at a place of ours, written by any release."""
    values = {
        "consumer": 1,
        "topic": TOPIC,
        "topic_id": stage.broker.logs.topics[TOPIC].id,
        "partition": partition,
        "offset": offset,
        "timestamp": 0,
        "key": b"k",
        "value": b"a stranger's",
        "headers": json.dumps([["id", "666"]]),
        "size": 20,
        "digest": b"d" * 16,
        "message_id": "666",
        "fingerprint": b"f" * 16,
        "reason": "exhausted",
        "error_type": "E",
        "error": "",
        "stack": "",
        "attempts": 1,
    }
    await stage.database.run(lambda session: session.execute(insert(LETTERS).values(**{**values, **more})))


async def started(stage: MemoryStage, handler: Any = None) -> None:
    """The handler has begun, and is known."""
    stage.append(1, partition=0)
    async with stage.run(handler or Picky()) as run:
        await run.until(lambda: stage.committed() == stage.ends(), "the first message")


async def changed(stage: MemoryStage, statement: Any) -> None:
    await stage.database.run(lambda session: session.execute(statement))


@pytest.mark.parametrize("known", ["with its ID", "without an ID", "erased"])
async def test_a_row_that_stands_at_the_place_of_a_message_that_dies_is_told_and_swallows_nothing(
    stage: MemoryStage, known: str
) -> None:
    more: dict[str, Any] = {}
    if known != "with its ID":
        more = {"digest": None, "fingerprint": None, "message_id": None}
    if known == "erased":
        more |= {
            "value": None,
            "key": None,
            "headers": "[]",
            "erased_at": LETTERS.c.dead_at.type.python_type(2026, 1, 1),
        }
    await started(stage)
    sent = stage.append(7, value=b"bad", partition=1)
    await occupied(stage, 1, sent.offset, **more)
    async with stage.run(Picky()) as run:
        await run.until(lambda: stage.committed() == stage.ends(), "the offset")
        await until(lambda: bool(stage.broker.records(DLQ)), "no record in the dead-letter topic")
    found = await rows(stage)
    assert [row.message_id for row in found] == [more.get("message_id", "666"), "7"]
    (clash,) = run.seen(OriginClash)
    assert (clash.partition, clash.offset, clash.message_id) == ((TOPIC, 1), sent.offset, "7")
    assert (clash.table, clash.row) == ("dead_letters", found[0].id)
    assert [event.message_id for event in run.seen(MessageDeadLettered)] == ["7"]


async def test_what_is_delivered_again_has_still_one_letter_where_its_place_was_taken(stage: MemoryStage) -> None:
    """Without an ID no claim shows that it was there before: a rewind delivers it again."""
    await started(stage)
    sent = stage.append(7, value=b"bad", partition=1)
    await occupied(stage, 1, sent.offset)
    handler = Picky(message_id=header("no-such-header"))
    progress = DEFAULT_TABLES.partition_progress
    for _ in range(2):
        async with stage.run(handler) as run:
            await run.until(lambda: stage.committed() == stage.ends(), "the offset")
            await until(lambda: bool(stage.broker.records(DLQ)), "no record in the dead-letter topic")
        back = update(progress).where(progress.c.partition == 1).values(mark=sent.offset)
        await changed(stage, back)
    assert [row.reason for row in await rows(stage)] == ["exhausted", "unidentified"]
    assert len(stage.broker.records(DLQ)) == 1


@pytest.mark.parametrize("ordering", [Ordering.KEY, Ordering.NONE])
async def test_a_message_is_parked_beside_a_redriven_letter_that_names_its_place(
    stage: MemoryStage, ordering: Ordering
) -> None:
    """S17: the real ID must not run with the foreign payload, and the real message must not be lost."""
    await started(stage)
    sent = stage.append(7, value=b"wait: ours", key=b"other", partition=1)
    await occupied(stage, 1, sent.offset, value=b"wait: a stranger's")
    report = await redrive(stage.database, Selection(ids=[1]))
    assert report.redriven == 1
    handler = Picky(ordering=ordering)
    async with stage.run(handler) as run:
        await until(lambda: parked(stage, 2), "nothing is parked")
        handler.healed = True
        await until(lambda: none_is_parked_if_due(stage), "something waits still")
    assert sorted(set(handler.ran)) == [("666", b"wait: a stranger's"), ("7", b"wait: ours")]
    assert sorted(one.message_id for one in await stage.lines()) == ["1", "666", "7"]
    (clash,) = run.seen(OriginClash)
    assert (clash.message_id, clash.table) == ("7", "parked_messages")
    assert [row.state for row in await rows(stage)] == [State.RESOLVED.value]


async def none_is_parked_if_due(stage: MemoryStage) -> bool:
    """Make due what waits: again and again, since an attempt that is under way may postpone it once more."""
    await stage.database.run(lambda session: session.execute(update(LOT).values(due_at=LOT.c.parked_at)))
    return await parked(stage, 0)


async def parked(stage: MemoryStage, count: int) -> bool:
    return len(await rows(stage, LOT)) == count


async def test_a_letter_is_redriven_beside_a_message_that_is_parked_at_the_place_it_names(stage: MemoryStage) -> None:
    await started(stage)
    sent = stage.append(7, value=b"wait: ours", key=b"other", partition=1)
    handler = Picky()
    async with stage.run(handler) as run:
        await until(lambda: parked(stage, 1), "nothing is parked")
        await occupied(stage, 1, sent.offset)
        report = await redrive(stage.database, Selection(ids=[1]))
        assert (report.redriven, report.left) == (1, ())
        await stage.until_written(run, 2)
        handler.healed = True
        await stage.database.run(lambda session: session.execute(update(LOT).values(due_at=LOT.c.parked_at)))
        await stage.until_written(run, 3)
    assert sorted(one.message_id for one in await stage.lines()) == ["1", "666", "7"]
    assert [row.state for row in await rows(stage)] == [State.RESOLVED.value]


async def test_a_forged_letter_at_a_settled_place_of_ours_is_put_beside_the_one_that_is_there(
    stage: MemoryStage,
) -> None:
    await started(stage)
    sent = stage.append(7, value=b"bad", partition=1)
    async with stage.run(Picky()) as run:
        await run.until(lambda: stage.committed() == stage.ends(), "the offset")
    stranger(stage, ours(stage, 1, sent.offset))
    stranger(stage, ours(stage, 1, sent.offset), 667)
    told = await imported(stage, dry_run=True)
    report = await imported(stage)
    assert report.counts == told.counts == {ImportResult.BESIDE: 2}
    assert report.wants_a_look
    assert [one.message_id for one in report.lines] == ["666", "667"]
    found = await rows(stage)
    assert [row.message_id for row in found] == ["7", "666", "667"]
    assert len({(row.topic_id, row.partition, row.offset) for row in found}) == 3
    assert (await imported(stage)).counts == {ImportResult.PRESENT: 2}


@pytest.mark.parametrize("convention", NAMED)
async def test_two_strangers_that_name_one_place_have_a_letter_each(stage: MemoryStage, convention: str) -> None:
    headers: Sequence[Any] = NAMED[convention](stage, 1, 5)
    for number in (1, 2, 2):
        stranger(stage, tuple(headers), number, b"%d" % number)
    assert (await imported(stage)).counts == {ImportResult.IMPORTED: 1, ImportResult.BESIDE: 1, ImportResult.PRESENT: 1}
    assert (await imported(stage)).counts == {ImportResult.PRESENT: 3}
    assert [row.message_id for row in await rows(stage)] == ["1", "2"]
    report = await redrive(stage.database, Selection(handler="write"))
    assert report.redriven == 2


async def test_a_log_that_was_cut_below_the_mark_has_new_messages_there(stage: MemoryStage) -> None:
    await started(stage)
    progress = DEFAULT_TABLES.partition_progress
    beyond = update(progress).where(progress.c.partition == 1).values(mark=50)
    await stage.database.run(lambda session: session.execute(beyond))
    stranger(stage, ours(stage, 1, 40))
    await imported(stage)
    assert [row.topic_id for row in await rows(stage)] == ["origin:t[1]"]
