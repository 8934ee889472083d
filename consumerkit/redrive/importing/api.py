"""The function that a program calls to import a dead-letter topic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from consumerkit.dead_letters.formats import Convention
from consumerkit.errors import ConfigurationError, StartError
from consumerkit.handlers.declaration import Declaration
from consumerkit.redaction.plain_words import shown_word
from consumerkit.redrive.importing.insert import Register
from consumerkit.redrive.importing.parse import Screen
from consumerkit.redrive.importing.report import ImportReport, ImportResult, Line
from consumerkit.redrive.importing.route import Settled
from consumerkit.redrive.importing.run import Importer, ImportProgress, Watch
from consumerkit.storage import consumers, progress, schema
from consumerkit.storage.audit import current_user
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import Dialect, dialect_for
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.tables import Tables
from consumerkit.transports.base import TopicInfo, Transport

__all__ = ["ImportProgress", "ImportReport", "ImportResult", "Line", "Surroundings", "Watch", "import_letters"]

_NO_CONSUMER = -1


class Surroundings(Protocol):
    """The parts of a `Worker` that an import needs; the worker need not be started."""

    @property
    def database(self) -> Database:
        """The database."""

    @property
    def dialect(self) -> Dialect:
        """Its dialect."""

    @property
    def tables(self) -> Tables:
        """Our tables in it."""

    @property
    def transport(self) -> Transport:
        """The broker."""

    @property
    def declarations(self) -> Sequence[Declaration]:
        """The handlers."""


async def import_letters(
    worker: Surroundings,
    handler: str,
    topic: str,
    *,
    convention: Convention = Convention.AUTO,
    as_topic: str | None = None,
    offsets: Mapping[int, int] | None = None,
    by: str | None = None,
    note: str = "",
    dry_run: bool = False,
    keep: int = 50,
    watch: Watch | None = None,
) -> ImportReport:
    """Make the records of a dead-letter topic dead letters of a handler, which can then be redriven.

    The call reads the records that the topic holds at its start, outside any group, and does not change the topic. A
    record whose letter exists already, or whose message was processed since, adds nothing. So the call may be
    interrupted and repeated, or run twice at once. A record that breaks its convention is reported and left alone.

    Args:
        worker: The `Worker` that has the handler; it need not run.
        handler: The handler's name. Its codec and its `message_id` read the messages.
        topic: The dead-letter topic.
        convention: The convention of the records' writer; `AUTO` looks at each record.
        as_topic: The handler's topic that takes letters whose message stood in another topic or has no known place.
            None leaves those alone.
        offsets: Where to begin, by partition; the others begin with the oldest record.
        by: Who imports, for the record; the operating system's user by default.
        note: The reason, for the audit record.
        dry_run: Whether to write nothing; the report then shows the result that each record would have.
        keep: How many records the report shows one by one.
        watch: Called after each batch.

    Raises:
        ConfigurationError: There is no such handler, or a topic does not fit it.
        StartError: A topic or a table is missing, a server cannot be reached, or the handler's name is bound elsewhere.
        PartitionUnusable: The topic can be read no further.
        Unavailable: A service that decoding needs is down.

    Example:
        >>> async def take_over(worker: Worker) -> None:
        ...     report = await import_letters(worker, "credit-account", "payments-dlt", convention=Convention.SPRING)
        ...     print(report.imported, report.counts)
    """
    declared = _declared(worker, handler)
    topics = await _topics(worker, declared, topic, as_topic)
    tables = await worker.database.locate(worker.tables)
    number = await worker.database.run(lambda session: _number(session, tables, declared, dry_run=dry_run))
    ledger = Ledger(tables, dialect_for(worker.database.dialect_name, tables), number, declared.name)
    register = Register(ledger, dry_run=dry_run)
    screen = Screen(declared, topics, convention, as_topic, await _settled(worker, ledger, topics))
    importer = Importer(worker.database, screen, register, by or current_user(), note, keep)
    reader = worker.transport.reader(topic, offsets)
    try:
        return await importer.read_out(reader, topic, await reader.start(), watch)
    finally:
        await reader.stop()


def _declared(worker: Surroundings, handler: str) -> Declaration:
    found = {declared.name: declared for declared in worker.declarations}
    if handler not in found:
        raise ConfigurationError(
            f"no handler is called {shown_word(handler)}; the handlers are {', '.join(map(repr, found))}"
        )
    return found[handler]


async def _topics(
    worker: Surroundings, declared: Declaration, topic: str, as_topic: str | None
) -> Mapping[str, TopicInfo]:
    if topic in declared.topics:
        raise ConfigurationError(
            f"handler {declared.name!r} reads topic {topic!r} itself; name the topic that holds its dead letters"
        )
    if as_topic is not None and as_topic not in declared.topics:
        raise ConfigurationError(
            f"--as-topic {shown_word(as_topic)}: handler {declared.name!r} does not read it; name one of "
            f"{', '.join(map(repr, declared.topics))}"
        )
    found = await worker.transport.topics(declared.topics)
    for name in declared.topics:
        if name not in found:
            raise StartError(f"handler {declared.name!r}: topic {name!r} does not exist; create it, or correct it")
    return found


async def _settled(worker: Surroundings, ledger: Ledger, topics: Mapping[str, TopicInfo]) -> Settled:
    """Return the offset below which each partition is settled: the handler's mark, at most the log's end."""
    marks = await worker.database.run(lambda session: progress.marks(session.connection(), ledger))
    ours = {name: marks.get((name, info.topic_id), {}) for name, info in topics.items()}
    return {name: await _within(worker.transport, name, found) for name, found in ours.items() if found}


async def _within(transport: Transport, topic: str, marks: Mapping[int, int]) -> dict[int, int]:
    """Limit marks to the log's end: a mark beyond it is from a log that was truncated since."""
    reader = transport.reader(topic)
    try:
        spans = await reader.start()
    finally:
        await reader.stop()
    return {number: min(mark, spans[number].end) for number, mark in marks.items() if number in spans}


def _number(session: Session, tables: Tables, declared: Declaration, *, dry_run: bool) -> int:
    """Return the handler's number; enters a handler that has never started, except in a dry run."""
    schema.check(session, tables)
    if dry_run:
        known = session.scalar(select(tables.consumers.c.id).where(tables.consumers.c.name == declared.name))
        return _NO_CONSUMER if known is None else known
    return consumers.bind(
        session,
        tables,
        name=declared.name,
        group=declared.group,
        topics=declared.topics,
        ordering=declared.ordering.value,
    )
