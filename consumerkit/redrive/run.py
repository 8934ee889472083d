"""A run handles a selection batch by batch at a requested rate; it may be interrupted and repeated freely."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar
from uuid import uuid4

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from consumerkit.redrive.actions import LettersMoved
from consumerkit.redrive.batch import LETTERS, Action, Busy, Done, LetterBatches, LetterResult
from consumerkit.redrive.decision import RedriveResult
from consumerkit.redrive.plan import PartitionLetters, planned
from consumerkit.redrive.report import Letter, Progress, Report
from consumerkit.storage.dead_letters.selection import Selection
from consumerkit.storage.faults import Fault, fault_of
from consumerkit.storage.tables import Tables
from consumerkit.storage.undoing import count_waiting

T = TypeVar("T")
TRIES: Final = 6
Watch = Callable[[Progress], None]


class Runs(Protocol):
    """Runs work in a transaction of its own; commits unless it raises."""

    def __call__(self, work: Callable[[Session], T], /) -> Awaitable[T]:
        """Run it."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Attributes:
        runs: The database.
        tables: The table definitions.
        action: The action.
        by: Who carries it out.
        rate: The most letters a second; None sets no limit.
        dry: Whether to change nothing.
        watch: Called with the progress after each batch.
    """

    runs: Runs
    tables: Tables
    action: Action
    by: str
    rate: float | None = None
    dry: bool = False
    watch: Watch | None = None

    async def over(self, selection: Selection) -> Report:
        """Handle all letters of a selection, each at most once.

        Raises:
            StartError: There is no such handler, or its ordering is unknown.
        """
        plan = await self.runs(lambda session: planned(session, self.tables, selection))
        for log in plan.logs:
            self.action.check(log)
        batches = LetterBatches(self.tables, selection, plan.ceiling, self.action, self.by, uuid4().hex[:12], self.dry)
        letters = [Letter(id=number, result=result) for number, result in plan.left.items()]
        pace, total = RedrivePace(self.rate), plan.letters
        busy = [log.name for log in plan.logs if not await self._log(batches, log, total, pace, letters)]
        done = [letter.id for letter in letters if letter.result.is_done]
        undos = await self.runs(lambda session: count_waiting(session.connection(), self.tables, done)) if done else 0
        return Report(letters=tuple(letters), dry_run=self.dry, busy=tuple(busy), undos=undos)

    async def _log(
        self, batches: LetterBatches, log: PartitionLetters, total: int, pace: RedrivePace, letters: list[Letter]
    ) -> bool:
        """Handle a partition's letters; return False if its owner held it for too long."""
        after, limit = -1, pace.batch
        while True:
            try:
                done = await self._keep_trying(batches, log, after, limit)
            except Busy:
                return False
            letters += [_letter(log, told) for told in done.told]
            if self.watch is not None:
                self.watch(Progress(len(letters), max(len(letters), total), log.name))
            if done.after is None:
                return True
            after = done.after
            await pace.kept(0 if self.dry else sum(told.result is RedriveResult.REDRIVEN for told in done.told))

    async def _keep_trying(self, batches: LetterBatches, log: PartitionLetters, after: int, limit: int) -> Done:
        """Handle one batch; repeat that if another transaction was in the way."""
        for attempt in range(TRIES):
            try:
                return await self.runs(lambda session: batches.next(session, log, after, limit))
            except (Busy, LettersMoved, DBAPIError) as error:
                if isinstance(error, DBAPIError) and fault_of(error, in_handler=False) is not Fault.CONFLICT:
                    raise
                await asyncio.sleep(0.05 * 2**attempt)
        raise Busy(str(log.name))


class RedrivePace:
    """Limits a run to a rate of letters."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._began = time.monotonic()
        self._moved = 0

    @property
    def batch(self) -> int:
        """How many letters to take at once: no more than one second's."""
        return LETTERS if self._rate is None else max(1, min(LETTERS, int(self._rate)))

    async def kept(self, moved: int) -> None:
        """Wait until more letters may follow; this also lets other tasks run and an interruption take effect."""
        self._moved += moved
        ahead = 0.0 if self._rate is None else self._moved / self._rate - (time.monotonic() - self._began)
        await asyncio.sleep(max(0.0, ahead))


def _letter(log: PartitionLetters, told: LetterResult) -> Letter:
    row: Any = told.letter
    return Letter(
        id=row.id,
        handler=log.handler,
        partition=log.name,
        offset=row.offset,
        message_id=row.message_id or "",
        reason=row.reason,
        result=told.result,
    )
