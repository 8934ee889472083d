"""Which partitions a librdkafka consumer holds: rebalance callbacks, where reading starts, what may be committed.

Everything here runs on the poll thread. No exception may reach the client: after an exception from a callback it
destroys messages that it counts as delivered.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol, TypeVar

import confluent_kafka
from confluent_kafka import Consumer, KafkaError, KafkaException

from consumerkit.errors import PartitionUnusable, Unavailable
from consumerkit.message import TopicPartition
from consumerkit.transports.base import AssignmentListener, PartitionInfo, Position, Subscription
from consumerkit.transports.confluent.commits import commit_last
from consumerkit.transports.confluent.messages import Reading
from consumerkit.transports.confluent.places import Partitions, ReadPlaces, of_client
from consumerkit.transports.confluent.without import Confirm, WithoutPartitions
from consumerkit.transports.notes import closed

log = logging.getLogger(__name__)
T = TypeVar("T")
Told = Mapping[TopicPartition, PartitionInfo]
Ask = Callable[[Collection[TopicPartition]], Coroutine[Any, Any, Told]]

_ASK_AGAIN_AFTER = 0.5
_MARGIN = 5.0  # beyond the drain timeout, which the listener itself observes
_CALL = 30.0  # for calls of the listener that only record something


class Host(Protocol):
    """What the callbacks need from the poll thread."""

    def tell(self, work: Coroutine[Any, Any, T], timeout: float) -> T | None:
        """Run a call of the listener on its event loop; None if it raised or took too long."""
        ...

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start work on the event loop without waiting for it."""
        ...

    def settle(self, *, confirm: bool) -> None:
        """Answer all pending commits: by a synchronous commit, or as unconfirmed."""

    def report(self, error: str) -> None:
        """Make an error show in `health`."""

    def is_parked(self) -> bool:
        """Whether partitions are paused in the client."""
        ...


