"""A partition in memory has gaps, a beginning and an end, as a real log has."""

import pytest

from consumerkit.message import Message
from consumerkit.transports.memory.log import Logs, PartitionLog, TopicLog


def filled(*values: bytes | int) -> PartitionLog:
    """A log of records, and of so many control records where a number stands."""
    log = PartitionLog()
    for value in values:
        if isinstance(value, int):
            log.append_control_records(value)
        else:
            log.append(Message("t", 0, log.end, None, value))
    return log


def offsets(log: PartitionLog, offset: int, limit: int = 100) -> list[int]:
    return [record.offset for record in log.read(offset, limit)]


def test_control_records_take_offsets_and_are_never_read() -> None:
    log = filled(b"a", 2, b"b", 1)
    assert (log.start, log.end) == (0, 5)
    assert offsets(log, 0) == [0, 3]
    assert offsets(log, 1) == offsets(log, 3) == [3]
    assert offsets(log, 4) == offsets(log, 5) == []


@pytest.mark.parametrize("offset, limit, position", [(0, 1, 1), (0, 2, 4), (0, 3, 5), (1, 1, 4), (4, 1, 5), (5, 1, 5)])
def test_reading_goes_on_behind_control_records_once_nothing_else_is_left(
    offset: int, limit: int, position: int
) -> None:
    log = filled(b"a", 2, b"b", 1)
    assert log.position_after(log.read(offset, limit), limit) == position


def test_deleting_moves_the_beginning_forward_and_never_back() -> None:
    log = filled(b"a", 2, b"b", 1)
    log.delete_before(2)
    assert (log.start, offsets(log, 2)) == (2, [3])
    log.delete_before(1)
    assert log.start == 2
    log.delete_before(5)
    assert (log.start, log.end, offsets(log, 0)) == (5, 5, [])
    with pytest.raises(ValueError, match="ends at offset 5"):
        log.delete_before(6)


def test_a_truncated_log_goes_on_where_it_was_cut() -> None:
    log = filled(b"a", b"b", b"c")
    log.truncate(1)
    assert (log.end, offsets(log, 0)) == (1, [0])
    log.append(Message("t", 0, log.end, None, b"d"))
    assert [record.value for record in log.read(0, 9)] == [b"a", b"d"]
    log.truncate(9)
    assert log.end == 2


def test_a_topic_only_grows() -> None:
    topic = TopicLog("t", 2)
    topic.grow(4)
    topic.grow(4)
    assert len(topic.partitions) == 4
    with pytest.raises(ValueError, match="has 4 partitions"):
        topic.grow(3)


def test_records_without_a_key_take_turns_over_added_partitions_too() -> None:
    topic = TopicLog("t", 2)
    topic.append(None, b"", (), None)
    topic.grow(3)
    assert {topic.append(None, b"", (), None).partition for _ in range(3)} == {0, 1, 2}


def test_a_topic_needs_a_partition() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Logs().create("t", 0)
