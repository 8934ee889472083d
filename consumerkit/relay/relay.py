"""The relay works in rounds and treats each topic separately.

It sends at least once: if it dies between acknowledgement and removal, the message is sent again with the same message
ID. Messages of one key are sent one after another. A message that cannot be sent stays, and holds back only its own
topic or key. The wait for a topic that does not answer does not stop the others.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Sequence
from typing import Final

from consumerkit.concurrency import wait_for_first
from consumerkit.errors import StartError
from consumerkit.events import Announcer
from consumerkit.failpoints import reach
from consumerkit.observability.spans import NO_TRACES, Traces
from consumerkit.relay.announcements import RelayAnnouncements
from consumerkit.relay.holds import Holds
from consumerkit.relay.refusals import cause_of
from consumerkit.relay.rows import Rows
from consumerkit.relay.shipment import Shipment, ShipmentResult
from consumerkit.relay.turn import Awaited, Turn, TurnLost, taken
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import Dialect
from consumerkit.storage.outbox import Pending, Queue
from consumerkit.storage.outbox_queues import OutboxPage, Waiting
from consumerkit.storage.tables import Tables
from consumerkit.transports.base import Producer, SendFailure

PAGES: Final = 20
POLL_INTERVAL: Final = 1.0
ROUND_TIMEOUT: Final = 0.25
"""Seconds after which a round goes on without a topic that has not answered."""

UNANSWERED_BYTES: Final = 64 * 1024 * 1024
"""Bytes of unanswered messages above which no further page is read."""

MOST_QUEUES: Final = 200
"""The most waiting queues that the read of a page leaves out; the others are read and passed over."""

STOP_TIMEOUT: Final = 3.0
REVIEW_INTERVAL: Final = 0.5
"""Seconds for which the database is not asked again whether held messages still wait."""


class Relay:
    """Publishes the outbox of one database; only one process at a time does so.

    Args:
        database: The outbox's database.
        dialect: Its dialect.
        tables: The table definitions.
        producer: Sends messages; the relay starts and stops it.
        announce: Announces events.
        written: Set when this process has written to the outbox.
        principal: The producer's Kafka user, named if it lacks a right; None if it is unknown.
        deadline: Seconds after which a request to a silent database is abandoned and repeated.
        traces: Makes a span for each sent message.
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
        traces: Traces = NO_TRACES,
    ) -> None:
        self._traces = traces
        self._database = database
        self._deadline = deadline
        self._dialect = dialect
        self._tables = tables
        self._producer = producer
        self._announcements = RelayAnnouncements(announce, principal)
        self._written = written
        self._holds = Holds()
        self._reviewed = -math.inf
        self._stopping = asyncio.Event()
        # Topics that have not answered yet, from any round; nothing more is sent to them before the answer.
        self._shipments: dict[str, Shipment] = {}
        self._rows = Rows(database, dialect, tables, deadline)
        self._awaited = Awaited(self._rows.holder, announce)
        # Topics that must wait for the next round.
        self._out: set[str] = set()
        # Where the next page begins: the last queue read, and for rows without a key the last sequence passed over, by
        # the topic's digest.
        self._after: Queue | None = None
        self._keyless: dict[bytes, int] = {}
        self._digests: dict[str, bytes] = {}

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
        """Start the producer, however long it takes: consuming does not need it, and the outbox keeps its messages."""
        while not self._stopping.is_set():
            try:
                await self._producer.start()
            except StartError as error:
                await self._sleep(self._announcements.unconnected(error, time.monotonic()))
            else:
                self._announcements.works(time.monotonic())
                return

    async def _turn(self) -> None:
        self._written.clear()
        try:
            sent = await self.publish()
        except TurnLost as error:
            await self._sleep(self._announcements.turn_lost(error, time.monotonic()))
            return
        except Exception as error:  # noqa: BLE001 - the outbox stays as it is, and this is tried again
            await self._sleep(self._announcements.trouble(error, time.monotonic()))
            return
        self._announcements.works(time.monotonic())
        if not sent:
            await self._sleep(POLL_INTERVAL)

    async def publish(self) -> int:
        """Publish the present messages if no other relay does; return how many were sent."""
        # This does not need the turn: messages that the broker has must not be sent again.
        sent = self._harvest()
        await self._rows.remove()
        async with taken(self._database, self._dialect, self._deadline) as turn:
            if turn is None:
                await self._awaited.note(time.monotonic())
                await self._review(time.monotonic(), sends=False)
                return sent
            self._awaited.over(time.monotonic())
            return sent + await self._rounds(turn)

    async def _rounds(self, turn: Turn) -> int:
        """Run rounds until nothing more can be sent and each topic has answered."""
        sent, rounds, more = 0, 0, True
        while not self._stopping.is_set() and (self._shipments or (more and rounds < PAGES)):
            went, left = await self._round(turn)
            sent, rounds, more = sent + went, rounds + 1, bool(went and left)
            if self._shipments and not went:
                await self._sleep(POLL_INTERVAL, *self._tasks())
        if self._shipments:
            await asyncio.wait(self._tasks(), timeout=STOP_TIMEOUT)
            sent += self._harvest()
        await self._rows.remove()
        return sent

    async def _round(self, turn: Turn) -> tuple[int, bool]:
        """Send page after page; a failed or waiting message holds back only its own queue or topic.

        Returns:
            How many messages were sent, and whether some were passed over.
        """
        await self._review(time.monotonic(), sends=True)
        sent, pages, passed_over, over = self._harvest(), 0, self._after is not None, False
        self._out = set(self._shipments)
        while pages < PAGES and not over and not self._stopping.is_set():
            now = time.monotonic()
            waiting = self._waiting(now)
            page = await (self._rows.lowest() if waiting is None else self._rows.next_queues(self._after, waiting))
            await turn.check()
            went = await self._send(page.pending, turn, now)
            sent += went
            # A page without a sent message does not count: held messages must not hide those behind them.
            pages += bool(went)
            passed_over = passed_over or bool(page.cut)
            over = not page.pending if waiting is None else self._moved_on(page, now)
        if sent:
            self._announcements.published(sent)
        return sent, bool(self._out) or passed_over or pages == PAGES

    async def _review(self, now: float, *, sends: bool) -> None:
        """End the holds whose messages are gone from the outbox."""
        sequences, topics = self._holds.refused()
        if not sequences or now - self._reviewed < REVIEW_INTERVAL:
            return
        self._reviewed = now
        remaining = await self._rows.remaining(sequences, topics)
        for topic, hold in self._holds.without_reason(remaining, now, sends=sends):
            self._announcements.resumed(topic, hold, now)

    def _waiting(self, now: float) -> Waiting | None:
        """Return what to leave out; None if nothing waits: the lowest rows are then read, which is fastest."""
        topics, queues = self._out.union(self._holds.topics(now)), self._holds.queues(now)
        if not topics and not queues:
            self._after = None
            return None
        # The next waiting queues; if they are too many, the others are read and passed over.
        after = self._after or Queue(b"", b"")
        held = sorted(queue for queue in queues if queue.key and queue > after)
        return Waiting([self._digests[topic] for topic in topics], held[:MOST_QUEUES], self._keyless)

    def _moved_on(self, page: OutboxPage, now: float) -> bool:
        """Go on after a page's queues; return whether none is left.

        Rows without a key wait singly. If all of a page wait, the next rows of the same queue are read first.
        """
        looked_past = False
        for queue in page.cut:
            rows = [one for one in page.pending if one.queue == queue]
            if not queue.key and all(self._holds.held(one, now) for one in rows):
                self._keyless[queue.topic] = rows[-1].sequence
                looked_past = True
        if looked_past:
            return False
        self._after = page.last
        if page.last is None:
            self._keyless.clear()
        return page.last is None

    async def _send(self, page: Sequence[Pending], turn: Turn, now: float) -> int:
        """Send each topic its part, and wait briefly; return how many messages were sent."""
        by_topic: dict[str, list[Pending]] = {}
        for one in page:
            if not self._holds.held(one, now):
                by_topic.setdefault(one.message.topic, []).append(one)
        for topic, pending in by_topic.items():
            self._digests[topic] = pending[0].queue.topic
            # After a failed try, one message goes ahead; if that fails too, only one was waited for.
            part = pending[:1] if self._holds.ill(topic) else pending
            if len(part) < len(pending):
                self._out.add(topic)
            self._shipments[topic] = Shipment(self._producer, part, self._rows.keeps, turn.is_ours, self._traces)
        if by_topic:
            await asyncio.wait(self._tasks(by_topic), timeout=ROUND_TIMEOUT)
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

    def _harvest(self) -> int:
        """Apply the answers that have arrived; return how many messages were sent."""
        went = 0
        for topic in [topic for topic, shipment in self._shipments.items() if shipment.task.done()]:
            shipment = self._shipments.pop(topic)
            self._note(topic, shipment.delivery)
            went += len(shipment.delivery.acknowledged)
            shipment.task.result()
        if went:
            reach("dlq_acked")
        return went

    def _note(self, topic: str, delivery: ShipmentResult) -> None:
        now = time.monotonic()
        self._rows.acknowledge(delivery.acknowledged)
        for one in delivery.by_reference:
            self._announcements.by_reference(one)
        for one in delivery.acknowledged:
            self._announcements.resumed(topic, self._holds.release(one), now)
        if not delivery.topic_failed and (delivery.acknowledged or delivery.refused):
            self._announcements.resumed(topic, self._holds.release_topic(topic), now)
        for one, failure in delivery.refused:
            self._hold(one, failure, now)

    def _hold(self, pending: Pending, failure: SendFailure, now: float) -> None:
        topic = pending.message.topic
        self._announcements.resumed(topic, self._holds.outlived(pending), now)
        hold, news = self._holds.hold(pending, cause_of(failure), now)
        if hold.sequence is None:
            self._out.add(topic)
        if news:
            self._announcements.held(pending, failure, hold)

    async def _sleep(self, seconds: float, *until: asyncio.Task[None]) -> None:
        """Wait until this process writes to the outbox, time runs out, the relay stops, or a task of `until` ends."""
        await wait_for_first(self._written, self._stopping, *until, within=seconds)
        self._written.clear()

    def stop(self) -> None:
        """End the relay after the work under way."""
        self._stopping.set()
