"""Which partitions a librdkafka consumer holds: rebalance callbacks, where reading starts, what may be committed.

Everything here runs on the poll thread. Nothing raised here may reach the client: an exception out of a callback makes
it destroy messages that it counts as delivered.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol, TypeVar

import confluent_kafka
from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException

from consumerkit.errors import PartitionUnusable, Unavailable
from consumerkit.message import TopicPartition
from consumerkit.transports.base import AssignmentListener, PartitionInfo, Position, Subscription
from consumerkit.transports.confluent_messages import Reading
from consumerkit.transports.notes import closed

log = logging.getLogger(__name__)
T = TypeVar("T")
Partitions = list[confluent_kafka.TopicPartition]
Told = Mapping[TopicPartition, PartitionInfo]
Ask = Callable[[Collection[TopicPartition]], Coroutine[Any, Any, Told]]

_ASK_AGAIN_AFTER = 0.5
_MARGIN = 5.0  # beyond the drain timeout, which the listener itself keeps
_REFUSED = 1.0  # for so long the client may refuse to seek because an assignment has only begun
_CALL = 30.0  # for calls of the listener that only take note


class Host(Protocol):
    """What the callbacks need of the poll thread."""

    def tell(self, work: Coroutine[Any, Any, T], timeout: float) -> T | None:
        """Run a call of the listener on its event loop; None when it raised or took too long."""
        ...

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin something on the event loop, without waiting for it."""
        ...

    def settle(self, *, confirm: bool) -> None:
        """Answer all commits under way: by a synchronous commit, or as unconfirmed."""

    def report(self, error: str) -> None:
        """Make an error show in `health`."""

    def is_parked(self) -> bool:
        """Whether partitions are paused in the client."""
        ...


