"""Imports a dead-letter topic into the dead-letter table, from where letters can be redriven.

Each batch of records has a transaction of its own, and nothing is committed at the broker. An interrupted import is
repeated and passes over letters that exist already.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple
from uuid import uuid4

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from consumerkit.engine.transaction import failures
from consumerkit.redrive.importing.insert import Entry, Register
from consumerkit.redrive.importing.parse import Screen, Screened
from consumerkit.redrive.importing.report import ImportReport, ImportResult, Placement
from consumerkit.storage import audit
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import Limits
from consumerkit.storage.faults import Fault, fault_of
from consumerkit.storage.isolation import begin
from consumerkit.storage.ledger import LedgerMoved
from consumerkit.transports.base import LogReader, Span

BATCH: Final = 100
TRIES: Final = 6
POLL: Final = 1.0
ACTION: Final = "import"
_LIMITS: Final = Limits()


class ImportProgress(NamedTuple):
    """The progress of an import: `read` offsets of `total`."""

    read: int
    total: int


Watch = Callable[[ImportProgress], None]


class RecordResult(NamedTuple):
    """The result of a record; `why` is set if the database refused it."""

    entry: Entry
    why: str = ""


@dataclass(frozen=True, slots=True)
class Importer:
    """Imports a reader's records for one handler.

    Attributes:
        database: The handler's database.
        screen: Checks each record.
        register: Enters the records that pass.
        by: Who imports.
        note: The reason.
        keep: How many records the report shows one by one.
    """

    database: Database
    screen: Screen
    register: Register
    by: str
    note: str
    keep: int

    async def read_out(
        self, reader: LogReader, topic: str, spans: Mapping[int, Span], watch: Watch | None
    ) -> ImportReport:
        """Import all records of a started reader."""
        report = ImportReport(dry_run=self.register.dry_run)
        details = {"run": uuid4().hex[:12], "topic": topic} | ({"note": self.note} if self.note else {})
        total = sum(span.end - span.start for span in spans.values())
        while not reader.finished:
            screened = [self.screen.screen(record) for record in await reader.fetch(BATCH, POLL)]
            if screened:
                self._tell(report, screened, await self._entered(screened, details))
            if watch is not None:
                watch(ImportProgress(sum(at - spans[number].start for number, at in reader.positions.items()), total))
        return report

    async def _entered(self, screened: Sequence[Screened], details: Mapping[str, Any]) -> list[RecordResult]:
        """Enter a batch; if a record is at fault, enter each half, down to that record, which is left alone."""
        try:
            return [RecordResult(entry) for entry in await self._keep_trying(screened, details)]
        except Exception as error:
            if fault_of(error, in_handler=True) is not Fault.HANDLER or isinstance(error, LedgerMoved):
                raise
            if len(screened) == 1:
                return [
                    RecordResult(Entry(ImportResult.REFUSED, None), f"it cannot be stored: {failures.described(error)}")
                ]
        middle = len(screened) // 2
        return [
            *await self._entered(screened[:middle], details),
            *await self._entered(screened[middle:], details),
        ]

    async def _keep_trying(self, screened: Sequence[Screened], details: Mapping[str, Any]) -> list[Entry]:
        """Enter a batch; repeat that if another transaction was in the way; return each record's result."""
        for attempt in range(TRIES):
            try:
                return await self.database.run(lambda session: self._enter(session, screened, details))
            except (LedgerMoved, DBAPIError) as error:
                passing = isinstance(error, LedgerMoved) or fault_of(error, in_handler=False) is Fault.CONFLICT
                if not passing or attempt == TRIES - 1:
                    raise
                await asyncio.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _enter(self, session: Session, screened: Sequence[Screened], details: Mapping[str, Any]) -> list[Entry]:
        ledger = self.register.ledger
        connection = begin(session, ledger.dialect, _LIMITS, ACTION)
        candidates = [one.candidate for one in screened if one.candidate is not None]
        decided = iter(self.register.enter(connection, candidates))
        entries = [Entry(one.line.result, None) if one.candidate is None else next(decided) for one in screened]
        imported = sum(entry.result.is_import for entry in entries)
        if imported and not self.register.dry_run:
            audit.record(
                connection,
                ledger.tables,
                actor=self.by,
                action=ACTION,
                consumer=ledger.consumer,
                details={**details, "imported": imported},
            )
        return entries

    def _tell(self, report: ImportReport, screened: Sequence[Screened], outcomes: Sequence[RecordResult]) -> None:
        report.counts.update(Counter(outcome.entry.result for outcome in outcomes))
        for one, ((result, letter), why) in zip(screened, outcomes, strict=True):
            if one.candidate is not None and letter:
                at = one.candidate.dead.message
                report.letters.append(Placement(at.topic, at.topic_id, at.partition, at.offset, letter))
            if result.is_import and not result.wants_a_look and not report.dry_run:
                continue
            if len(report.lines) < self.keep:
                report.lines.append(replace(one.line, result=result, why=why or one.line.why))
            else:
                report.untold += 1
