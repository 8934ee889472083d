"""Ends rows that have stood in the tables for too long, in a worker's turn or on a person's command."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final

from consumerkit import events
from consumerkit.errors import PayloadSealed
from consumerkit.events import Announcer
from consumerkit.message import TopicPartition
from consumerkit.policies.duration import in_utc
from consumerkit.policies.payload_retention import PayloadRetention
from consumerkit.storage.database import Run
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.maintenance.erasure import EraseStatements
from consumerkit.storage.maintenance.expiry import EndedBatch, ExpireStatements, Terms
from consumerkit.storage.outbox import Old

TURN: Final = 300.0
"""Seconds between two turns of a worker, about."""
OUTBOX_OLD: Final = 900.0
"""Seconds after which a message in the outbox is old: sending takes one second, a broker's restart minutes."""

_TRIES: Final = 20
_AGAIN: Final = 0.25
PAUSE: Final = 0.05  # between batches, so that the server's other work comes first


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    """What ended for one handler, or would end.

    Attributes:
        handler: Its name.
        decided: Dead letters that were decided and lost their payload.
        dead: Undecided dead letters that lost their payload.
        parked: Parked messages that became dead letters.
        skipped: Partitions that are not complete: the owner's transactions did not end in time, or a payload could not
            be unsealed.
    """

    handler: str
    decided: int = 0
    dead: int = 0
    parked: int = 0
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unsent:
    """How many messages in the outbox were given up, or would be; incomplete if a relay was sending all the time."""

    count: int
    complete: bool = True


Guard = Callable[[], AbstractContextManager[bool]]


