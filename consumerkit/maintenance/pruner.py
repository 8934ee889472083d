"""Makes the ledger forget old IDs piece by piece, by the worker's timer or on a person's command."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Final

from consumerkit import events
from consumerkit.concurrency import wait_until_set
from consumerkit.dead_letters.error_text import of_database
from consumerkit.events import Announcer
from consumerkit.maintenance.expirer import TURN, Expiry
from consumerkit.message import TopicPartition
from consumerkit.policies.duration import in_utc
from consumerkit.storage.database import Run
from consumerkit.storage.maintenance.pruning import BATCH, OutdatedPlan, PrunePlan, PruneStatements

INTERVAL: Final = TURN
LONGEST_WAIT: Final = 60.0
"""The most seconds until the next try after a failed one: it is also what ends the announced trouble."""
_FIRST_WAIT: Final = 2.0
PAUSE: Final = 0.05  # between batches, so that the server's other work comes first
_TRIES: Final = 20
_AGAIN: Final = 0.25


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The result of a plan.

    Attributes:
        count: How many IDs were forgotten.
        complete: False if another process prunes, a partition's row was in use all the time, or a position was moved
            back since. A new plan then tells which IDs may go.
    """

    count: int
    complete: bool


async def forget(
    run: Run,
    pruning: PruneStatements,
    plan: PrunePlan,
    *,
    tell: Callable[[int], object] = lambda _: None,
    waits: bool = False,
    batch: int = BATCH,
) -> Forgotten:
    """Forget the IDs of a plan.

    Args:
        run: Runs work in a transaction of its own.
        pruning: The statements.
        plan: The IDs that may go.
        tell: Called after each transaction with the number of IDs.
        waits: Whether to wait for another process that prunes, instead of leaving the work to it.
        batch: Rows in one transaction.
    """
    if not await run(partial(pruning.any, plan=plan)):
        return Forgotten(0, complete=True)
    count, after = 0, None
    if not await _promised(run, pruning, plan):
        return Forgotten(0, complete=False)
    while True:
        try:
            found = await run(partial(pruning.forget, plan=plan, after=after, limit=batch))
        except OutdatedPlan:
            return Forgotten(count, complete=False)
        if found is None:
            if not waits:
                return Forgotten(count, complete=False)
            await asyncio.sleep(_AGAIN)
            continue
        count += found.rows
        if found.rows:
            tell(found.rows)
        if found.rows < batch:
            return Forgotten(count, complete=True)
        after = found.last
        await asyncio.sleep(PAUSE)


async def _promised(run: Run, pruning: PruneStatements, plan: PrunePlan) -> bool:
    for _ in range(_TRIES):
        try:
            if await run(partial(pruning.promise, plan=plan)):
                return True
        except OutdatedPlan:
            return False
        await asyncio.sleep(_AGAIN)
    return False


class Retention:
    """A worker's timer: runs in each process at uneven times, for the handlers of this worker.

    Args:
        run: Runs work in a transaction of its own.
        pruning: The statements.
        handlers: The names of the handlers.
        seconds: How long a processed ID is remembered; None is for ever.
        expiry: Ends rows that have stood for too long, in the same turn.
        announce: Announces events.
        look: Looks for rows that no deployed code takes, in the same turn.
    """

    def __init__(
        self,
        run: Run,
        pruning: PruneStatements,
        handlers: Collection[str],
        *,
        seconds: float | None,
        expiry: Expiry,
        announce: Announcer,
        look: Callable[[], Awaitable[None]],
    ) -> None:
        self._look = look
        self._run = run
        self._pruning = pruning
        self._handlers = tuple(handlers)
        self._seconds = seconds
        self._expiry = expiry
        self._announce = announce
        self._stopping = asyncio.Event()
        self._told: set[tuple[str, TopicPartition]] = set()
        self._new: set[tuple[str, TopicPartition]] = set()

    async def run(self) -> None:
        """Forget IDs from time to time until `stop`."""
        # Processes that start together must not all begin at the same moment.
        await self._sleep(random.uniform(0, INTERVAL))
        failures, since = 0, 0.0
        while not self._stopping.is_set():
            wait = INTERVAL * random.uniform(0.75, 1.25)
            try:
                await self.turn()
            except Exception as error:  # noqa: BLE001 - a later turn can forget as well
                since = since if failures else time.monotonic()
                wait = min(LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(failures, 7)) * random.uniform(0.75, 1.0)
                failures += 1
                self._announce(events.Trouble(where="database", error=of_database(error), wait=wait, work="retention"))
            else:
                if failures:
                    failures, seconds = 0, time.monotonic() - since
                    self._announce(events.TroubleOver(where="database", seconds=seconds, work="retention"))
            await self._sleep(wait)

    async def turn(self) -> None:
        """Forget the IDs that may go, and end rows that have stood for too long."""
        if self._seconds is not None:
            plans = partial(self._pruning.plans, retention=self._seconds, handlers=self._handlers, requests=True)
            for plan in await self._run(plans):
                await self._forget(plan)
        await self._expiry.turn()
        await self._expiry.watch_outbox()
        await self._expiry.unsent()
        await self._look()

    async def _forget(self, plan: PrunePlan) -> None:
        self._tell_holders(plan)
        done = await forget(self._run, self._pruning, plan)
        if done.count and plan.before is not None:
            before = in_utc(plan.before)
            self._announce(events.MessagesForgotten(handler=plan.handler, count=done.count, before=before))

    def _tell_holders(self, plan: PrunePlan) -> None:
        """Announce each partition once while it prevents the ledger from forgetting.

        A partition without a finished message may have begun a moment ago, so it is announced at the second turn.
        """
        now = {(plan.handler, holder.partition) for holder in plan.holders}
        new = set()
        for partition, since in plan.holders:
            if since is None and (plan.handler, partition) not in self._new | self._told:
                new.add((plan.handler, partition))
            elif (plan.handler, partition) not in self._told:
                moment = None if since is None else in_utc(since)
                self._announce(events.ForgettingHeldBack(handler=plan.handler, partition=partition, since=moment))
        self._told = {told for told in self._told if told[0] != plan.handler} | (now - new)
        self._new = {seen for seen in self._new if seen[0] != plan.handler} | new

    async def _sleep(self, seconds: float) -> None:
        await wait_until_set(self._stopping, seconds)

    def stop(self) -> None:
        """End the timer after the work under way."""
        self._stopping.set()
