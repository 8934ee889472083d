"""Where a librdkafka consumer reads each partition: assigned with an offset, and sought after a loss of position.

The client gets each partition with an offset, never with "at the end" or "as committed". It would
ask the broker for such a place by itself, and ask again after a pause or a seek in between. That
late answer undoes our seek, and the messages before it are never read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import confluent_kafka
from confluent_kafka import Consumer, KafkaException

from consumerkit.message import TopicPartition
from consumerkit.transports.base import Position
from consumerkit.transports.confluent.messages import Reading

log = logging.getLogger(__name__)
Partitions = list[confluent_kafka.TopicPartition]

_REFUSED = 1.0  # for this many seconds the client may refuse to seek because an assignment has only begun


class ReadPlaces:
    """Makes the client read partitions from our own offsets; used by the poll thread only.

    Args:
        readings: The state of each assigned partition.
        parked: Returns whether partitions are paused in the client.
    """

    def __init__(self, readings: Mapping[tuple[str, int], Reading], parked: Callable[[], bool]) -> None:
        self._readings = readings
        self._parked = parked

    def give(self, consumer: Consumer, readings: Mapping[TopicPartition, Reading]) -> None:
        """Give the client partitions to read, each from its own offset.

        Raises:
            KafkaException: The client did not take them.
        """
        given = [confluent_kafka.TopicPartition(*at, reading.next) for at, reading in readings.items()]
        # The client ends an assignment a little later; until then it returns the previous position,
        # which a seek clears.
        old = {(at.topic, at.partition) for at in consumer.position(given) if at.offset >= 0}
        consumer.incremental_assign(given)
        for at, reading in readings.items():
            reading.lost_place, reading.refused = at in old, None
        # The client keeps a pause beyond the assignment: a partition given up while paused would
        # never be read again.
        parked = self._parked()
        for held, change in ((True, consumer.pause), (False, consumer.resume)):
            if some := [at for at in given if (parked or self._readings[at.topic, at.partition].held) is held]:
                change(some)

    def assign_again(self, consumer: Consumer, partition: TopicPartition, reading: Reading) -> None:
        """Read a partition that the client has given up on again, from its offset.

        Raises:
            KafkaException: The client did not take it.
        """
        at = confluent_kafka.TopicPartition(*partition)
        consumer.incremental_unassign(of_client(consumer, [at]))
        self.give(consumer, {partition: reading})

    def find_place(self, consumer: Consumer) -> None:
        """Seek partitions with a lost position to our own next offset."""
        for (topic, number), reading in self._readings.items():
            if reading.lost_place and not reading.failed:
                try:
                    consumer.seek(confluent_kafka.TopicPartition(topic, number, reading.next))
                    reading.lost_place, reading.refused = False, None
                except KafkaException as error:
                    # Nothing is read from the partition until a later try succeeds.
                    log.debug("cannot seek %s[%d] yet: %s", topic, number, error)
                    self._after_refusal(consumer, TopicPartition(topic, number), reading)

    def lose_place(self, since: int = -1) -> None:
        """Distrust the client's positions, in partitions assigned after change `since`."""
        for reading in self._readings.values():
            if reading.born > since:
                reading.lost_place = True

    def _after_refusal(self, consumer: Consumer, partition: TopicPartition, reading: Reading) -> None:
        """Assign a partition again that the client will not seek: once it gave up reading it, it refuses for ever.

        It gives up if the offset is outside the log, and a failing poll loses that error with the
        other dequeued events. After a new assignment it reports the error again.
        """
        now = time.monotonic()
        if reading.refused is None:
            reading.refused = now
        elif now - reading.refused > _REFUSED:
            reading.refused = now
            try:
                self.assign_again(consumer, partition, reading)
            except KafkaException as error:
                log.debug("cannot assign %s again yet: %s", partition, error)

    def passed(self, consumer: Consumer) -> dict[TopicPartition, Position]:
        """Return where the client continues, if that is beyond the last message and nothing prevents it."""
        asked = [
            confluent_kafka.TopicPartition(*at)
            for at, reading in self._readings.items()
            if not (reading.failed or reading.held or reading.lost_place)
        ]
        found = {}
        for one in consumer.position(asked) if asked else ():
            reading = self._readings[one.topic, one.partition]
            if one.error is None and one.offset > reading.next:
                found[TopicPartition(one.topic, one.partition)] = Position(one.offset, reading.epoch)
        return found


def of_client(consumer: Consumer, partitions: Partitions) -> Partitions:
    """Return the partitions that the client has; asked to give up any other one, it gives up none."""
    there = {(at.topic, at.partition) for at in consumer.assignment()}
    return [at for at in partitions if (at.topic, at.partition) in there]
