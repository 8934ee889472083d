"""Whatever a dead-letter topic holds, each record is imported or reported, and every command can read the result."""

import asyncio
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from typer.testing import CliRunner

from consumerkit.cli.main import app
from consumerkit.message import Headers, Message
from consumerkit.redrive import Selection, discard, redrive, resolve
from consumerkit.redrive.importing.api import ImportReport, ImportResult, import_letters
from consumerkit.storage.database import Database
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import TOPIC, MemoryStage, Write
from tests.unit.dead_letters.hostile import OURS, records
from tests.unit.dead_letters.records import connect, replaced, spring

DEAD = "dead"
LETTERS = DEFAULT_TABLES.dead_letters
MANY = 10_000
_SETTINGS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
    "phases": [Phase.generate],
}


@pytest.fixture(params=["postgresql", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    found = fresh_url(request, tmp_path)
    asyncio.run(created(found))
    return found


async def created(url: str) -> None:
    stage = MemoryStage(url)
    await stage.create_tables()
    await stage.close()


async def imported(url: str, given: Sequence[Message], handler: Any = None) -> ImportReport:
    """Import these records from a topic of their own; nothing is in the way of any other."""
    stage = MemoryStage(url)
    stage.broker.create_topic(DEAD, 1)
    for one in given:
        stage.broker.append(DEAD, one.value, key=one.key, headers=one.headers, partition=0, timestamp=one.timestamp)
    worker = stage.make(handler or Write())
    try:
        return await import_letters(worker, "write", DEAD, as_topic=TOPIC, keep=len(given))
    finally:
        await worker.database.dispose()
        await stage.close()


async def letters(url: str) -> list[int]:
    database = Database(url)
    try:
        return await database.run(lambda session: list(session.scalars(select(LETTERS.c.id).order_by(LETTERS.c.id))))
    finally:
        await database.dispose()


def command(url: str, *words: str) -> str:
    found = CliRunner().invoke(app, [*words, "--database", url])
    assert found.exit_code == 0, (words, found.output, found.exception)
    return found.output


def read_by_every_command(url: str, numbers: Sequence[int]) -> None:
    """Show, export, list, group; then bring back, resolve, discard."""
    assert len(command(url, "dead-letters", "export", "--state", "all").splitlines()) >= len(numbers)
    command(url, "dead-letters", "list", "--json", "--limit", "1000")
    command(url, "dead-letters", "list")
    command(url, "dead-letters", "groups")
    for number in numbers[:2]:
        json.loads(command(url, "dead-letters", "show", str(number), "--json", "--value"))
        shown = command(url, "dead-letters", "show", str(number), "--value")
        assert all(character.isprintable() or character == "\n" for character in shown)
    asyncio.run(decided(url, numbers))


async def decided(url: str, numbers: Sequence[int]) -> None:
    """Bring back, resolve and discard a third each; the first hundred are also asked what would become of them."""
    database = Database(url)
    try:
        report = await redrive(database, Selection(ids=numbers[:100]), dry_run=True)
        assert len(report.letters) == len(numbers[:100])
        third = len(numbers) // 3
        for work, some in ((resolve, numbers[:third]), (discard, numbers[third : 2 * third])):
            for ids in portions(some):
                assert (await work(database, Selection(ids=ids), note="hostile")).left == ()
        for ids in portions(numbers[2 * third :]):
            await redrive(database, Selection(ids=ids))
    finally:
        await database.dispose()


def portions(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """A run has a transaction for each place in its letters, and each reads all of the run's letters."""
    return (numbers[at : at + 100] for at in range(0, len(numbers), 100))


def kept(url: str, given: Sequence[Message]) -> list[int]:
    """Import records, where none may be lost or refused; return the IDs of their letters."""
    before = asyncio.run(letters(url))
    report = asyncio.run(imported(url, given))
    after = asyncio.run(letters(url))
    assert sum(report.counts.values()) == len(given), "a record was lost"
    assert report.imported == len(after) - len(before)
    assert report.counts[ImportResult.REFUSED] == 0, [
        line.why for line in report.lines if line.result is ImportResult.REFUSED
    ]
    told = {line.record.offset for line in report.lines}
    assert len(told) >= len(given) - report.imported
    return sorted(set(after) - set(before))


@pytest.mark.timeout(600)
@settings(max_examples=4, **_SETTINGS)
@given(given=st.lists(records(), min_size=30, max_size=40))
def test_hostile_records_are_imported_or_told_and_what_is_stored_is_read(url: str, given: list[Message]) -> None:
    read_by_every_command(url, kept(url, given))


def many(count: int) -> list[Message]:
    """So many hostile records, each an example of Hypothesis."""
    found: list[Message] = []

    @settings(max_examples=count, **_SETTINGS)
    @given(record=records())
    def collect(record: Message) -> None:
        found.append(record)

    collect()
    return found


@pytest.mark.matrix
@pytest.mark.timeout(3600)
def test_ten_thousand_hostile_records_are_imported_or_told_and_read(url: str) -> None:
    # One topic and one import: what costs is to open and close a database, and not a record.
    given = many(MANY)
    assert len(given) >= MANY
    numbers = kept(url, given)
    assert len(numbers) > MANY // 4
    read_by_every_command(url, numbers)
    for number in numbers[2 :: max(1, len(numbers) // 50)]:
        json.loads(command(url, "dead-letters", "show", str(number), "--json", "--value"))


def bent(headers: Headers, name: str, value: bytes) -> Message:
    return Message("dead", 0, 0, b"k", b"v", (("id", b"1"), *replaced(headers, name, value)), 1_700_000_000_000)


UNUSABLE = (
    bent(OURS, "consumerkit-dlq-topic-id", b"\x00" * 22),
    bent(OURS, "consumerkit-dlq-topic-id", b"A" * 12_000),
    bent(OURS, "consumerkit-dlq-first-failed-at", b"0001-01-01T00:00:00+23:59"),
    bent(OURS, "consumerkit-dlq-first-failed-at", b"9999-12-31T23:59:59-23:59"),
    bent(OURS, "consumerkit-dlq-offset", b"9223372036854775808"),
    bent(OURS, "consumerkit-dlq-partition", b"2147483648"),
    bent(spring(TOPIC, 1, 7), "kafka_dlt-original-offset", b"\xff" * 8),
    bent(connect(TOPIC, 1, 7), "__connect.errors.partition", b"-7"),
)


def test_one_that_cannot_be_imported_is_told_by_its_place_and_the_batch_goes_on(url: str) -> None:
    for round_, (record, at) in enumerate(itertools.product(UNUSABLE, (0, 2, 4))):
        good = [bent(OURS, "consumerkit-dlq-offset", b"%d" % (4 * round_ + number)) for number in range(4)]
        good.insert(at, record)
        report = asyncio.run(imported(url, good))
        assert (report.counts[ImportResult.MALFORMED], report.imported) == (1, 4), (record, at)
        (line,) = report.lines
        assert (line.record, line.result) == ((DEAD, 0, at), ImportResult.MALFORMED), record
        assert line.why.startswith("header '")
    read_by_every_command(url, asyncio.run(letters(url)))


class Fails:
    """Seals nothing that begins so: as a database that will not have one record of a batch."""

    def seal(self, payload: bytes) -> bytes:
        if payload == b"unstorable":
            raise RuntimeError("no")
        return payload

    def unseal(self, sealed: bytes) -> bytes:
        return sealed


def test_one_that_the_database_will_not_have_is_told_and_the_batch_goes_on(url: str) -> None:
    from dataclasses import replace

    async def work() -> tuple[ImportReport, int]:
        stage = MemoryStage(url)
        stage.broker.create_topic(DEAD, 1)
        for number in range(9):
            value = b"unstorable" if number == 4 else b"v"
            headers = (("id", b"%d" % number), *spring(TOPIC, 1, number))
            stage.broker.append(DEAD, value, key=b"k", headers=headers, partition=0)
        worker = stage.make(Write(), tables=replace(DEFAULT_TABLES, sealer=Fails()))
        try:
            report = await import_letters(worker, "write", DEAD)
            count = select(func.count()).select_from(LETTERS)
            return report, await worker.database.run(lambda session: session.scalars(count).one())
        finally:
            await worker.database.dispose()
            await stage.close()

    report, count = asyncio.run(work())
    assert (report.counts, count) == ({ImportResult.IMPORTED: 8, ImportResult.REFUSED: 1}, 8)
    (line,) = report.lines
    assert (line.record, line.result) == ((DEAD, 0, 4), ImportResult.REFUSED)
    assert "it cannot be stored: RuntimeError" in line.why
