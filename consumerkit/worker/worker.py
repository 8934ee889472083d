"""The worker's life: build, start, run, stop."""

from __future__ import annotations

import asyncio
import difflib
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from consumerkit import events, failpoints
from consumerkit.engine.partitions.commit_origin import CommitOrigin
from consumerkit.errors import ConfigurationError, StartError
from consumerkit.events import Announcer, Observer
from consumerkit.handlers.declaration import Declaration, declare_all
from consumerkit.handlers.handler import AnyHandler
from consumerkit.message import TopicPartition
from consumerkit.observability.logs import LoggingObserver
from consumerkit.observability.surroundings import surrounded_by
from consumerkit.observability.traces import traces_of
from consumerkit.observability.user_code import belongs_to_the_user
from consumerkit.observability.words import lasting
from consumerkit.policies.duration import DAY, seconds_of
from consumerkit.policies.payload_retention import PayloadRetention, payload_retention_of
from consumerkit.redaction.plain_words import shown_word
from consumerkit.storage import consumers
from consumerkit.storage.database import AsyncSessions, Database, SyncSessions
from consumerkit.storage.dialects import Limits, dialect_for
from consumerkit.storage.maintenance.pruning import PruneStatements
from consumerkit.storage.tables import DEFAULT_TABLES, Tables
from consumerkit.transports.base import Survey, Transport
from consumerkit.transports.kafka import Kafka
from consumerkit.worker import checks, configured
from consumerkit.worker.assembly import Assembly
from consumerkit.worker.database_watch import DatabaseWatch
from consumerkit.worker.gc import seldom_collected
from consumerkit.worker.left_behind import LeftBehindRows
from consumerkit.worker.long_transactions import long_transactions
from consumerkit.worker.parts import Part, Parts
from consumerkit.worker.readiness import Readiness, States
from consumerkit.worker.reports import Reports
from consumerkit.worker.watchdog import Watchdog

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from consumerkit.settings import Settings

_log = logging.getLogger(__name__)

MEBIBYTE = 1024 * 1024