class Assignment:
    """The partitions of one consumer.

    One that is assigned is taken on in two steps: the callback has the client assign it, paused; the listener is told,
    and reading begins, once the broker has told of it. A topic may have been created anew, so that is asked each time,
    and never on this thread, which must go on polling.

    Attributes:
        readings: What is known of each assigned partition.
        changes: Counts the callbacks, so that a caller sees whether one ran meanwhile.
        rejoin: Set when partitions could not be taken on, so that the group must be joined anew.
    """

    def __init__(
        self,
        host: Host,
        subscription: Subscription,
        listener: AssignmentListener,
        ask: Ask,
    ) -> None:
        self.readings: dict[tuple[str, int], Reading] = {}
        self.changes = 0
        self.rejoin = False
        self._host = host
        self._subscription = subscription
        self._listener = listener
        self._ask = ask
        self._epochs = itertools.count(1)
        # Partitions that are assigned and not taken on; and the question that they wait for.
        self._waiting: set[TopicPartition] = set()
        self._asked: Future[Told] | None = None
        self._ask_at = 0.0

    def subscribe(self, consumer: Consumer) -> None:
        """Join the group."""
        topics = list(self._subscription.topics)
        consumer.subscribe(topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def take_on(self, consumer: Consumer) -> None:
        """Take partitions on of which the broker has told by now; ask it again about the others."""
        if not self._waiting:
            return
        if self._asked is None:
            if time.monotonic() >= self._ask_at:
                self._asked = self._host.begin(self._ask(tuple(self._waiting)))
            return
        if not self._asked.done():
            return
        asked, self._asked = self._asked, None
        told = _answer(asked)
        known = {at: told[at] for at in self._waiting if at in told}
        if len(known) < len(self._waiting):
            log.warning("the broker has not told about %d partitions yet, which wait", len(self._waiting) - len(known))
            self._ask_at = time.monotonic() + _ASK_AGAIN_AFTER
        if known:
            self._begin(consumer, known)

    def current(self, positions: Mapping[TopicPartition, Position]) -> Partitions:
        """Return what to commit: positions of epochs that still hold."""
        found = []
        for partition, (offset, epoch, note) in positions.items():
            reading = self.readings.get(partition)
            if reading is not None and reading.epoch == epoch:
                found.append(reading.position(partition, offset, closed(note)))
        return found

    def passed(self, consumer: Consumer) -> dict[TopicPartition, Position]:
        """Return where the client reads on, where that is behind the last message and nothing is in the way."""
        asked = [
            confluent_kafka.TopicPartition(*at)
            for at, reading in self.readings.items()
            if not (reading.failed or reading.held or reading.lost_place)
        ]
        found = {}
        for one in consumer.position(asked) if asked else ():
            reading = self.readings[one.topic, one.partition]
            if one.error is None and one.offset > reading.next:
                found[TopicPartition(one.topic, one.partition)] = Position(one.offset, reading.epoch)
        return found

    def fail(self, consumer: Consumer, partition: TopicPartition, error: KafkaError) -> None:
        """Read a partition no further, and tell the listener; others go on."""
        reading = self.readings[partition]
        if reading.next == reading.began and not reading.doubted and self._tried_again(consumer, partition, reading):
            return
        consumer.pause([confluent_kafka.TopicPartition(*partition)])
        words = f"{partition} cannot be read from offset {reading.next}: {error.name()}: {error.str()}"
        self._host.tell(self._listener.failed(partition, PartitionUnusable(words)), _CALL)

    def next_epoch(self) -> int:
        """Return a number greater than all before; from any thread."""
        return next(self._epochs)

    def restart(
        self, consumer: Consumer, partition: TopicPartition, offset: int, epoch: int, topic_id: str | None
    ) -> None:
        """Read a partition from another offset, unless it was given up or assigned anew since that was asked for."""
        reading = self.readings.get(partition)
        if reading is None or reading.epoch > epoch:
            return
        # What was made ready before is of the old epoch.
        self.changes += 1
        reading.restart(epoch, offset, topic_id, by_seek=not reading.failed)
        if not reading.lost_place:
            # The client has given up on it, and refuses to seek.
            self._assign_again(consumer, partition, reading)

    def find_place(self, consumer: Consumer) -> None:
        """Seek partitions that lost their place to the offset that is next by our own count."""
        for (topic, number), reading in self.readings.items():
            if reading.lost_place and not reading.failed:
                try:
                    consumer.seek(confluent_kafka.TopicPartition(topic, number, reading.next))
                    reading.lost_place, reading.refused = False, None
                except KafkaException as error:
                    # Nothing is read from the partition until a later try succeeds.
                    log.debug("cannot seek %s[%d] yet: %s", topic, number, error)
                    self._after_refusal(consumer, TopicPartition(topic, number), reading)

    def lose_place(self, since: int = -1) -> None:
        """Trust the client's positions no more, in partitions assigned after change `since`."""
        for reading in self.readings.values():
            if reading.born > since:
                reading.lost_place = True

    def _after_refusal(self, consumer: Consumer, partition: TopicPartition, reading: Reading) -> None:
        """Assign a partition again that the client will not seek: it refuses for ever once it gave up reading it.

        It does so where the offset is outside the log, and what it says of that is lost while a partition is not taken
        on yet, and with whatever a failing poll had dequeued. Assigned again it says so once more.
        """
        now = time.monotonic()
        if reading.refused is None:
            reading.refused = now
        elif now - reading.refused > _REFUSED:
            reading.refused = now
            try:
                self._assign_again(consumer, partition, reading)
            except KafkaException as error:
                log.debug("cannot assign %s again yet: %s", partition, error)
            else:
                reading.lost_place, reading.refused = False, None

    def _tried_again(self, consumer: Consumer, partition: TopicPartition, reading: Reading) -> bool:
        """Have a partition read again of which nothing was read yet; return whether the client takes it.

        Its error may be of the position before, which the client had given up on when the partition was sent elsewhere.
        """
        try:
            self._assign_again(consumer, partition, reading)
        except KafkaException as error:
            log.warning("cannot assign %s again: %s", partition, error)
            return False
        self.changes += 1
        reading.doubted, reading.failed, reading.lost_place, reading.refused = True, False, False, None
        return True

    def _assign_again(self, consumer: Consumer, partition: TopicPartition, reading: Reading) -> None:
        at = confluent_kafka.TopicPartition(*partition, reading.next)
        consumer.incremental_unassign([at])
        consumer.incremental_assign([at])
        (consumer.pause if reading.held or self._host.is_parked() else consumer.resume)([at])

    def _on_assign(self, consumer: Consumer, partitions: Partitions) -> None:
        self.changes += 1
        try:
            self._assign(consumer, partitions)
        except BaseException as error:  # noqa: BLE001 - see the module's docstring
            # The client then assigns by itself, but nothing is returned of a partition without a reading.
            log.warning("could not take on %d partitions, joining the group again: %r", len(partitions), error)
            self.rejoin = True

    def _on_revoke(self, consumer: Consumer, partitions: Partitions) -> None:
        self.changes += 1
        try:
            self._revoke(consumer, partitions)
        except BaseException as error:  # noqa: BLE001
            self._host.report(f"giving up partitions failed: {error!r}")
        finally:
            self._forget(partitions)

    def _on_lost(self, consumer: Consumer, partitions: Partitions) -> None:
        self.changes += 1
        try:
            held = self._held(partitions)
            self._forget(partitions)
            self._host.settle(confirm=False)
            if held:
                self._host.tell(self._listener.lost(held), _CALL)
            consumer.incremental_unassign(partitions)
        except BaseException as error:  # noqa: BLE001
            self._host.report(f"losing partitions failed: {error!r}")

    def _assign(self, consumer: Consumer, partitions: Partitions) -> None:
        if not partitions:
            consumer.incremental_assign([])
            return
        # Somewhere, since where to begin is not known yet.
        ends = [confluent_kafka.TopicPartition(at.topic, at.partition, OFFSET_END) for at in partitions]
        consumer.incremental_assign(ends)
        # The client may have begun to fetch all the same; what it returns of them before they are taken on is dropped.
        consumer.pause(ends)
        self._waiting |= {TopicPartition(at.topic, at.partition) for at in partitions}
        # An answer to an earlier question may be older than this assignment.
        self._asked = self._host.begin(self._ask(tuple(self._waiting)))

    def _begin(self, consumer: Consumer, told: Told) -> None:
        """Tell the listener of partitions, and have them read."""
        self.changes += 1
        fresh: dict[tuple[str, int], Reading] = {}
        for at, info in told.items():
            self._waiting.discard(at)
            fresh[at] = Reading(self.next_epoch(), info.topic_id, self._start(info), self.changes)
            fresh[at].lost_place = True
        begun = {TopicPartition(*at): Position(reading.next, reading.epoch) for at, reading in fresh.items()}
        # Known before the listener is: a commit from within `assigned` is one of this epoch.
        self.readings.update(fresh)
        named = [confluent_kafka.TopicPartition(*at) for at in fresh]
        if self._host.tell(_true(self._listener.assigned(begun)), _CALL) is None:
            self._forget(named)
            return
        # The client keeps a pause beyond the assignment: a partition that went while paused would never be read again.
        free = [at for at in named if not self.readings[at.topic, at.partition].held]
        (consumer.pause if self._host.is_parked() else consumer.resume)(free)

    def _revoke(self, consumer: Consumer, partitions: Partitions) -> None:
        held = self._held(partitions)
        if held:
            # The engine may be waiting for a commit, whose answer would otherwise come only after this callback.
            self._host.settle(confirm=True)
            work = self._listener.revoked(held)
            positions = self._host.tell(work, self._subscription.drain_timeout + _MARGIN) or {}
            offsets = self.current({at: position for at, position in positions.items() if at in held})
            if offsets:
                self._commit(consumer, offsets)
        consumer.incremental_unassign(partitions)

    def _commit(self, consumer: Consumer, offsets: Partitions) -> None:
        try:
            answers = consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            log.warning("the last commit of revoked partitions failed, they will be read again: %s", error)
            return
        for answer in answers:
            if answer.error is not None:
                log.warning("the last commit of %s[%d] failed: %s", answer.topic, answer.partition, answer.error)

    def _start(self, info: PartitionInfo) -> int:
        if info.committed is not None:
            return info.committed
        return info.start if self._subscription.start_from == "earliest" else info.end

    def _held(self, partitions: Iterable[confluent_kafka.TopicPartition]) -> Collection[TopicPartition]:
        named = (TopicPartition(at.topic, at.partition) for at in partitions)
        return tuple(partition for partition in named if partition in self.readings)

    def _forget(self, partitions: Iterable[confluent_kafka.TopicPartition]) -> None:
        for at in partitions:
            self.readings.pop((at.topic, at.partition), None)
            self._waiting.discard(TopicPartition(at.topic, at.partition))


async def _true(work: Coroutine[Any, Any, None]) -> bool:
    await work
    return True


def _answer(asked: Future[Told]) -> Told:
    """Return what the broker told; nothing where it did not answer."""
    try:
        return asked.result()
    except (Unavailable, CancelledError) as error:
        log.warning("the broker could not be asked about partitions: %s", error)
        return {}