class Assignment:
    """The partitions of one consumer.

    A new partition is taken on in two steps. First the callback answers the group and gives the client no partition.
    Once the broker has said where the partition begins, the listener is called and the client gets the partition. The
    topic may have been recreated, so the broker is asked each time, never on this thread, which must go on polling.

    Attributes:
        readings: The state of each assigned partition.
        places: Makes the client read each of them from its own offset.
        changes: Counts the callbacks, so that a caller sees whether one ran while it waited.
        rejoin: Set if partitions could not be taken on: the group must be joined again.
    """

    def __init__(
        self,
        host: Host,
        subscription: Subscription,
        listener: AssignmentListener,
        ask: Ask,
        confirm: Confirm | None = None,
    ) -> None:
        self.readings: dict[tuple[str, int], Reading] = {}
        self.changes = 0
        self.rejoin = False
        self.places = ReadPlaces(self.readings, host.is_parked)
        self._host = host
        self._subscription = subscription
        self._listener = listener
        self._ask = ask
        self._epochs = itertools.count(1)
        # The assigned partitions that are not taken on, and the question that they wait for.
        self._waiting: set[TopicPartition] = set()
        self._asked: Future[Told] | None = None
        self._ask_at = 0.0
        self._without = WithoutPartitions(host.begin, confirm)

    def subscribe(self, consumer: Consumer) -> None:
        """Join the group."""
        topics = list(self._subscription.topics)
        self._without.joined()
        consumer.subscribe(topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def take_on(self, consumer: Consumer) -> None:
        """Take on the partitions that the broker has described; ask again about the others."""
        self._tell_of_none()
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
            log.warning(
                "the broker has not answered about %d partitions yet; they wait", len(self._waiting) - len(known)
            )
            self._ask_at = time.monotonic() + _ASK_AGAIN_AFTER
        if known:
            self._begin(consumer, known)

    def _tell_of_none(self) -> None:
        """Tell the listener that this member has no partition, once no other member gives one up for it."""
        if self._waiting or self.readings:
            self._without.over()
        elif self._without.is_certain():
            self._host.tell(self._listener.assigned({}), _CALL)

    def current(self, positions: Mapping[TopicPartition, Position]) -> Partitions:
        """Return what to commit: the positions whose epochs are still current."""
        found = []
        for partition, (offset, epoch, note) in positions.items():
            reading = self.readings.get(partition)
            if reading is not None and reading.epoch == epoch:
                found.append(reading.position(partition, offset, closed(note)))
        return found

    def fail(self, consumer: Consumer, partition: TopicPartition, error: KafkaError) -> None:
        """Stop reading a partition, and tell the listener; others go on."""
        reading = self.readings[partition]
        if reading.next == reading.began and not reading.doubted and self._tried_again(consumer, partition, reading):
            return
        consumer.pause([confluent_kafka.TopicPartition(*partition)])
        words = f"{partition} cannot be read from offset {reading.next}: {error.name()}: {error.str()}"
        self._host.tell(self._listener.failed(partition, PartitionUnusable(words)), _CALL)

    def next_epoch(self) -> int:
        """Return a number greater than all before; callable from any thread."""
        return next(self._epochs)

    def restart(
        self, consumer: Consumer, partition: TopicPartition, offset: int, epoch: int, topic_id: str | None
    ) -> None:
        """Read a partition from another offset, unless it was given up or assigned again since the request."""
        reading = self.readings.get(partition)
        if reading is None or reading.epoch > epoch:
            return
        # Messages that are ready belong to the old epoch.
        self.changes += 1
        reading.restart(epoch, offset, topic_id, by_seek=not reading.failed)
        if not reading.lost_place:
            # The client has given up on the partition, and refuses to seek.
            self.places.assign_again(consumer, partition, reading)

    def _tried_again(self, consumer: Consumer, partition: TopicPartition, reading: Reading) -> bool:
        """Read a partition again from which nothing was read yet; return whether the client takes it.

        The error may concern the previous position, given up by the client when the partition was sent elsewhere.
        """
        try:
            self.places.assign_again(consumer, partition, reading)
        except KafkaException as error:
            log.warning("cannot assign %s again: %s", partition, error)
            return False
        self.changes += 1
        reading.doubted, reading.failed = True, False
        return True

    def _on_assign(self, consumer: Consumer, partitions: Partitions) -> None:
        self.changes += 1
        try:
            self._assign(consumer, partitions)
        except BaseException as error:  # noqa: BLE001 - see the module's docstring
            # The client then assigns by itself, but nothing is returned of a partition without a reading.
            log.warning("could not take %d partitions; joining the group again: %r", len(partitions), error)
            self.rejoin = True

    def _on_revoke(self, consumer: Consumer, partitions: Partitions) -> None:
        self.changes += 1
        try:
            self._revoke(consumer, partitions)
        except BaseException as error:  # noqa: BLE001
            self._host.report(f"giving up partitions failed: {error!r}")
        finally:
            self._forget(partitions)
            self._take_back(consumer, partitions)

    def _on_lost(self, consumer: Consumer, partitions: Partitions) -> None:
        self.changes += 1
        try:
            held = self._held(partitions)
            self._forget(partitions)
            self._host.settle(confirm=False)
            if held:
                self._host.tell(self._listener.lost(held), _CALL)
        except BaseException as error:  # noqa: BLE001
            self._host.report(f"losing partitions failed: {error!r}")
        finally:
            self._take_back(consumer, partitions)

    def _take_back(self, consumer: Consumer, partitions: Partitions) -> None:
        """Answer the group that partitions are given up; the client has only those that were taken on."""
        try:
            consumer.incremental_unassign(of_client(consumer, partitions))
        except BaseException as error:  # noqa: BLE001 - see the module's docstring
            self._host.report(f"the Kafka client did not give partitions up: {error!r}")

    def _assign(self, consumer: Consumer, partitions: Partitions) -> None:
        consumer.incremental_assign([])
        if not partitions:
            self._without.told()
        else:
            self._waiting |= {TopicPartition(at.topic, at.partition) for at in partitions}
            # The answer to an earlier question may be older than this assignment.
            self._asked = self._host.begin(self._ask(tuple(self._waiting)))

    def _begin(self, consumer: Consumer, told: Told) -> None:
        """Pass partitions to the listener, and read them."""
        self.changes += 1
        fresh: dict[TopicPartition, Reading] = {}
        for at, info in told.items():
            self._waiting.discard(at)
            fresh[at] = Reading(self.next_epoch(), info.topic_id, self._start(info), self.changes)
            fresh[at].lost_place = True
        begun = {at: Position(reading.next, reading.epoch) for at, reading in fresh.items()}
        # Recorded before the listener is called: a commit from within `assigned` belongs to this epoch.
        for at, reading in fresh.items():
            self.readings[at] = reading
        if self._host.tell(_true(self._listener.assigned(begun)), _CALL) is None:
            self._forget([confluent_kafka.TopicPartition(*at) for at in fresh])
            return
        try:
            self.places.give(consumer, fresh)
        except KafkaException as error:
            # None of them has a place, so a seek is refused, and each is then assigned separately.
            log.warning("the Kafka client did not take %d partitions; they wait: %s", len(fresh), error)

    def _revoke(self, consumer: Consumer, partitions: Partitions) -> None:
        held = self._held(partitions)
        if held:
            # The engine may be waiting for a commit, whose answer would otherwise come only after this callback.
            self._host.settle(confirm=True)
            work = self._listener.revoked(held)
            positions = self._host.tell(work, self._subscription.drain_timeout + _MARGIN) or {}
            offsets = self.current({at: position for at, position in positions.items() if at in held})
            if offsets:
                commit_last(consumer, offsets)

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
    """Return the broker's answers; empty if it did not answer."""
    try:
        return asked.result()
    except (Unavailable, CancelledError) as error:
        log.warning("the broker could not be asked about partitions: %s", error)
    except Exception:
        # An exception would end the thread. The partitions wait, and are asked about again.
        log.exception("the broker could not be asked about partitions")
    return {}
