"""Chooses the lane of an engine that runs a message."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import cycle

from consumerkit.engine.lanes.lane import Lane
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message, TopicPartition
from consumerkit.storage.parking.parked import ParkedMessage


class Lanes:
    """Spreads messages over lanes; messages that keep their order share a lane."""

    def __init__(self, ordering: Ordering, lanes: Sequence[Lane]) -> None:
        self._ordering = ordering
        self._lanes = lanes
        self._turns = cycle(lanes)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes)

    def __len__(self) -> int:
        return len(self._lanes)

    def put(self, messages: Collection[Message]) -> None:
        """Give fresh messages to their lanes."""
        for message in messages:
            self._of(message).put(message)
        for lane in self._lanes:
            lane.wake()

    def put_due(self, parked: ParkedMessage) -> bool:
        """Give a due parked message to its lane; return False if the lane has no room."""
        return self._of(parked.message).put_due(parked)

    @property
    def parked_in_hand(self) -> set[int]:
        """The numbers of the parked messages that the lanes hold."""
        return set().union(*(lane.parked_in_hand for lane in self._lanes))

    def drop(self, partitions: frozenset[TopicPartition]) -> int:
        """See `Lane.drop`."""
        return sum(lane.drop(partitions) for lane in self._lanes)

    def hold(self, partitions: frozenset[TopicPartition]) -> bool:
        """Tell whether the work under way has messages of these partitions."""
        return any(lane.holds(partitions) for lane in self._lanes)

    def _of(self, message: Message) -> Lane:
        """Return a message's lane: its ordering key's, or the next one if it has no order."""
        count = len(self._lanes)
        if count == 1:
            return self._lanes[0]
        if self._ordering is Ordering.PARTITION:
            return self._lanes[hash((message.topic, message.partition)) % count]
        if self._ordering is Ordering.KEY and message.key is not None:
            return self._lanes[hash(message.key) % count]
        return next(self._turns)
