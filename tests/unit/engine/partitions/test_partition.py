"""The engine's state of a partition: when it may begin, what is blocked, and what it counts."""

from collections.abc import Callable

import pytest

from consumerkit.engine.partitions.partition import Partition, PartitionState
from consumerkit.engine.partitions.start_position import StartPosition
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message, TopicPartition
from consumerkit.storage.fence import Taken
from consumerkit.storage.parking.lot import ParkedPlace
from consumerkit.transports.base import Position
from tests.unit.engine.tables import partitions

NAME = TopicPartition("t", 0)


def message(offset: int = 0, key: bytes | None = b"k") -> Message:
    return Message("t", 0, offset, key, b"v", (), 0, "id")


def partition(ordering: Ordering = Ordering.KEY, limit: int = 3, *, taken: bool = True) -> Partition:
    made = Partition(NAME, Position(0, 1), ordering, limit)
    if taken:
        made.taken(Taken(b"o" * 16, 0, {}), {}, StartPosition(0, 0), 0)
    return made


def test_nothing_begins_before_the_partition_is_taken_over() -> None:
    made = partition(taken=False)
    assert not made.ready
    made.taken(Taken(b"o" * 16, 0, {}), {}, StartPosition(0, 0), 0)
    assert made.ready


def test_a_parked_key_is_blocked_and_others_are_not() -> None:
    made = partition()
    made.park(message(1), 7)
    assert made.blocked(message(2))
    assert not made.blocked(message(3, b"other"))
    assert not made.blocked(message(4, None))


@pytest.mark.parametrize("ordering", [Ordering.NONE, Ordering.PARTITION])
def test_only_order_by_key_blocks_keys(ordering: Ordering) -> None:
    made = partition(ordering)
    made.park(message(1), 7)
    assert not made.blocked(message(2))


def test_order_by_partition_holds_everything_back_while_something_is_parked() -> None:
    made = partition(Ordering.PARTITION)
    made.park(message(1), 7)
    assert not made.ready
    made.unpark(message(1), 7)
    assert made.ready


def test_a_key_is_free_when_the_last_of_it_has_left() -> None:
    made = partition()
    made.park(message(1), 7)
    made.park(message(2), 8)
    made.unpark(message(1), 7)
    assert made.blocked(message(3))
    made.unpark(message(2), 8)
    assert not made.blocked(message(3))
    assert made.total == 0


def test_to_be_told_twice_does_no_harm() -> None:
    made = partition()
    made.park(message(1), 7)
    made.park(message(1), 7)
    assert made.total == 1
    made.unpark(message(1), 7)
    made.unpark(message(1), 7)
    assert made.total == 0


@pytest.mark.parametrize("ordering", Ordering)
def test_a_full_lot_holds_back(ordering: Ordering) -> None:
    made = partition(ordering, limit=2)
    made.park(message(1, b"a"), 7)
    made.park(message(2, b"b"), 8)
    assert not made.ready
    made.unpark(message(1, b"a"), 7)
    assert made.ready is (ordering is not Ordering.PARTITION)


def test_a_take_over_forgets_what_was_known_before() -> None:
    made = partition()
    made.park(message(1), 7)
    made.taken(Taken(b"n" * 16, 0, {}), {b"other": {9}, None: {10, 11}}, StartPosition(0, 0), 0)
    assert not made.blocked(message(2))
    assert made.blocked(message(3, b"other"))
    assert made.total == 3


def test_what_is_parked_is_known_by_partition_key_and_number() -> None:
    all_of_them = partitions(Ordering.KEY, 3)
    made = all_of_them.add(NAME, Position(0, 1))
    made.park(message(1), 7)
    made.park(message(2, None), 8)
    assert all_of_them.knows(ParkedPlace(NAME, b"k", 7))
    assert all_of_them.knows(ParkedPlace(NAME, None, 8))
    assert not all_of_them.knows(ParkedPlace(NAME, b"k", 9))
    assert not all_of_them.knows(ParkedPlace(TopicPartition("t", 1), b"k", 7))


def test_what_was_fetched_under_an_earlier_assignment_belongs_to_nobody() -> None:
    all_of_them = partitions(Ordering.KEY, 3)
    all_of_them.add(NAME, Position(0, 2))
    assert all_of_them.of(Message("t", 0, 0, None, b"v", (), 0, "id", 1)) is None


def test_a_partition_that_is_leaving_or_in_doubt_is_not_owned() -> None:
    all_of_them = partitions(Ordering.KEY, 3)
    made = all_of_them.add(NAME, Position(0, 1))
    assert all_of_them.owned() == []
    made.taken(Taken(b"o" * 16, 0, {}), {}, StartPosition(0, 0), 0)
    assert all_of_them.owned() == [made]
    made.leave()
    assert all_of_them.owned() == []


def test_a_partition_goes_from_state_to_state() -> None:
    made = partition(taken=False)
    states = [made.state]

    def then(step: Callable[[], None]) -> None:
        step()
        states.append(made.state)

    take = lambda: made.taken(Taken(b"o" * 16, 0, {}), {}, StartPosition(0, 0), 0)  # noqa: E731
    for step in (take, made.mark_in_doubt, made.confirm, made.stop, made.confirm, take):
        then(step)
    assert states == [
        PartitionState.ASSIGNED,
        PartitionState.OWNED,
        PartitionState.IN_DOUBT,
        PartitionState.ASSIGNED,
        PartitionState.STOPPED,
        PartitionState.STOPPED,
        PartitionState.OWNED,
    ]


@pytest.mark.parametrize("step", [Partition.mark_in_doubt, Partition.confirm, Partition.stop])
def test_a_partition_that_is_leaving_stays_so(step: Callable[[Partition], None]) -> None:
    made = partition()
    made.leave()
    step(made)
    assert made.is_leaving
    made.taken(Taken(b"o" * 16, 0, {}), {}, StartPosition(0, 0), 0)
    assert made.is_leaving


def test_after_a_death_what_was_in_the_lot_is_suspicious_and_what_comes_later_is_not() -> None:
    made = partition(taken=False)
    made.taken(Taken(b"o" * 16, 0, {}), {b"k": {3, 9}}, StartPosition(0, 0), 0)
    assert made.crash_watermark == 0
    made.taken(Taken(b"p" * 16, 1, {}), {b"k": {3, 9}, None: {4}}, StartPosition(0, 0), 0)
    made.park(message(1), 10)
    assert made.crash_watermark == 9


def test_suspicion_outlasts_the_first_progress_and_another_take_over() -> None:
    made = partition(taken=False)
    made.taken(Taken(b"o" * 16, 1, {}), {b"k": {9}}, StartPosition(0, 0), 0)
    made.crashes = 0
    made.taken(Taken(b"p" * 16, 0, {}), {b"k": {9, 12}}, StartPosition(0, 0), 0)
    assert made.crash_watermark == 9