class Worker:
    """Consumes for its handlers, in this process.

    Args:
        database: A URL, an engine or a sessionmaker of the user's database. A URL serves coroutine and plain handlers;
            an engine or a sessionmaker serves those of its kind.
        kafka: Where the broker is, or any `Transport`.
        settings: Settings from outside the code, such as `Settings()`; an argument given here
            overrides them. Where neither these nor both `database` and `kafka` are given, settings
            are read from the environment and the file.
        handlers: Instances of `Handler` and `BatchHandler`.
        tables: Prefix and schema of consumerkit's tables.
        observers: Called with every event, besides the observer that logs.
        memory_budget: Bytes of fetched messages per handler, above which nothing more is fetched.
        transaction_timeout: Seconds after which a handler call, a statement or a COMMIT is given up.
        drain_timeout: Seconds within which running messages are finished when a partition is
            revoked.
        grace: Seconds within which `stop` finishes running transactions and leaves the groups.
            Unfinished ones are rolled back, and their messages delivered again.
        stall_timeout: Seconds without a sign of life from the event loop, a consumer or a transaction (beyond
            `transaction_timeout`) after which the process ends itself, to be restarted.
        retention: For how long the ledger remembers a processed message ID: seconds, a timedelta, or None for ever.
        payload_retention: For how long a dead letter keeps its payload after it was resolved or
            discarded, in the same form. A `PayloadRetention` also sets this for undecided, parked
            and unsent messages.
        tracing: Whether each message has an OpenTelemetry span of the global tracer provider; or
            the provider to use.
        failpoints: Whether to read `CONSUMERKIT_FAILPOINT` from the environment, for tests.

    Raises:
        ConfigurationError: A declaration or an argument is wrong; one line names it and the way
            out.

    Example:
        worker = Worker(
            database="postgresql+psycopg://shop@localhost/shop",
            kafka=Kafka("localhost:9092"),
            handlers=[CreditAccount()],
        )
    """

    given: Mapping[str, object]

    @configured.knowing_what_is_given
    def __init__(
        self,
        *,
        handlers: Sequence[AnyHandler],
        database: str | URL | Engine | AsyncEngine | SyncSessions | AsyncSessions | None = None,
        kafka: Kafka | Transport | None = None,
        settings: Settings | None = None,
        tables: Tables = DEFAULT_TABLES,
        observers: Sequence[Observer] = (),
        memory_budget: int = 16 * MEBIBYTE,
        transaction_timeout: float = 60.0,
        drain_timeout: float = 20.0,
        grace: float = 30.0,
        stall_timeout: float = 60.0,
        retention: float | timedelta | None = 7 * DAY,
        payload_retention: float | timedelta | PayloadRetention | None = 30 * DAY,
        tracing: bool | TracerProvider = False,
        failpoints: bool = False,
    ) -> None:
        self.declarations: tuple[Declaration, ...] = declare_all(handlers)
        self.settings = configured.settings_of(settings, database, kafka)
        if self.settings is not None:
            found = configured.applied(self.settings, self.given)
            database, kafka, tables = (
                found.get("database", database),
                found.get("kafka", kafka),
                found.get("tables", tables),
            )
            memory_budget = found.get("memory_budget", memory_budget)
            transaction_timeout = found.get("transaction_timeout", transaction_timeout)
            drain_timeout, grace = found.get("drain_timeout", drain_timeout), found.get("grace", grace)
            stall_timeout, retention = found.get("stall_timeout", stall_timeout), found.get("retention", retention)
            payload_retention = found.get("payload_retention", payload_retention)
            tracing = found.get("tracing", tracing)
            self.declarations = configured.declarations(self.settings, self.declarations)
        if database is None or kafka is None:
            raise configured.missing("database" if database is None else "kafka")
        for handler in handlers:
            belongs_to_the_user(type(handler))
        _check_numbers(
            memory_budget=memory_budget,
            transaction_timeout=transaction_timeout,
            drain_timeout=drain_timeout,
            grace=grace,
            stall_timeout=stall_timeout,
        )
        self.retention = seconds_of("retention", retention)
        self.declarations = tuple(replace(declared, remembered=self.retention) for declared in self.declarations)
        self.payload_retention = payload_retention_of(payload_retention)
        checks.arguments(kafka, tables, observers)
        self._traces = traces_of(tracing)
        self.grace = grace
        self.processes = 1
        self.database = Database(database, connections=checks.connections(self._lanes))
        checks.drivers(self.declarations, self.database)
        checks.steps(self.declarations, self.database)
        self.transport: Transport = kafka.connect() if isinstance(kafka, Kafka) else kafka
        self._limits = Limits(statement=transaction_timeout, lock=transaction_timeout / 2, idle=transaction_timeout)
        self._memory_budget = memory_budget
        self._drain_timeout = drain_timeout
        self.stall_timeout = float(stall_timeout)
        self._failpoints = failpoints
        self._states = States()
        self._announce = Announcer((LoggingObserver(), self._states, *observers), surrounded_by(self._traces))
        self._principal = kafka.principal if isinstance(kafka, Kafka) else None
        self._instance = kafka.instance_id if isinstance(kafka, Kafka) else None
        self._adopted: frozenset[str] = frozenset()
        self._outbox_written = asyncio.Event()
        self._parts = Parts(self._announce)
        self.use(tables)
        self._left_behind = LeftBehindRows((), self._announce)
        self._missed_after = kafka.session_timeout if isinstance(kafka, Kafka) else None

    @property
    def _lanes(self) -> int:
        # A lane of a handler with steps needs a second connection: it records them outside its
        # transaction. `on_dead_letter` has a transaction of its own.
        steps = sum(declared.concurrency * (2 if declared.steps else 1) for declared in self.declarations)
        return steps + sum(declared.on_dead_letter is not None for declared in self.declarations)

    def only(self, names: Collection[str]) -> None:
        """Consume only for these handlers; call it before `start`.

        Raises:
            ConfigurationError: There is no handler of such a name.
        """
        self._known(names, "--only")
        self.declarations = tuple(declared for declared in self.declarations if declared.name in names)

    def adopt(self, names: Collection[str]) -> None:
        """Rebind these names to the groups and topics that are declared now; call it before `start`.

        Raises:
            ConfigurationError: There is no handler of such a name.
        """
        self._known(names, "--adopt")
        self._adopted = frozenset(names)

    def observe(self, observer: Observer) -> None:
        """Add an observer, which is called with every event; call it before `start`."""
        self._announce.add(observer)

    def _known(self, names: Collection[str], option: str) -> None:
        known = [declared.name for declared in self.declarations]
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"the handlers are {', '.join(map(repr, known))}"
                raise ConfigurationError(f"{option} {shown_word(name)}: no handler has this name; {hint}")

    def use(self, tables: Tables) -> None:
        """Use these tables from now on: as configured, or with the schema where they were found."""
        self.tables = tables
        self.dialect = dialect_for(self.database.dialect_name, tables)
        self._assembly = Assembly(
            self.database, self.dialect, tables, self._limits, self._announce, traces=self._traces
        )

    async def start(self) -> None:
        """Check the database and the broker, join the groups, and consume.

        Raises:
            StartError: A topic, a table or a right is missing, or a server cannot be reached; one
                line says so.
        """
        if self._parts.are_running:
            raise StartError("this worker runs already; build another Worker")
        if self._failpoints:
            failpoints.arm()
        try:
            numbers = await self._checked()
            home = await checks.asked(self.database, lambda session: consumers.home(session, self.tables))
            reports = self._assembly.reports(numbers, missed_after=self._missed_after)
            for declared in self.declarations:
                engine = self._assembly.engine(
                    declared,
                    self.transport,
                    numbers[declared.name],
                    CommitOrigin(declared.name, declared.group, home, adopted=declared.name in self._adopted),
                    memory_budget=self._memory_budget,
                    drain_timeout=self._drain_timeout,
                    outbox_written=self._outbox_written,
                )
                await self._parts.add(engine)
        except BaseException:
            await self._parts.abandon()
            await self.database.dispose()
            raise
        self._run(numbers, reports)
        self._announce(events.WorkerStarted(handlers=tuple(declared.name for declared in self.declarations)))

    async def _checked(self) -> dict[str, int]:
        checks.instance(self._instance, self.processes)
        topics = await checks.topics(self.declarations, self.transport)
        checks.dead_letter_partitions(self.declarations, topics)
        self.use(await checks.located(self.database, self.tables))
        self._left_behind = LeftBehindRows(self.declarations, self._announce)
        numbers = await checks.database(
            self.database,
            self.dialect,
            self.tables,
            self.declarations,
            adopted=self._adopted,
            lanes=self._lanes,
            processes=self.processes,
            look=self._left_behind.read,
        )
        self.declarations = self._left_behind.declarations
        self._left_behind.tell()
        checks.parked(self.payload_retention, self.declarations)
        pruning = PruneStatements(self.tables, self.dialect)
        await checks.retention(self.retention, self.declarations, self.transport, self.database, pruning)
        return numbers

    def _run(self, numbers: Mapping[str, int], reports: Reports) -> None:
        look = partial(self._look_behind, partial(self._left_behind.read, tables=self.tables, numbers=numbers))
        others: dict[str, Part] = {"reports": reports}
        if not self.dialect.single_writer:  # a file does not fall silent
            others["database watch"] = DatabaseWatch(self.database, self._announce)
        self._parts.run(
            self._assembly.relay(self.transport.producer(), self._outbox_written, principal=self._principal),
            self._assembly.retention(self.declarations, self.retention, self.payload_retention, look),
            others,
            Watchdog(self._parts.engines, stall=self.stall_timeout, transaction=self._limits.idle),
            grace=self.grace,
        )

    async def _look_behind(self, look: Callable[[Session], None]) -> None:
        await self._assembly.run(look)
        self._left_behind.tell()

    def readiness(self) -> Readiness:
        """Return what is wrong now, in sentences that say the way out; cheap, and callable from any thread.

        Example:
            if not worker.readiness().ready: ...
        """
        found = self._states.readiness(time.monotonic())
        ages = self._parts.oldest_transactions()
        left = self._left_behind.findings()
        return Readiness((*found.findings, *left, *long_transactions(ages, self._limits.lock)))

    def left_behind(self) -> Mapping[str, int]:
        """Return how many rows of each handler wait for code that it no longer has, as of the last look.

        Under "" are rows of handlers that this worker does not have, which have been due for a quarter of an hour.
        """
        return self._left_behind.counts()

    async def surveys(self, handler: str) -> dict[str, Survey]:
        """Return the broker's current answers about a handler's topics, without those it does not answer about."""
        return await self._parts.surveys(handler)

    def in_flight(self) -> dict[str, int]:
        """Return how many messages of each handler are fetched and unfinished."""
        return self._parts.in_flight()

    def positions(self) -> dict[TopicPartition, int]:
        """Return the first unfinished offset of each assigned partition; a parked message counts as finished."""
        return self._parts.positions()

    def members(self) -> list[tuple[str, str]]:
        """Return the group and member ID of each handler that has joined its group; callable from any thread."""
        return self._parts.members()

    def stopping(self) -> str:
        """Return what `stop` waits for at present, in a sentence; callable from any thread."""
        ages = self._parts.oldest_transactions()
        waits = [f"{name} (its oldest transaction has run for {lasting(age)})" for name, age in ages.items() if age > 0]
        if not waits:
            return f"stopping: no transaction is under way; leaving the group, within {self.grace:g} s"
        return (
            f"stopping: waiting up to {self.grace:g} s for {', '.join(waits)}; a transaction that has not ended then "
            "is rolled back"
        )

    async def stop(self) -> bool:
        """Finish or roll back running transactions, commit offsets, and leave the groups.

        Returns:
            Whether all of them were finished within `grace`.
        """
        began = time.monotonic()
        finished = await self._parts.stop(self.grace, began + self.grace)
        await self.database.dispose()
        self._announce(events.WorkerStopped(seconds=time.monotonic() - began))
        return finished

    async def run(self, stopping: asyncio.Event) -> bool:
        """Start, consume until `stopping` is set, and stop; for a process that only consumes.

        Python's cyclic garbage collector runs less often during this call; `start` does not change
        it.

        Returns:
            What `stop` returned.

        Raises:
            StartError: See `start`.
            Exception: The error that ended the worker, raised after everything else has stopped.
        """
        await self.start()
        try:
            with seldom_collected():
                failure = await self.failure(stopping)
        finally:
            finished = await self.stop()
        if failure is not None:
            raise failure
        return finished

    async def failure(self, stopping: asyncio.Event) -> BaseException | None:
        """Wait until `stopping` is set or the started worker has failed; return the error that ended it."""
        return await self._parts.failure(stopping)

    async def __aenter__(self) -> Worker:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _check_numbers(**values: float) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ConfigurationError(f"Worker({name}={value!r}): give a number greater than 0")