class Expiry:
    """Ends rows that have stood for too long; several processes may do so at once.

    Args:
        run: Runs work in a transaction of its own.
        expiring: The statements.
        retention: How long each kind of row may stand.
        terms: The terms of the handlers concerned.
        guard: Keeps relays out by a lock outside the database; see `Dialect.relay_guard`.
        announce: Announces events.
    """

    def __init__(
        self,
        run: Run,
        expiring: ExpireStatements,
        retention: PayloadRetention,
        terms: Sequence[Terms],
        guard: Guard,
        announce: Announcer,
    ) -> None:
        self._run = run
        self._expiring = expiring
        self._terms = {one.name: one for one in terms}
        self._announce = announce
        self._decided = retention.seconds("decided")
        self._dead = retention.seconds("dead")
        self._parked = retention.seconds("parked")
        self._outbox = retention.seconds("outbox")
        self._guard = guard
        self._told_old = False
        self._sealed_since: dict[str, float] = {}

    async def turn(self) -> list[Expired]:
        """End rows that have stood for too long, handler by handler."""
        return [await self._of(name, number) for name, number in await self._handlers()]

    async def counted(self) -> list[Expired]:
        """Return the numbers that a turn would end now."""
        return [await self._counted(name, number) for name, number in await self._handlers()]

    async def _handlers(self) -> list[tuple[str, int]]:
        erasing = EraseStatements(self._expiring.tables, self._expiring.dialect)
        found: list[tuple[str, int]] = await self._run(partial(erasing.handlers, names=list(self._terms)))
        return found

    async def _of(self, name: str, number: int) -> Expired:
        parked, skipped = await self._lot(self._terms[name], number)
        decided = await self._letters(name, number, self._decided, decided=True)
        dead = await self._letters(name, number, self._dead, decided=False)
        return Expired(handler=name, decided=decided, dead=dead, parked=parked, skipped=tuple(skipped))

    async def _letters(self, name: str, number: int, seconds: float | None, *, decided: bool) -> int:
        count = 0
        if seconds is None:
            return count
        erase = partial(self._expiring.letters, consumer=number, seconds=seconds, decided=decided)
        try:
            while erased := await self._run(erase):
                count += erased
                await asyncio.sleep(PAUSE)
        finally:  # what was committed is told, although a later batch fails
            if count:
                kind = events.PayloadsErased if decided else events.UndecidedPayloadsErased
                self._announce(kind(handler=name, count=count))
        return count

    async def _lot(self, terms: Terms, number: int) -> tuple[int, list[str]]:
        count, skipped, sealed = 0, list[str](), False
        if self._parked is None:
            return count, skipped
        for partition in await self._run(partial(self._expiring.partitions, consumer=number, seconds=self._parked)):
            try:
                async for ended in self._partition(terms, number, partition, self._parked):
                    count += ended  # at once: what a partition's first batches ended stays so if a later one fails
            except (_Busy, PayloadSealed) as error:
                skipped.append(str(partition))
                if isinstance(error, PayloadSealed):
                    sealed = True
                    self._sealed_since.setdefault(terms.name, time.monotonic())
                    trouble = events.Trouble(
                        handler=terms.name, where="codec", error=str(error), wait=TURN, work="retention"
                    )
                    self._announce(trouble)
        if not sealed and (since := self._sealed_since.pop(terms.name, None)) is not None:
            seconds = time.monotonic() - since
            self._announce(events.TroubleOver(handler=terms.name, where="codec", seconds=seconds, work="retention"))
        return count, skipped

    async def _partition(
        self, terms: Terms, number: int, partition: TopicPartition, seconds: float
    ) -> AsyncIterator[int]:
        after = 0
        expire = partial(self._expiring.parked, consumer=number, terms=terms, partition=partition, seconds=seconds)
        while True:
            batch: EndedBatch | None = await self._run(partial(expire, after=after))
            if batch is None:
                raise _Busy
            for dead in batch.made:
                self._announce(_told(terms.name, dead), dead.message)
                if dead.clash is not None:
                    self._announce(events.OriginClash(handler=terms.name, **dead.clash._asdict()), dead.message)
            yield len(batch.made)
            if batch.last is None:
                return
            after = batch.last
            await asyncio.sleep(PAUSE)

    async def _counted(self, name: str, number: int) -> Expired:
        async def count(work: Callable[..., int], seconds: float | None, **more: bool) -> int:
            if seconds is None:
                return 0
            return int(await self._run(partial(work, consumer=number, seconds=seconds, **more)))

        letters = self._expiring.count_letters
        return Expired(
            handler=name,
            decided=await count(letters, self._decided, decided=True),
            dead=await count(letters, self._dead, decided=False),
            parked=await count(self._expiring.count_parked, self._parked),
        )

    # The outbox, which belongs to no handler.

    async def watch_outbox(self) -> None:
        """Announce once that a message has waited for long; again only after none has."""
        oldest: Old | None = await self._run(self._expiring.oldest_unsent)
        if oldest is None or oldest.seconds < OUTBOX_OLD:
            self._told_old = False
        elif not self._told_old:
            self._told_old = True
            since = in_utc(oldest.created_at)
            self._announce(events.OutboxOld(topic=oldest.topic, sequence=oldest.sequence, since=since))

    async def unsent(self) -> Unsent:
        """Give up messages that stayed unsent for too long, while no relay sends."""
        if self._outbox is None:
            return Unsent(0)
        oldest: Old | None = await self._run(self._expiring.oldest_unsent)
        if oldest is None or oldest.seconds < self._outbox:
            return Unsent(0)
        for _ in range(_TRIES):
            with self._guard() as ours:
                if ours:
                    return await self._give_up(self._outbox)
            await asyncio.sleep(_AGAIN)
        return Unsent(0, complete=False)

    async def _give_up(self, seconds: float) -> Unsent:
        count = 0
        while gone := await self._run(partial(self._expiring.unsent, seconds=seconds)):
            count += len(gone)
            by_topic: dict[str, list[Old]] = {}
            for one in gone:
                by_topic.setdefault(one.topic, []).append(one)
            for topic, some in by_topic.items():
                oldest = in_utc(min(one.created_at for one in some))
                self._announce(events.OutboxGivenUp(topic=topic, count=len(some), oldest=oldest))
            await asyncio.sleep(PAUSE)
        return Unsent(count, complete=gone is not None)

    async def count_unsent(self) -> Unsent:
        """Return the number of messages that `unsent` would give up now."""
        if self._outbox is None:
            return Unsent(0)
        return Unsent(await self._run(partial(self._expiring.count_unsent, seconds=self._outbox)))


class _Busy(Exception):
    """A partition's fence was not free in time."""


def _told(handler: str, dead: DeadMessage) -> events.MessageDeadLettered:
    message = dead.message
    return events.MessageDeadLettered(
        handler=handler,
        partition=TopicPartition(message.topic, message.partition),
        offset=message.offset,
        message_id=dead.message_id or "",
        reason=dead.reason,
        error=dead.error_type,
    )
