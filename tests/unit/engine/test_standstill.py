"""A partition whose mark does not move although its log has more is reported once, and so is the end of that."""

import pytest

from consumerkit import Ordering
from consumerkit.engine.partitions.partition import Partition
from consumerkit.engine.standstill import STILL_AFTER, Standstill, reason
from consumerkit.events import Announcer, Event, PartitionMoves, PartitionStandsStill
from consumerkit.message import TopicPartition
from consumerkit.transports.base import PartitionInfo, Position
from tests.unit.engine.tables import partitions

ONE, TWO = TopicPartition("t", 1), TopicPartition("t", 2)


class Watched:
    """A watch over two partitions, at moments that the test names."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self.partitions = partitions(Ordering.KEY, 10)
        for name in (ONE, TWO):
            self.partitions.add(name, Position(0, 1)).mark = 0
        self.watch = Standstill(
            Announcer([self.told.append]).for_handler("credit"), lambda one: f"why {one.name.partition}"
        )

    def look(self, now: float, **ends: int) -> list[Event]:
        """Look at partitions with these ends of their logs, and return the events."""
        before = len(self.told)
        names = {"one": ONE, "two": TWO}
        told = {names[name]: PartitionInfo("id", 0, end) for name, end in ends.items()}
        self.watch.look("t", self.partitions, told, now)
        return self.told[before:]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def of(watched: Watched, name: TopicPartition) -> Partition:
    found = watched.partitions.get(name)
    assert found is not None
    return found


def test_it_is_told_once_and_when_it_is_over(watched: Watched) -> None:
    assert watched.look(0.0, one=5, two=0) == []
    assert watched.look(STILL_AFTER - 1, one=6, two=0) == []
    still = PartitionStandsStill(handler="credit", partition=ONE, offset=0, end=7, seconds=STILL_AFTER, reason="why 1")
    assert watched.look(STILL_AFTER, one=7, two=0) == [still]
    assert watched.look(STILL_AFTER + 30, one=8, two=3) == []
    of(watched, ONE).mark = 1
    assert watched.look(STILL_AFTER + 60, one=9, two=3) == [PartitionMoves(handler="credit", partition=ONE)]


def test_each_move_begins_its_time_again(watched: Watched) -> None:
    for number in range(20):
        of(watched, ONE).mark = number
        assert watched.look(number * (STILL_AFTER - 1), one=100, two=0) == []


def test_a_log_that_is_read_to_its_end_is_no_standstill(watched: Watched) -> None:
    of(watched, ONE).mark = 5
    assert [watched.look(moment, one=5, two=0) for moment in (0.0, STILL_AFTER, 2 * STILL_AFTER)] == [[], [], []]
    # And what comes then has its time.
    assert watched.look(3 * STILL_AFTER, one=6, two=0) == []


def test_a_partition_of_which_the_broker_does_not_tell_is_told_of_too(watched: Watched) -> None:
    assert watched.look(0.0, one=0) == []
    [told] = watched.look(STILL_AFTER, one=0)
    assert isinstance(told, PartitionStandsStill)
    assert (told.partition, told.end) == (TWO, None)
    assert "check its leader" in told.reason
    # It has one again, and is behind, or is not.
    assert watched.look(STILL_AFTER + 30, one=0, two=5) == []
    assert watched.look(STILL_AFTER + 60, one=0, two=0) == [PartitionMoves(handler="credit", partition=TWO)]


def test_it_is_over_here_when_the_partition_goes(watched: Watched) -> None:
    watched.look(0.0, one=5, two=0)
    watched.look(STILL_AFTER, one=5, two=0)
    watched.partitions.revoked([ONE], 0, lost=False)
    assert watched.look(STILL_AFTER + 1, two=0) == [PartitionMoves(handler="credit", partition=ONE)]


def test_a_partition_that_is_never_taken_over_is_told_of(watched: Watched) -> None:
    of(watched, ONE).mark = None
    watched.look(0.0, one=5, two=0)
    assert len(watched.look(STILL_AFTER, one=5, two=0)) == 1


def test_the_reason_is_the_first_that_holds() -> None:
    partition = Partition(ONE, Position(0, 1), Ordering.PARTITION, 2)

    def told(*, braking: bool = False) -> str:
        return reason(partition, Ordering.PARTITION, 2, braking=braking)

    assert "no worker has taken it over" in told(braking=True)
    partition.fencing_token = b"token"
    assert "no message of it is in hand or being fetched" in told()
    partition.offsets.delivered(0)
    assert "1 of its messages are in hand" in told()
    partition.total = 1
    assert "behind a parked message" in told()
    partition.total = 2
    assert "parking_limit" in told()
    assert "brake" in told(braking=True)
    partition.must_reread = True
    assert "stopped or lost its place" in told(braking=True)
