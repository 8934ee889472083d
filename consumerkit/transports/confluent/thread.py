"""The thread that owns a librdkafka consumer: it always polls, and runs the event loop's commands in between.

Only one thread may use the client, a poll must never be cancelled, and a group member must be
polled whatever the handlers do; so one thread does nothing else. It hands messages over when a
fetch asks for them. Without a fetch it leaves them in the client. After `PARK_AFTER` seconds it
pauses the partitions there and polls for callbacks only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import Message as RawMessage
from confluent_kafka import TopicPartition as RawPartition

from consumerkit.errors import StartError, Unavailable
from consumerkit.message import TopicPartition
from consumerkit.transports.base import AssignmentListener, Health, Position, Subscription
from consumerkit.transports.confluent import client_log
from consumerkit.transports.confluent.assignment import Ask, Assignment
from consumerkit.transports.confluent.commits import Commits, resolve
from consumerkit.transports.confluent.handover import Fetch, Fetched, Handover
from consumerkit.transports.confluent.messages import HOPELESS, UNUSABLE, convert, without_values
from consumerkit.transports.oauth import wait_for_token

log = logging.getLogger(__name__)
T = TypeVar("T")

SLICE = 0.02  # seconds that a command waits at most while the thread polls
PARK_AFTER = 0.5
LOOK_AFTER = 0.25  # seconds between two checks of the client's positions
# Seconds between two checks of the ID by which the group knows this member. A check holds Python's lock for about a
# millisecond, and a new ID comes with a new assignment.
NAME_AFTER = 0.1
NAME_SELDOM = 2.0
LEAVE = 3.0  # seconds for the leave request to the group, once everything is given up


class PollThread:
    """Runs one consumer.

    Args:
        config: The client's whole configuration, without its callbacks.
        subscription: What to read.
        listener: Called at each assignment, on `loop`.
        ask: Asks the broker about partitions, on `loop`.
        has_none: Asks the broker whether it has assigned nothing to a member; None if the client
            itself learns that.
        loop: Where futures are resolved and the listener runs.
    """

    def __init__(
        self,
        config: Mapping[str, object],
        subscription: Subscription,
        listener: AssignmentListener,
        ask: Ask,
        loop: asyncio.AbstractEventLoop,
        has_none: Callable[[str], Coroutine[Any, Any, bool]] | None = None,
    ) -> None:
        self.paused = self.over = False
        self._member = ""
        self.started: asyncio.Future[None] = loop.create_future()
        self.finished: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._commits = Commits(loop)
        self._config: dict[str, Any] = {
            **config,
            "logger": client_log.log,
            "error_cb": self._on_error,
            "on_commit": self._commits.on_commit,
        }
        confirm = None if has_none is None else lambda: has_none(self._member)
        self._assignment = Assignment(self, subscription, listener, ask, confirm)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._consumer: Consumer | None = None
        self._handover = Handover(loop, self._commands.put, self._passed)
        self._passed_at = 0.0
        self._parked = self._stopping = self._telling = False
        self._polled = self._ran = time.monotonic()
        self._error: str | None = None
        self._named = self._changed = 0.0
        self._changes = 0
        self._thread = threading.Thread(target=self._run, name=f"consumerkit-{subscription.group}", daemon=True)

    # -- called on the event loop

    def start(self) -> None:
        """Connect and subscribe; `started` reports the result."""
        self._thread.start()

    def fetch(self, limit: int, timeout: float) -> asyncio.Future[Fetched]:
        """Ask for messages."""
        fetch = Fetch(limit, time.monotonic() + timeout, self._loop.create_future())
        self._commands.put(lambda: self._handover.ask(fetch))
        if self.over:  # perhaps no thread would take it
            resolve(self._loop, fetch.answer, Fetched([], {}))
        return fetch.answer

    def commit(self, positions: Mapping[TopicPartition, Position]) -> asyncio.Future[None]:
        """Ask for a commit of the positions whose epochs are current when the commit runs."""
        answer: asyncio.Future[None] = self._loop.create_future()
        self._commands.put(lambda: self._commit(positions, answer))
        if self.over:
            resolve(self._loop, answer, Unavailable("the consumer has ended"))
        return answer

    def hold(self, partitions: Collection[TopicPartition], *, held: bool) -> None:
        """Ask the thread to read nothing of these partitions, or to read them again."""
        self._commands.put(lambda: self._hold(partitions, held=held))

    def seek(self, partition: TopicPartition, offset: int, topic_id: str | None) -> int:
        """Ask the thread to read a partition from another offset; return its new epoch."""
        epoch = self._assignment.next_epoch()
        self._commands.put(lambda: self._seek(partition, offset, epoch, topic_id))
        return epoch

    def holds(self, partition: TopicPartition) -> bool:
        """Return whether a partition is assigned; callable from any thread."""
        return partition in self._assignment.readings

    def stop(self) -> None:
        """Ask for the end; `finished` reports it."""
        self._stopping = True

    def health(self) -> Health:
        """Return how long ago the thread last did something; callable from any thread."""
        return Health(time.monotonic() - self._ran, self._error)

    def member(self) -> str:
        """Return the ID by which the group knows this member; callable from any thread."""
        return "" if self.over else self._member

    def is_at_work(self) -> bool:
        """Return whether a call of the listener is running; callable from any thread."""
        return self._telling

    # -- called by the assignment, on the thread

    def tell(self, work: Coroutine[Any, Any, T], timeout: float) -> T | None:
        """Run a call of the listener on its event loop; None if it raised or took too long."""
        end = time.monotonic() + timeout
        call = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._telling = True
        try:
            while not call.done() and time.monotonic() < end:
                # The event loop itself may be waiting for a commit or a fetch.
                self._serve_waiting()
                with contextlib.suppress(TimeoutError):
                    call.result(SLICE)
            return call.result(0)
        except BaseException as error:  # noqa: BLE001 - whatever a listener raises, the client must not see it
            call.cancel()
            self.report(f"the assignment listener raised {type(error).__name__}: {error}")
            return None
        finally:
            self._telling = False

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start work on the event loop without waiting for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def settle(self, *, confirm: bool) -> None:
        """Answer all pending commits: by a synchronous commit, or as unconfirmed."""
        if confirm and self._consumer is not None:
            self._commits.confirm(self._consumer)
        else:
            self._commits.give_up()

    def report(self, error: str) -> None:
        """Make an error show in `health`."""
        log.error("%s", error)
        self._error = error

    def is_parked(self) -> bool:
        """Whether partitions are paused in the client."""
        return self._parked

    # -- the thread

    def _run(self) -> None:
        try:
            wait_for_token(self._config)
            self._consumer = Consumer(self._config)
            self._assignment.subscribe(self._consumer)
        except StartError as error:
            resolve(self._loop, self.started, error)
            return
        except BaseException as error:  # noqa: BLE001 - raised in the caller that awaits `started`
            words = without_values(str(error))
            resolve(self._loop, self.started, StartError(f"the Kafka client refused to start: {words}"))
            return
        resolve(self._loop, self.started, None)
        try:
            while not self._stopping:
                self._turn(self._consumer)
        except BaseException as error:
            log.exception("the Kafka consumer's thread ended")
            self.report(f"the consumer's thread ended: {type(error).__name__}: {error}")
        finally:
            self._close(self._consumer)

    def _turn(self, consumer: Consumer) -> None:
        self._serve_waiting()
        self._find_name(consumer)
        if self._assignment.rejoin:
            self._assignment.rejoin = False
            consumer.unsubscribe()
            self._assignment.subscribe(consumer)
        self._assignment.take_on(consumer)
        fetch = self._handover.fetch
        if fetch is not None and not self.paused:
            self._park(consumer, parked=False)
            if not self._handover.ready:
                self._poll(consumer, fetch.limit)
            self._handover.give(self._assignment.readings, self._assignment.changes)
        elif self._parked or time.monotonic() - self._polled > PARK_AFTER:
            self._park(consumer, parked=True)
            self._poll(consumer, 1)
        else:
            with contextlib.suppress(queue.Empty):
                self._commands.get(timeout=SLICE)()

    def _find_name(self, consumer: Consumer) -> None:
        now = time.monotonic()
        if self._assignment.changes != self._changes:
            self._changes, self._changed = self._assignment.changes, now
        is_settled = self._member and now - self._changed > NAME_SELDOM
        if now - self._named >= (NAME_SELDOM if is_settled else NAME_AFTER):
            self._named, self._member = now, consumer.memberid() or ""

    def _serve_waiting(self) -> None:
        """Run all commands, and answer fetches and commits that have waited too long."""
        now = self._ran = time.monotonic()
        with contextlib.suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()
        self._handover.expire(now)
        self._commits.expire(now)

    def _poll(self, consumer: Consumer, limit: int) -> None:
        """Poll once: callbacks run in here, and the available messages are handed over."""
        try:
            first = consumer.poll(SLICE)
            before = self._assignment.changes
            raw = [] if first is None else [first]
            if raw and limit > 1:
                raw += consumer.consume(limit - 1, 0)
            if self._assignment.changes != before:
                # Assigned within consume(): a message may or may not belong to the new assignment.
                # Read it again.
                self._assignment.places.lose_place(since=before)
        except Exception as error:  # noqa: BLE001 - after any error, the messages that the client had dequeued are gone
            log.warning("the Kafka client failed in a poll; reading again from the last positions: %r", error)
            self._assignment.places.lose_place()
            raw = []
        self._polled = self._ran = time.monotonic()
        messages, events = convert(raw, self._assignment.readings) if raw else ([], [])
        self._handover.add(messages, self._assignment.changes)
        for event in events:
            self._on_event(consumer, event)
        self._assignment.places.find_place(consumer)

    def _passed(self) -> dict[TopicPartition, Position]:
        """Return the offsets that the client passed without a message, now and then; a seek makes it forget them."""
        now, consumer = time.monotonic(), self._consumer
        if self._telling or consumer is None or now - self._passed_at < LOOK_AFTER:
            return {}
        self._passed_at = now
        return self._assignment.places.passed(consumer)

    def _park(self, consumer: Consumer, *, parked: bool) -> None:
        if self._parked == parked:
            return
        self._parked = parked
        readings = self._assignment.readings
        partitions = [RawPartition(*at) for at, reading in readings.items() if not (reading.failed or reading.held)]
        (consumer.pause if parked else consumer.resume)(partitions)

    def _hold(self, partitions: Collection[TopicPartition], *, held: bool) -> None:
        readings, consumer = self._assignment.readings, self._consumer
        changed = [at for at in partitions if at in readings and readings[at].held != held]
        for at in changed:
            readings[at].held = held
        # A failed partition stays paused; `held` decides once it is read again.
        changed = [at for at in changed if not readings[at].failed]
        if changed and consumer is not None and not self._parked:
            (consumer.pause if held else consumer.resume)([RawPartition(*at) for at in changed])

    def _seek(self, partition: TopicPartition, offset: int, epoch: int, topic_id: str | None) -> None:
        if self._consumer is not None:
            self._assignment.restart(self._consumer, partition, offset, epoch, topic_id)

    def _commit(self, positions: Mapping[TopicPartition, Position], answer: asyncio.Future[None]) -> None:
        offsets = self._assignment.current(positions)
        if not offsets or self._consumer is None:
            resolve(self._loop, answer, None if not offsets else Unavailable("the consumer has ended"))
            return
        # Within a callback the client cannot report a later answer.
        self._commits.begin(self._consumer, offsets, answer, wait=self._telling)

    def _on_event(self, consumer: Consumer, event: RawMessage) -> None:
        error, topic, number = event.error(), event.topic(), event.partition()
        if error is None:
            return
        if topic is not None and number is not None and error.code() in UNUSABLE:
            partition = TopicPartition(topic, number)
            if partition in self._assignment.readings:
                self._assignment.fail(consumer, partition, error)
                return
        self._on_error(error)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal() or error.code() in HOPELESS:
            self.report(f"{error.name()}: {error.str()}")
        else:
            client_log.log.info("the Kafka client reports: %s: %s", error.name(), error.str())

    def _leave(self, consumer: Consumer) -> None:
        """Give all partitions up, so that the listener finishes, and tell the group.

        With no partition assigned, `close` alone would leave silently, and others would wait for a
        rebalance timeout.
        """
        consumer.unsubscribe()
        seen, end = -1, 0.0
        while consumer.memberid():
            if self._assignment.changes != seen:
                seen, end = self._assignment.changes, time.monotonic() + LEAVE
            if time.monotonic() > end:
                return
            consumer.poll(SLICE)
            self._serve_waiting()

    def _close(self, consumer: Consumer) -> None:
        try:
            self._handover.end()
            self._leave(consumer)
            consumer.close()
        except (KafkaException, RuntimeError) as error:
            log.warning("leaving the group failed: %s", error)
        finally:
            self._consumer = None
            self.over = True
            self._serve_waiting()
            self._handover.end()
            self._commits.give_up()
            resolve(self._loop, self.finished, None)
