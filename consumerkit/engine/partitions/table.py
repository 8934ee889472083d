"""All partitions of an engine, and the one place that enters a transaction's receipt.

The parts of an engine meet here. A part that learns something about a partition enters it here, and sets the event
for which another part waits. So no part calls another one back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

from consumerkit import events
from consumerkit.engine.partitions.budget import Budget, cost
from consumerkit.engine.partitions.commit_sequence import CommitSequences
from consumerkit.engine.partitions.partition import Partition, PartitionState
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.receipt import Receipt
from consumerkit.errors import PartitionUnusable, TransactionsLost
from consumerkit.events import Announcer
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message, TopicPartition
from consumerkit.storage.parking.lot import ParkedPlace
from consumerkit.transports.base import Position


@dataclass(frozen=True)
class Rules:
    """A handler's and its worker's rules for partitions.

    Attributes:
        ordering: Which messages keep their order.
        parking_limit: How many messages of a partition may be parked; at this number nothing new of it begins.
        memory_budget: Bytes of messages in hand above which nothing is fetched.
    """

    ordering: Ordering
    parking_limit: int
    memory_budget: int


class Partitions:
    """All partitions of an engine, by topic and number.

    Args:
        rules: See `Rules`.
        sequences: Numbers the transactions of the engine's lanes.
        announce: Announces events.
        outbox_written: Set when a transaction has written to the outbox.

    Attributes:
        budget: Counts the messages in hand.
        sequences: Numbers the transactions of the engine's lanes.
        to_clear: Partitions whose owner got further than those that died before it; the database does not know yet.
        ownership_due, commit_due, poll_due, settling_due: Set when there is work for the part that takes partitions
            over, commits offsets, looks for due parked messages, or decides what to fetch. Each has one part that waits
            for it and clears it.
        progressed: Set when a message was finished or dropped; a revocation waits for it.
    """

    def __init__(
        self, rules: Rules, sequences: CommitSequences, announce: Announcer, outbox_written: asyncio.Event
    ) -> None:
        self.budget = Budget(rules.memory_budget)
        self.sequences = sequences
        self._turns = count(1)
        self.to_clear: set[TopicPartition] = set()
        self.ownership_due = asyncio.Event()
        self.commit_due = asyncio.Event()
        self.poll_due = asyncio.Event()
        self.settling_due = asyncio.Event()
        self.progressed = asyncio.Event()
        self._rules = rules
        self._announce = announce
        self._outbox_written = outbox_written
        self._by_name: dict[tuple[str, int], Partition] = {}
        self._changed: dict[Partition, None] = {}

    # The assigned partitions.

    def assigned(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Add partitions that were assigned, and request their takeover."""
        for name, start in positions.items():
            self.add(name, start)
        self.ownership_due.set()
        self._announce(events.PartitionsAssigned(partitions=tuple(positions)))

    def add(self, name: TopicPartition, start: Position) -> Partition:
        """Add a partition."""
        made = self._by_name[name] = Partition(name, start, self._rules.ordering, self._rules.parking_limit)
        return made

    def revoked(self, names: Collection[TopicPartition], dropped: int, *, lost: bool) -> None:
        """Forget partitions that now belong to another worker; it gets `dropped` of their messages."""
        for name in names:
            self._by_name.pop(name, None)
        self._announce(events.PartitionsRevoked(partitions=tuple(names), dropped=dropped, lost=lost))

    def unreadable(self, name: TopicPartition, error: PartitionUnusable) -> None:
        """Record that the consumer reads a partition no further."""
        if (partition := self._by_name.get(name)) is not None:
            # Its next takeover seeks in any case, even to the present position.
            partition.must_reread = True
        self._announce(events.PartitionStopped(partition=name, error=str(error)))

    # The partition of a message.

    def get(self, name: tuple[str, int]) -> Partition | None:
        """Return an assigned partition, or None."""
        return self._by_name.get(name)

    def of(self, message: Message) -> Partition | None:
        """Return the partition of a message in hand, if the assignment that fetched it still holds."""
        found = self._by_name.get((message.topic, message.partition))
        return found if found is not None and found.offsets.covers(message.epoch) else None

    def of_fetched(self, message: Message) -> Partition | None:
        """Return the partition of a message from `fetch`, unless it was fetched before the last `seek`.

        No message is accepted while a seek is due, since it would lie beyond the messages to read again.
        """
        found = self._by_name.get((message.topic, message.partition))
        if found is None or found.offsets.epoch != message.epoch or found.offsets.reread_from is not None:
            return None
        return found

    def knows(self, place: ParkedPlace) -> bool:
        """Return whether a parked message is known here."""
        found = self._by_name.get(place.partition)
        return found is not None and place.number in found.parked.get(place.key, ())

    def owned(self) -> list[Partition]:
        """Return the partitions that we own."""
        return [one for one in self._by_name.values() if one.state is PartitionState.OWNED]

    def in_state(self, *states: PartitionState) -> list[Partition]:
        """Return the partitions in these states; those that waited longest for a takeover come first."""
        return sorted((one for one in self._by_name.values() if one.state in states), key=lambda one: one.turn)

    def put_last(self, partition: Partition) -> None:
        """Let the other partitions go first at the next takeover."""
        partition.turn = next(self._turns)

    def __iter__(self) -> Iterator[Partition]:
        return iter(list(self._by_name.values()))

    # Messages are fetched, and are finished or dropped.

    def fetched(self, messages: Iterable[Message]) -> list[Message]:
        """Record fetched messages; return those to run."""
        fresh, size = [], 0
        for message in messages:
            partition = self.of_fetched(message)
            # A message fetched under an ended assignment belongs to another worker.
            if partition is not None and partition.delivered(message):
                size += cost(message)
                fresh.append(message)
        self.budget.took(size)
        return fresh

    def passed(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Record offsets that logs pass without a message; otherwise their ends would never be reached."""
        for name, position in positions.items():
            partition = self._by_name.get(name)
            if partition is None or partition.offsets.epoch != position.epoch:
                continue
            if partition.offsets.passed(position.offset):
                self.commit_due.set()

    def dropped(self, messages: Collection[Message]) -> None:
        """Record unfinished messages that are no longer in hand."""
        for message in messages:
            if (partition := self.of(message)) is not None:
                partition.weight -= cost(message)
        self.budget.gave_back(sum(map(cost, messages)))
        self.progressed.set()

    def apply(self, receipt: Receipt) -> None:
        """Enter a transaction's receipt."""
        for message, number in receipt.unparked:
            if (partition := self._by_name.get((message.topic, message.partition))) is not None:
                partition.unpark(message, number)
                self.settle(partition)
        for message, number in receipt.parked:
            if self.park(message, number):
                self.poll_due.set()
        for name in receipt.cleared:
            if (partition := self._by_name.get(name)) is not None:
                partition.crashes = 0
        for message in receipt.new:
            if (partition := self.of(message)) is not None:
                partition.recorded(message.offset)
        self._finish(receipt.finished)
        if receipt.published:
            self._outbox_written.set()

    def park(self, message: Message, number: int) -> bool:
        """Record a parked message; return whether its partition is assigned."""
        partition = self._by_name.get((message.topic, message.partition))
        if partition is None:
            return False
        partition.park(message, number)
        self.settle(partition)
        return True

    def _finish(self, messages: Iterable[Message]) -> None:
        given_back = 0
        for message in messages:
            size = cost(message)
            given_back += size
            if (partition := self.of(message)) is not None:
                partition.offsets.finished(message.offset)
                partition.weight -= size
                if partition.held and partition.ready:
                    self.settle(partition)
                if partition.crashes and partition.got_further:
                    self.to_clear.add(partition.name)
                    self.ownership_due.set()
        self.budget.gave_back(given_back)
        self.commit_due.set()
        self.progressed.set()

    def tried(self) -> None:
        """Record that a lane has finished with a parked message and has room for another."""
        self.poll_due.set()

    # Ownership.

    def in_doubt(self, owners: Mapping[TopicPartition, bytes], error: Exception) -> None:
        """Request another takeover of partitions, after Kafka confirms that they are ours.

        Nothing more of them begins until then. A partition that already has another token stays as it is.
        """
        for name, token in owners.items():
            partition = self._by_name.get(name)
            if partition is not None and partition.fencing_token == token:
                partition.mark_in_doubt()
                self._announce(events.PartitionInDoubt(partition=name, error=failures.described(error)))
                self.ownership_due.set()

    def fenced(self, names: Collection[TopicPartition], error: Exception) -> None:
        """Record partitions that another worker owns, according to the database."""
        owners = {
            name: one.fencing_token
            for name in names
            if (one := self._by_name.get(name)) is not None and one.fencing_token
        }
        self.in_doubt(owners, error)

    def commits_lost(self, error: TransactionsLost) -> None:
        """Go back to the database's marks, since it is unknown which transactions it has lost."""
        self._announce(events.CommitsLost(error=str(error)))
        for partition in self._by_name.values():
            # Lanes that begin again know nothing of the lost transactions, so no message in hand is certain.
            partition.must_reread = True
        # Partitions are given up before the lanes forget: a thread that writes a mark reads the lanes, then the owner.
        self.fenced([partition.name for partition in self], error)
        self.sequences.begin_again()

    def taken(self, partition: Partition) -> None:
        """Let the messages of a newly taken partition begin."""
        told = events.PartitionTaken(partition=partition.name, parked=partition.total)
        self._announce(told)
        self.settle(partition)
        # A first run's start is decided once, so it is committed before any message is finished.
        self.commit_due.set()
        self.poll_due.set()

    def stop(self, partition: Partition, error: PartitionUnusable) -> None:
        """Give up the messages in hand of a partition that is unusable until a person acts."""
        if partition.state is not PartitionState.STOPPED:
            partition.stop()
            self._announce(events.PartitionStopped(partition=partition.name, error=str(error)))
            self.settle(partition)

    # The decision what to fetch.

    def settle(self, partition: Partition) -> None:
        """Request a decision on what to fetch of a partition, since it has changed."""
        self._changed[partition] = None
        self.settling_due.set()

    def take_changed(self) -> list[Partition]:
        """Return the partitions that have changed since the last call."""
        self.settling_due.clear()
        changed = list(self._changed)
        self._changed.clear()
        return changed
