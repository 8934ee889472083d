"""The relay: one round after another, each topic by itself.

At least once: a relay that dies between acknowledgement and removal sends again, with the same message ID. Messages of
one key are sent one after another. What cannot be sent stays, and holds back its own topic or key only; a topic that
does not answer is waited for beside the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from sqlalchemy.orm import Session

from consumerkit.errors import StartError
from consumerkit.events import Announcer
from consumerkit.failpoints import reach
from consumerkit.relay import reference
from consumerkit.relay.holds import Holds
from consumerkit.relay.refusals import cause_of
from consumerkit.relay.shipment import Delivery, Shipment
from consumerkit.relay.telling import Telling
from consumerkit.storage import outbox
from consumerkit.storage.dialects import Dialect
from consumerkit.storage.engines import Database
from consumerkit.storage.outbox import Identity, OutboxMessage, Pending
from consumerkit.storage.tables import Tables
from consumerkit.transports.base import Producer, SendFailure

PAGE: Final = 500
PAGE_BYTES: Final = 8 * 1024 * 1024
PAGES: Final = 20
POLL_INTERVAL: Final = 1.0
PATIENCE: Final = 0.25
"""Seconds after which the round goes on without a topic that has not answered."""

UNANSWERED_BYTES: Final = 64 * 1024 * 1024
"""Bytes of messages without an answer above which no further page is read."""

MOST_PLACES: Final = 200
"""Keys and messages that wait by themselves and that are left out when a page is read; more are passed over."""

STOP_PATIENCE: Final = 3.0


class Relay:
    """Publishes the outbox of one database; among all processes one at a time does.

    Args:
        database: Where the outbox is.
        dialect: Its dialect.
        tables: The table definitions.
        producer: Sends; started and stopped here.
        announce: Told what happened.
        written: Set when this process has written to the outbox.
        principal: The Kafka user that the producer is, to tell who lacks a right; None if it is not known.
        deadline: Seconds after which a database that does not answer is left, and asked anew.
    """

    def __init__(
        self,
        database: Database,
        dialect: Dialect,
        tables: Tables,
        producer: Producer,
        announce: Announcer,
        written: asyncio.Event,
        *,
        principal: str | None = None,
        deadline: float = 60.0,
    ) -> None:
        self._database = database
        self._deadline = deadline
        self._dialect = dialect
        self._tables = tables
        self._producer = producer
        self._telling = Telling(announce, principal)
        self._written = written
        self._holds = Holds()
        self._stopping = asyncio.Event()
        # Topics that have not answered yet, in whichever round they were sent to; nothing else of them goes meanwhile.
        self._shipments: dict[str, Shipment] = {}
        # What the broker has, and the outbox still, too: removed before anything else, whatever failed meanwhile.
        self._acknowledged: list[Identity] = []
        # Of the round under way: when it began, and the topics and keys that must wait for the next one.
        self._began = 0.0
        self._out: set[str] = set()
        self._behind: set[tuple[str, bytes]] = set()

    async def run(self) -> None:
        """Publish until `stop`."""
        await self._connect()
        try:
            while not self._stopping.is_set():
                await self._turn()
        finally:
            tasks = self._tasks()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._producer.stop()

    async def _connect(self) -> None:
        """Start the producer, however long that takes: consuming does not need it, and the outbox keeps what it has."""
        while not self._stopping.is_set():
            try:
                await self._producer.start()
            except StartError as error:
                await self._sleep(self._telling.unconnected(error, time.monotonic()))
            else:
                self._telling.works(time.monotonic())
                return

    async def _turn(self) -> None:
        self._written.clear()
        try:
            sent = await self.publish()
        except Exception as error:  # noqa: BLE001 - the outbox stays as it is, and this is tried again
            await self._sleep(self._telling.trouble(error, time.monotonic()))
            return
        self._telling.works(time.monotonic())
        if not sent:
            await self._sleep(POLL_INTERVAL)

    async def publish(self) -> int:
        """Publish what is there now, if no other relay does; return how many messages went."""
        with self._dialect.relay_guard(self._database.location) as mine:
            if not mine:
                return 0
            if self._dialect.single_writer:
                return await self._rounds(_nothing)
            # This transaction holds the lock and nothing else; it reads and writes nothing, so it holds up no vacuum.
            async with self._database.transaction(within=self._deadline) as run:
                if not await run(self._dialect.lock_relay):
                    return 0
                return await self._rounds(partial(run, self._probe))

    def _probe(self, session: Session) -> None:
        self._dialect.probe(session.connection())

    async def _rounds(self, still_ours: Callable[[], Awaitable[None]]) -> int:
        """Go round after round until nothing more can go and each topic has answered; `still_ours` raises if not."""
        sent, rounds, more = 0, 0, True
        while not self._stopping.is_set() and (self._shipments or (more and rounds < PAGES)):
            await still_ours()
            went, left = await self._round()
            sent, rounds, more = sent + went, rounds + 1, bool(went and left)
            if self._shipments and not went:
                await self._sleep(POLL_INTERVAL, *self._tasks())
        if self._shipments:
            await asyncio.wait(self._tasks(), timeout=STOP_PATIENCE)
            sent += self._harvest()
        await self._removed()
        return sent

    async def _round(self) -> tuple[int, bool]:
        """Send page after page: what fails or waits is not overtaken by its topic's or key's later messages.

        Returns:
            How many messages went, and whether some were passed over.
        """
        self._began = time.monotonic()
        for topic, hold in self._holds.forget(self._began):
            self._telling.resumed(topic, hold, self._began)
        self._behind.clear()
        sent, after, pages = self._harvest(), 0, 0
        self._out = set(self._shipments)
        while pages < PAGES and not self._stopping.is_set():
            page = await self._removed(partial(self._page, after=after))
            if not page:
                break
            after = page[-1].sequence
            went = await self._send(page)
            sent += went
            # One from which nothing went does not count: what is held back must not hide what comes behind it.
            pages += bool(went)
        if sent:
            self._telling.published(sent)
        return sent, bool(self._out) or pages == PAGES

    async def _removed(self, read: Callable[[Session], list[Pending]] | None = None) -> list[Pending]:
        """Remove what the broker has, and read in the same transaction."""
        acknowledged = list(self._acknowledged)

        def work(session: Session) -> list[Pending]:
            outbox.remove(session.connection(), self._tables, acknowledged)
            return read(session) if read is not None else []

        if read is None and not acknowledged:
            return []
        found = await self._database.run(work, within=self._deadline)
        del self._acknowledged[: len(acknowledged)]
        return found

    def _page(self, session: Session, after: int) -> list[Pending]:
        places = self._holds.places(self._began)[:MOST_PLACES]
        return outbox.page(
            session.connection(),
            self._tables,
            PAGE,
            PAGE_BYTES,
            after=after,
            without=sorted(self._out.union(self._holds.topics(self._began))),
            without_keys=[(place.topic, place.key) for place in places if place.key is not None],
            without_sequences=[place.sequence for place in places if place.sequence is not None],
        )

    async def _send(self, page: Sequence[Pending]) -> int:
        """Send each topic its part, and wait a little; return how many messages went."""
        by_topic: dict[str, list[Pending]] = {}
        for one in page:
            if not self._waits(one):
                by_topic.setdefault(one.message.topic, []).append(one)
        for topic, pending in by_topic.items():
            # Where the last try failed one goes ahead, and no more than one is waited for if that fails, too.
            part = pending[:1] if self._holds.ill(topic) else pending
            if len(part) < len(pending):
                self._out.add(topic)
            self._shipments[topic] = Shipment(self._producer, part, self._is_kept)
        if by_topic:
            await asyncio.wait(self._tasks(by_topic), timeout=PATIENCE)
        went = self._harvest()
        self._out.update(self._shipments)
        while self._unanswered() > UNANSWERED_BYTES and not self._stopping.is_set():
            await self._sleep(POLL_INTERVAL, *self._tasks())
            went += self._harvest()
        return went

    def _tasks(self, topics: Iterable[str] | None = None) -> list[asyncio.Task[None]]:
        return [self._shipments[topic].task for topic in (self._shipments if topics is None else topics)]

    def _unanswered(self) -> int:
        return sum(shipment.size for shipment in self._shipments.values())

    def _waits(self, pending: Pending) -> bool:
        # By the time at which the round began: a hold that ends meanwhile would let the later ones pass.
        message = pending.message
        behind = message.key is not None and (message.topic, message.key) in self._behind
        return behind or message.topic in self._out or self._holds.held(pending, self._began)

    async def _is_kept(self, message: OutboxMessage) -> bool:
        look = partial(reference.is_kept, tables=self._tables, message=message)
        return await self._database.run(look, within=self._deadline)

    def _harvest(self) -> int:
        """Take note of the answers that are there; return how many messages went."""
        went = 0
        for topic in [topic for topic, shipment in self._shipments.items() if shipment.task.done()]:
            shipment = self._shipments.pop(topic)
            self._note(topic, shipment.delivery)
            went += len(shipment.delivery.acknowledged)
            shipment.task.result()
        if went:
            reach("dlq_acked")
        return went

    def _note(self, topic: str, delivery: Delivery) -> None:
        now = time.monotonic()
        self._acknowledged += [one.identity for one in delivery.acknowledged]
        for one in delivery.by_reference:
            self._telling.by_reference(one)
        for one in delivery.acknowledged:
            self._telling.resumed(topic, self._holds.release(one), now)
        if not delivery.topic_failed and (delivery.acknowledged or delivery.refused):
            self._telling.resumed(topic, self._holds.release_topic(topic), now)
        for one, failure in delivery.refused:
            self._hold(one, failure, now)

    def _hold(self, pending: Pending, failure: SendFailure, now: float) -> None:
        topic, key = pending.message.topic, pending.message.key
        self._telling.resumed(topic, self._holds.outlived(pending), now)
        if key is not None:
            self._behind.add((topic, key))
        hold, news = self._holds.hold(pending, cause_of(failure), now)
        if hold.sequence is None:
            self._out.add(topic)
        if news:
            self._telling.held(pending, failure, hold)

    async def _sleep(self, seconds: float, *until: asyncio.Task[None]) -> None:
        """Wait until somebody writes to the outbox, the time is over, the relay stops, or one of `until` is done."""
        waits = [asyncio.ensure_future(self._written.wait()), asyncio.ensure_future(self._stopping.wait())]
        ends: list[asyncio.Future[Any]] = [*waits, *until]
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self._written.clear()
        for wait in waits:
            wait.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*waits)

    def stop(self) -> None:
        """Have the relay end after what is under way."""
        self._stopping.set()


async def _nothing() -> None:
    """A file's lock cannot be lost."""
