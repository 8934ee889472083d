"""Checks of a worker that is built or starts: each finds an error before the first message, as one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from consumerkit.errors import ConfigurationError, StartError
from consumerkit.handlers.attributes import in_short
from consumerkit.handlers.declaration import Declaration
from consumerkit.handlers.declared_steps import runs_steps_inside
from consumerkit.handlers.methods import method_of
from consumerkit.maintenance import retention_warnings
from consumerkit.policies.payload_retention import PayloadRetention
from consumerkit.redaction.database_words import database_words
from consumerkit.redaction.text import redact
from consumerkit.redaction.variables import without_variables
from consumerkit.storage import consumers, pooler, schema, server, waiting
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import Dialect
from consumerkit.storage.faults import Fault, fault_of
from consumerkit.storage.location import located as find
from consumerkit.storage.maintenance.pruning import PruneStatements
from consumerkit.storage.tables import Tables
from consumerkit.transports.base import TopicInfo, Transport
from consumerkit.transports.kafka import Kafka

T = TypeVar("T")
_TRANSPORT = ("consumer", "producer", "topics", "keeps", "create_topics")
_log = logging.getLogger(__name__)


def arguments(kafka: object, tables: object, observers: object) -> None:
    """Check the types of a worker's arguments; a wrong one would otherwise fail only at its first use.

    Raises:
        ConfigurationError: An argument has another type; the line names it and the way out.
    """
    if isinstance(kafka, str):
        raise ConfigurationError(f"Worker(kafka={in_short(kafka)}): give kafka=Kafka({in_short(kafka)})")
    if not isinstance(kafka, Kafka) and not all(callable(getattr(kafka, name, None)) for name in _TRANSPORT):
        raise ConfigurationError(
            f'Worker(kafka={in_short(kafka)}): give Kafka("host:port"), Memory(broker), or another Transport'
        )
    if not isinstance(tables, Tables):
        raise ConfigurationError(f"Worker(tables={in_short(tables)}): give Tables(prefix=..., schema=...)")
    if not isinstance(observers, Iterable) or not all(map(callable, observers)):
        raise ConfigurationError(f"Worker(observers={in_short(observers)}): give a list of functions of one event")


def instance(instance_id: str | None, processes: int) -> None:
    """Check that several processes do not share one static member ID: the broker would remove all but one.

    Raises:
        ConfigurationError: They seem to: the member ID does not contain the process ID.
    """
    if instance_id is not None and processes > 1 and str(os.getpid()) not in instance_id:
        raise ConfigurationError(
            f"Kafka(options=...): each of {processes} worker processes would be the one member that "
            "group.instance.id names, and the broker would remove the others; leave it out, or put os.getpid() into it"
        )


def drivers(declarations: Sequence[Declaration], database: Database) -> None:
    """Check that the database has a driver for each handler's kind.

    Raises:
        ConfigurationError: A handler is a coroutine and the database is for threads only, or the
            reverse.
    """
    for declared in declarations:
        if declared.is_async and database.async_sessions is None:
            raise ConfigurationError(
                f"handler {declared.name!r}: its handle is a coroutine function, and {database!r} is for threads only; "
                "give database= a URL, an AsyncEngine or an async_sessionmaker, or write a plain `def handle`"
            )
        if not declared.is_async and database.sync_sessions is None:
            raise ConfigurationError(
                f"handler {declared.name!r}: its handle is a plain function, and {database!r} is for coroutines only; "
                "give database= a postgresql+psycopg URL, an Engine or a sessionmaker, or write `async def handle`"
            )


def steps(declarations: Sequence[Declaration], database: Database) -> None:
    """Check that no handler runs its steps within a transaction that is the database's only writer.

    Raises:
        ConfigurationError: A handler does, on SQLite.
    """
    for declared in declarations if database.dialect_name == "sqlite" else ():
        inside = runs_steps_inside(method_of(declared.handler, "handle")) if declared.steps else False
        if inside or (declared.steps and declared.prepare is None):
            problem = "calls context.run in handle" if inside else "has steps and no prepare"
            raise ConfigurationError(
                f"handler {declared.name!r}: it {problem}, and on SQLite, which has one writer, no step can be "
                "written while handle runs; define prepare, and run its steps there"
            )


async def topics(declarations: Sequence[Declaration], transport: Transport) -> Mapping[str, TopicInfo]:
    """Check that all topics exist; return them.

    Raises:
        StartError: A topic does not exist, or the broker cannot be reached.
    """
    wanted = {topic for declared in declarations for topic in declared.topics}
    wanted |= {declared.dead_letter.topic for declared in declarations if declared.dead_letter is not None}
    wanted |= {topic for declared in declarations for topic in declared.publishes or ()}
    found = await transport.topics(sorted(wanted))
    for declared in declarations:
        for topic in declared.topics:
            if topic not in found:
                raise StartError(
                    f"handler {declared.name!r}: topic {topic!r} does not exist; correct it, or make it with "
                    "`consumerkit topics create --partitions N`"
                )
        for topic in declared.publishes or ():
            if topic not in found:
                raise StartError(
                    f"handler {declared.name!r}: topic {topic!r}, which it publishes to, does not exist; correct it, "
                    "or make it with `consumerkit topics create --partitions N`"
                )
        if declared.dead_letter is not None and declared.dead_letter.topic not in found:
            raise StartError(
                f"handler {declared.name!r}: dead-letter topic {declared.dead_letter.topic!r} does not exist; "
                "`consumerkit topics create` makes it"
            )
    return found


def dead_letter_partitions(declarations: Sequence[Declaration], found: Mapping[str, TopicInfo]) -> None:
    """Warn of a dead-letter topic with fewer partitions than its source: other keys would share a partition."""
    for declared in declarations:
        if declared.dead_letter is None:
            continue
        dead = found[declared.dead_letter.topic]
        most = max(found[topic].partitions for topic in declared.topics)
        if dead.partitions < most:
            _log.warning(
                "handler %r: dead-letter topic %r has %d partitions, its source %d; give it as many",
                declared.name,
                dead.name,
                dead.partitions,
                most,
            )


async def retention(
    seconds: float | None,
    declarations: Sequence[Declaration],
    transport: Transport,
    given: Database,
    pruning: PruneStatements,
) -> None:
    """Warn where the ledger's memory is shorter than the topics', the retries' or the dead letters'."""
    if seconds is None:
        return
    keeps = await transport.keeps(sorted({topic for declared in declarations for topic in declared.topics}))
    letters = await asked(given, pruning.oldest_letters)
    for line in retention_warnings.warnings(seconds, declarations, keeps, letters):
        _log.warning("%s", line)


def parked(kept: PayloadRetention, declarations: Sequence[Declaration]) -> None:
    """Warn where a parked message may expire before its retries end."""
    seconds = kept.seconds("parked")
    for line in () if seconds is None else retention_warnings.parked_warnings(seconds, declarations):
        _log.warning("%s", line)


async def located(given: Database, tables: Tables) -> Tables:
    """Return the tables with the schema where the database has them.

    Raises:
        ConfigurationError: The schema is not known, or a schema_translate_map would redirect
            consumerkit's statements.
        StartError: The database cannot be used.
    """
    return await asked(given, lambda session: find(session.connection(), tables))


def connections(lanes: int) -> int:
    """Return the most connections of a process: one per lane, one for the relay, and two for marks and retries."""
    return lanes + 3


async def database(
    given: Database,
    dialect: Dialect,
    tables: Tables,
    declarations: Sequence[Declaration],
    *,
    adopted: Collection[str],
    lanes: int,
    processes: int,
    look: Callable[[Session, Tables, Mapping[str, int]], None],
) -> dict[str, int]:
    """Check tables and connections, and bind the handlers' names; return each handler's number.

    At the end `look` is called in the same transaction, with the handlers' numbers.

    Raises:
        StartError: A table is missing, a name is bound to something else, or the database cannot be
            used.
    """
    counted = _counted(declarations)
    _pool(given.pooled, connections(lanes), counted)

    def work(session: Session) -> dict[str, int]:
        schema.check(session, tables)
        server.check(session.connection(), tables)
        _connections(dialect.most_connections(session.connection()), processes * connections(lanes), counted)
        numbers = {
            declared.name: consumers.bind(
                session,
                tables,
                name=declared.name,
                group=declared.group,
                topics=declared.topics,
                ordering=declared.ordering.value,
                adopt=declared.name in adopted,
            )
            for declared in declarations
        }
        waiting.check_sealer(session, tables)
        for declared in declarations:
            _shared_group(session, tables, declared)
        look(session, tables, numbers)
        return numbers

    return await asked(given, work)


async def asked(given: Database, work: Callable[[Session], T]) -> T:
    """Run work in its own transaction, and turn an error of the database into a `StartError` of one line."""
    try:
        try:
            return await given.run(work)
        except DBAPIError as error:
            if not pooler.has_refused(error):
                raise
            # The engine goes on without prepared statements, and a warning has said so.
            return await given.run(work)
    except (DBAPIError, OSError) as error:
        words = database_words(error) or str(error.orig if isinstance(error, DBAPIError) else error)
        text = redact(without_variables(words)).strip().splitlines() or [""]
        way_out = pooler.way_out(text[0]) or (
            "check that the server runs and that the URL is right"
            if fault_of(error, in_handler=False) is Fault.CONNECTION
            else "check the user's rights"
        )
        raise StartError(f"{given!r}: {type(error).__name__}: {given.told(text[0])}; {way_out}") from None


def _shared_group(session: Session, tables: Tables, declared: Declaration) -> None:
    """Warn of a group that two names share, from a time when this was not refused."""
    for name in consumers.sharing(session, tables, declared.name, declared.group):
        _log.warning(
            "handler %r: group %r also belongs to handler %r, and each gets a part of the messages; give one a group "
            "of its own, or start once with --adopt %s if %r never runs again",
            declared.name,
            declared.group,
            name,
            declared.name,
            name,
        )


def _counted(declarations: Sequence[Declaration]) -> str:
    """Return how connections are counted; a lane of a handler with steps uses a second one for their record."""
    counted = "lanes + 3" + (", a lane with steps counts twice" if any(one.steps for one in declarations) else "")
    hooks = any(one.on_dead_letter is not None for one in declarations)
    return counted + (", on_dead_letter counts as a lane" if hooks else "")


def _pool(most: int | None, needed: int, counted: str) -> None:
    if most is not None and needed > most:
        raise StartError(
            f"database: this worker may need {needed} connections at once ({counted}), and the engine's pool gives "
            f"{most}; make it with pool_size={needed}, or lower concurrency"
        )


def _connections(allowed: int | None, needed: int, counted: str) -> None:
    if allowed is not None and needed > allowed:
        raise StartError(
            f"database: this worker may need {needed} connections (processes x ({counted})), and the server allows "
            f"{allowed}; lower --workers or concurrency, or raise max_connections"
        )
