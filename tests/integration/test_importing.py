"""Dead-letter topics of ours and of others, imported into a handler's dead letters: on the broker in memory."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from consumerkit import Context, DeadLetter, Events, Handler, Reject, Retry, coordinates, fixed, header
from consumerkit.dead_letters.formats import Convention
from consumerkit.errors import ConfigurationError, StartError
from consumerkit.events import GroupCommitted
from consumerkit.message import Headers, Message
from consumerkit.outcome import Outcome
from consumerkit.redrive.importing.api import ImportProgress, ImportReport, ImportResult, import_letters
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.memory_stage import TOPIC, MemoryStage, Write
from tests.unit.dead_letters.records import connect, replaced, spring, without

pytestmark = pytest.mark.every_variant

DEAD = "dead"


@dataclass
class Payment:
    amount: int


class Typed(Handler[Payment]):
    name = "write"
    topic = TOPIC
    message_id = header("id")

    def __init__(self, **declared: Any) -> None:
        vars(self).update(declared)

    async def handle(self, event: Payment, context: Context) -> None:
        raise Reject("not today")


class Interrupted(Exception):
    pass


@pytest.fixture
async def stage(each_url: str) -> AsyncIterator[MemoryStage]:
    made = MemoryStage(each_url)
    made.broker.create_topic(DEAD, 2)
    await made.create_tables()
    try:
        yield made
    finally:
        await made.close()


def dead(
    stage: MemoryStage,
    number: int,
    headers: Headers | None = None,
    *,
    key: bytes | None = b"k",
    value: bytes | None = b"v",
    partition: int = 0,
) -> Message:
    """A record of the dead-letter topic: of the message with this ID, which stood at this offset."""
    added = spring(TOPIC, 1, number) if headers is None else headers
    own = (("id", b"%d" % number), ("trace", b"\xff"))
    return stage.broker.append(DEAD, value, key=key, headers=(*own, *added), partition=partition)


async def imported(stage: MemoryStage, handler: Any = None, topic: str = DEAD, **options: Any) -> ImportReport:
    worker = stage.make(handler or Write())
    try:
        return await import_letters(worker, "write", topic, **options)
    finally:
        await worker.database.dispose()


async def rows(stage: MemoryStage) -> list[Any]:
    table = DEFAULT_TABLES.dead_letters
    return await stage.database.run(lambda session: list(session.execute(select(table).order_by(table.c.id))))


async def ledger(stage: MemoryStage) -> dict[str, Outcome]:
    c = DEFAULT_TABLES.processed_messages.c
    found = await stage.database.run(lambda session: list(session.execute(select(c.message_id, c.outcome))))
    return {name: Outcome(outcome) for name, outcome in found}


async def count(stage: MemoryStage, table: Any) -> int:
    def work(session: Session) -> int:
        return session.scalars(select(func.count()).select_from(table)).one()

    return await stage.database.run(work)


# -- what is written


async def test_springs_letters_become_dead_letters_whole_and_only_once(stage: MemoryStage) -> None:
    for number in range(250):
        dead(stage, number, partition=number % 2)
    first = await imported(stage, convention=Convention.SPRING, by="ann", note="from the old service")
    again = await imported(stage, convention=Convention.SPRING)
    assert first.counts == {ImportResult.IMPORTED: 250}
    assert again.counts == {ImportResult.PRESENT: 250}
    found = await rows(stage)
    assert sorted(row.offset for row in found) == list(range(250))
    row = next(row for row in found if row.offset == 7)
    assert (row.topic, row.topic_id, row.partition, row.timestamp) == (TOPIC, "origin:t[1]", 1, 1_700_000_000_123)
    assert (bytes(row.key), bytes(row.value), row.size) == (b"k", b"v", 1 + 1 + 2 + 1 + 5 + 1 + 2 * 24)
    assert json.loads(row.headers) == [["id", "7"], ["trace", "/w==", "base64"]]
    assert (row.message_id, row.reason, row.attempts) == ("7", "exhausted", 0)
    assert (row.error_type, row.error) == ("java.lang.IllegalStateException", "Listener failed; no such account")
    assert "Payments.java:12" in row.stack
    assert await ledger(stage) == {str(number): Outcome.DEAD for number in range(250)}
    (action,) = {(a.actor, a.action) for a in await actions(stage)}
    assert action == ("ann", "import")
    details = [json.loads(a.details) for a in await actions(stage)]
    assert sum(one["imported"] for one in details) == 250
    assert {(one["topic"], one["note"]) for one in details} == {(DEAD, "from the old service")}


async def actions(stage: MemoryStage) -> list[Any]:
    return await stage.database.run(lambda session: list(session.execute(select(DEFAULT_TABLES.operator_actions))))


async def test_connects_letters_become_dead_letters(stage: MemoryStage) -> None:
    dead(stage, 3, connect(TOPIC, 2, 3))
    dead(stage, 4, connect(TOPIC, 2, 4, stage="VALUE_CONVERTER"))
    assert (await imported(stage)).counts == {ImportResult.IMPORTED: 2}
    assert [(row.offset, row.reason, row.partition) for row in await rows(stage)] == [
        (3, "exhausted", 2),
        (4, "undecodable", 2),
    ]


async def test_our_own_dead_letter_topic_fills_an_empty_table_and_finds_a_full_one(stage: MemoryStage) -> None:
    handler = Typed(dead_letter=DeadLetter(DEAD))
    stage.append(1, value=b'{"amount": 1}')
    stage.append(2, value=b"not JSON")
    async with stage.run(handler):
        while len(stage.broker.records(DEAD)) < 2:  # noqa: ASYNC110 - the broker has no event to wait for
            await asyncio.sleep(0.02)
    before = await rows(stage)
    assert (await imported(stage, handler)).counts == {ImportResult.PRESENT: 2}
    await emptied(stage)
    assert (await imported(stage, handler)).counts == {ImportResult.IMPORTED: 2}
    after = await rows(stage)
    same = ("topic", "topic_id", "partition", "offset", "timestamp", "key", "value", "headers", "size", "digest")
    more = ("message_id", "reason", "error_type", "error", "stack", "attempts")
    for name in same + more:
        assert sorted(map(repr, (getattr(row, name) for row in before))) == sorted(
            map(repr, (getattr(row, name) for row in after))
        ), name
    assert await ledger(stage) == {"1": Outcome.DEAD}


async def emptied(stage: MemoryStage) -> None:
    """As after the loss of the database."""

    def work(session: Session) -> None:
        for table in (DEFAULT_TABLES.dead_letters, DEFAULT_TABLES.processed_messages):
            session.execute(table.delete())

    await stage.database.run(work)


async def test_a_resend_of_an_imported_letter_is_known_as_that_of_a_dead_one(stage: MemoryStage) -> None:
    dead(stage, 1)
    await imported(stage)
    stage.append(1)
    stage.append(2)
    async with stage.run(Write()) as run:
        lines = await stage.until_written(run, 1)
        await run.until(lambda: sum(stage.committed().values()) == 2, "both offsets")
    assert [line.message_id for line in lines] == ["2"]
    assert sum(event.duplicates_of_dead for event in run.seen(GroupCommitted)) == 1


async def test_an_id_of_coordinates_is_that_of_an_origin_of_its_own_where_a_stranger_names_the_place(
    stage: MemoryStage,
) -> None:
    sent = stage.append(1, partition=1)
    dead(stage, 1, spring(TOPIC, sent.partition, sent.offset))
    await imported(stage, Write(message_id=coordinates()))
    async with stage.run(Write(message_id=coordinates())) as run:
        await run.until(lambda: stage.committed() == stage.ends(), "the offset")
    assert len(await stage.lines()) == 1, "the message that is really there was taken for the one that a letter names"
    assert sorted((await ledger(stage)).values()) == [Outcome.PROCESSED, Outcome.DEAD]


async def test_what_the_handler_cannot_read_either_is_undecodable_and_claims_nothing(stage: MemoryStage) -> None:
    dead(stage, 1, value=b"not JSON")
    dead(stage, 2, value=b'{"amount": 2}')
    stage.broker.append(DEAD, b'{"amount": 3}', headers=spring(TOPIC, 1, 3), partition=0)
    report = await imported(stage, Typed())
    assert report.counts == {ImportResult.IMPORTED: 3}
    found = [(row.offset, row.reason, row.digest is None, row.message_id) for row in await rows(stage)]
    assert found == [(1, "undecodable", True, "1"), (2, "exhausted", False, "2"), (3, "unidentified", True, None)]
    first = (await rows(stage))[0]
    assert first.error.startswith("Listener failed; no such account; here: ")
    assert await ledger(stage) == {"2": Outcome.DEAD}


async def test_secrets_in_foreign_errors_are_hidden_and_long_ones_cut(stage: MemoryStage) -> None:
    long = b"password=hunter2 " + b"x" * 10_000
    headers = replaced(spring(TOPIC, 1, 1), "kafka_dlt-exception-message", long)
    dead(stage, 1, replaced(headers, "kafka_dlt-exception-stacktrace", b"at x\n" * 10_000 + b"\x00"))
    await imported(stage)
    (row,) = await rows(stage)
    assert "hunter2" not in row.error
    assert (len(row.error), len(row.stack)) == (2_000, 8_192)


# -- what is left alone


async def test_what_was_processed_since_is_not_dead(stage: MemoryStage) -> None:
    stage.append(1)
    async with stage.run(Write()) as run:
        await stage.until_written(run, 1)
    dead(stage, 1)
    dead(stage, 2)
    report = await imported(stage)
    assert report.counts == {ImportResult.PROCESSED: 1, ImportResult.IMPORTED: 1}
    assert [(line.result, line.message_id) for line in report.lines] == [(ImportResult.PROCESSED, "1")]
    assert not report.wants_a_look
    assert [row.message_id for row in await rows(stage)] == ["2"]


async def test_another_payload_under_a_known_id_is_a_conflict_and_changes_no_ledger_row(stage: MemoryStage) -> None:
    stage.append(1, value=b"one")
    async with stage.run(Write()) as run:
        await stage.until_written(run, 1)
    dead(stage, 1, value=b"another")
    assert (await imported(stage)).counts == {ImportResult.CONFLICT: 1}
    (row,) = await rows(stage)
    assert (row.reason, row.message_id) == ("conflict", "1")
    assert "java.lang.IllegalStateException" in row.error
    assert await ledger(stage) == {"1": Outcome.PROCESSED}


async def test_what_waits_for_its_next_attempt_is_not_dead(stage: MemoryStage) -> None:
    async def down(context: Context) -> None:
        raise ConnectionRefusedError

    stage.append(1)
    async with stage.run(Write(down, retry=Retry(attempts=3, wait=fixed(60)))) as run:
        await run.until(lambda: bool(stage.committed()), "the parking")
        stage_rows = await ledger(stage)
    if stage_rows != {"1": Outcome.PARKED}:
        pytest.fail(f"nothing was parked: {stage_rows}")
    dead(stage, 1)
    assert (await imported(stage)).counts == {ImportResult.PARKED: 1}
    assert await rows(stage) == []


async def test_two_letters_of_one_id_are_both_kept_and_another_payload_is_a_conflict(stage: MemoryStage) -> None:
    dead(stage, 1, spring(TOPIC, 0, 10))
    dead(stage, 1, spring(TOPIC, 0, 11))
    dead(stage, 1, spring(TOPIC, 0, 12), value=b"another")
    assert (await imported(stage)).counts == {ImportResult.IMPORTED: 2, ImportResult.CONFLICT: 1}
    assert [row.reason for row in await rows(stage)] == ["exhausted", "exhausted", "conflict"]
    assert (await imported(stage)).counts == {ImportResult.PRESENT: 3}


async def test_malformed_records_are_told_and_left_alone(stage: MemoryStage) -> None:
    dead(stage, 1, replaced(spring(TOPIC, 1, 1), "kafka_dlt-original-offset", b"7"))
    dead(stage, 2, without(connect(TOPIC, 1, 2), "__connect.errors.partition"))
    dead(stage, 3, ())
    dead(stage, 4, (*spring(TOPIC, 1, 4), *connect(TOPIC, 1, 4)))
    dead(stage, 5)
    report = await imported(stage)
    assert report.counts == {ImportResult.MALFORMED: 3, ImportResult.UNRECOGNISED: 1, ImportResult.IMPORTED: 1}
    assert report.wants_a_look
    told = {line.record.offset: line.why for line in report.lines}
    assert told[0] == "header 'kafka_dlt-original-offset': it has 1 bytes, not 8"
    assert told[1] == "header '__connect.errors.partition' is missing"
    assert "any known convention" in told[2]
    assert "several conventions" in told[3]
    assert [row.message_id for row in await rows(stage)] == ["5"]


async def test_another_handlers_letters_and_messages_without_their_value_are_left_alone(stage: MemoryStage) -> None:
    stage.append(1, value=b'{"amount": 1}')
    stage.append(2, value=b'{"amount": "' + b"9" * 500 + b'"}')
    async with stage.run(Typed(dead_letter=DeadLetter(DEAD), name="other", group="other", size_limit=400)):
        while len(stage.broker.records(DEAD)) < 2:  # noqa: ASYNC110 - the broker has no event to wait for
            await asyncio.sleep(0.02)
    assert (await imported(stage)).counts == {ImportResult.OTHERS: 2}
    worker = stage.make(Typed(name="other", group="other"))
    await emptied(stage)
    report = await import_letters(worker, "other", DEAD)
    await worker.database.dispose()
    assert report.counts == {ImportResult.IMPORTED: 1, ImportResult.ABSENT: 1}


async def test_what_the_handler_would_skip_or_finds_too_large_is_left_alone(stage: MemoryStage) -> None:
    dead(stage, 1, (*spring(TOPIC, 1, 1), ("type", b"unknown")))
    dead(stage, 2, (*spring(TOPIC, 1, 2), ("type", b"paid")), value=b"x" * 1_000)
    events = Events(by=header("type"), types={"paid": bytes}, unknown="skip")
    report = await imported(stage, Write(events=events, size_limit=500))
    assert report.counts == {ImportResult.SKIPPED: 1, ImportResult.OVERSIZED: 1}
    assert await rows(stage) == []


# -- letters from elsewhere


async def test_letters_from_another_topic_need_to_be_told_where_they_belong(stage: MemoryStage) -> None:
    for number in range(20):
        dead(stage, number, spring("elsewhere", number % 3, number), key=b"key-%d" % (number % 5))
    left = await imported(stage)
    assert left.counts == {ImportResult.UNPLACED: 20}
    assert "--as-topic" in left.lines[0].why
    assert (await imported(stage, as_topic=TOPIC)).counts == {ImportResult.IMPORTED: 20}
    found = await rows(stage)
    assert {row.topic for row in found} == {TOPIC}
    assert {row.topic_id for row in found} == {f"origin:elsewhere[{number}]" for number in range(3)}
    for row in found:
        assert row.partition == stage.broker.append(TOPIC, b"", key=bytes(row.key)).partition


async def test_letters_from_elsewhere_are_not_imported_again_when_the_topic_has_grown(stage: MemoryStage) -> None:
    for number in range(20):
        dead(stage, number, spring("elsewhere", 0, number), key=b"key-%d" % number)
    await imported(stage, as_topic=TOPIC)
    grown = MemoryStage(stage.url, partitions=7)
    grown.broker.logs.topics[DEAD] = stage.broker.logs.topics[DEAD]
    assert (await imported(grown, as_topic=TOPIC)).counts == {ImportResult.PRESENT: 20}
    await grown.close()


async def test_letters_that_do_not_tell_where_they_stood_are_known_by_their_record(stage: MemoryStage) -> None:
    dead(stage, 1, connect("", -1, -1), partition=1)
    dead(stage, 2, connect("", -1, -1), partition=0)
    assert (await imported(stage)).counts == {ImportResult.UNPLACED: 2}
    assert (await imported(stage, as_topic=TOPIC)).counts == {ImportResult.IMPORTED: 2}
    assert (await imported(stage, as_topic=TOPIC)).counts == {ImportResult.PRESENT: 2}
    topic_id = stage.broker.logs.topics[DEAD].id
    assert {row.topic_id for row in await rows(stage)} == {f"dlq:{topic_id}[{number}]" for number in (0, 1)}


# -- how it runs


async def test_a_dry_run_tells_what_a_run_does_and_writes_nothing(stage: MemoryStage) -> None:
    stage.append(1)
    async with stage.run(Write()) as run:
        await stage.until_written(run, 1)
    dead(stage, 1)
    dead(stage, 2)
    dead(stage, 2)
    dead(stage, 3, spring(TOPIC, 1, 30))
    dead(stage, 3, spring(TOPIC, 1, 31), value=b"another")
    dead(stage, 4, ())
    before = await count(stage, DEFAULT_TABLES.processed_messages)
    told = await imported(stage, dry_run=True)
    assert await rows(stage) == []
    assert await count(stage, DEFAULT_TABLES.processed_messages) == before
    assert await actions(stage) == []
    assert [line.result for line in told.lines] == [
        ImportResult.PROCESSED,
        ImportResult.IMPORTED,
        ImportResult.PRESENT,
        ImportResult.IMPORTED,
        ImportResult.CONFLICT,
        ImportResult.UNRECOGNISED,
    ]
    assert (await imported(stage)).counts == told.counts


async def test_a_dry_run_enters_no_handler(stage: MemoryStage) -> None:
    dead(stage, 1)
    await imported(stage, dry_run=True)
    assert await count(stage, DEFAULT_TABLES.consumers) == 0


async def test_an_interrupted_import_is_run_again_and_two_at_once_do_not_double_anything(stage: MemoryStage) -> None:
    for number in range(350):
        dead(stage, number, partition=number % 2)

    def interrupt(progress: ImportProgress) -> None:
        if progress.read >= 100:
            raise Interrupted

    with pytest.raises(Interrupted):
        await imported(stage, watch=interrupt)
    there = await count(stage, DEFAULT_TABLES.dead_letters)
    assert 0 < there < 350
    reports = await asyncio.gather(imported(stage), imported(stage))
    assert sum(report.imported for report in reports) == 350 - there
    assert sorted(row.offset for row in await rows(stage)) == list(range(350))


async def test_progress_is_told_and_reading_ends_where_the_topic_ended(stage: MemoryStage) -> None:
    for number in range(250):
        dead(stage, number)
    seen: list[ImportProgress] = []

    def watch(progress: ImportProgress) -> None:
        seen.append(progress)
        dead(stage, 1_000 + len(seen))

    report = await imported(stage, watch=watch)
    assert report.counts == {ImportResult.IMPORTED: 250}
    assert [progress.read for progress in seen] == [100, 200, 250]
    assert {progress.total for progress in seen} == {250}
    assert stage.broker.committed("write") == {}


async def test_it_begins_where_it_is_told(stage: MemoryStage) -> None:
    for number in range(10):
        dead(stage, number)
    assert (await imported(stage, offsets={0: 8})).counts == {ImportResult.IMPORTED: 2}


async def test_only_so_many_records_are_told_of_by_themselves(stage: MemoryStage) -> None:
    for number in range(10):
        dead(stage, number)
    report = await imported(stage, dry_run=True, keep=4)
    assert (len(report.lines), report.untold) == (4, 6)


async def test_what_does_not_fit_is_said_before_anything_is_read(stage: MemoryStage) -> None:
    worker = stage.make(Write(), Typed(name="other", group="other"))
    with pytest.raises(ConfigurationError, match="no handler is called 'writ'; the handlers are 'write', 'other'"):
        await import_letters(worker, "writ", DEAD)
    with pytest.raises(ConfigurationError, match="reads topic 't' itself"):
        await import_letters(worker, "write", TOPIC)
    with pytest.raises(ConfigurationError, match="--as-topic 'dead': handler 'write' does not read it; name"):
        await import_letters(worker, "write", DEAD, as_topic=DEAD)
    with pytest.raises(StartError, match="no such topic: missing"):
        await import_letters(worker, "write", "missing")
    await worker.database.dispose()
