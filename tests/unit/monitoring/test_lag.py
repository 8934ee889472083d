"""The lag counts the messages behind the marks, and remembers since when they wait."""

import pytest

from consumerkit.message import TopicPartition
from consumerkit.monitoring.lag import Ends, Lag
from consumerkit.transports.base import Span, Survey, Surveyed

HERE = TopicPartition("t", 0)


def told(*partitions: tuple[int, int] | None, committed: int | None = None) -> dict[str, Survey]:
    found = {n: Surveyed(None if span is None else Span(*span), committed) for n, span in enumerate(partitions)}
    return {"t": Survey("id", found)}


@pytest.mark.parametrize(
    "marks, committed, from_start, behind",
    [
        ({HERE: 7}, None, True, 3),
        ({HERE: 7}, 2, True, 3),  # the mark decides
        ({HERE: 10}, None, True, 0),
        ({HERE: 12}, None, True, 0),  # the log was made again
        ({HERE: 1}, None, True, 6),  # deleted records are no work
        ({}, 8, True, 2),
        ({}, None, True, 6),
        ({}, None, False, 0),
    ],
)
def test_what_is_behind_the_mark_is_counted(
    marks: dict[TopicPartition, int], committed: int | None, from_start: bool, behind: int
) -> None:
    found = Ends().lag("h", marks, told((4, 10), committed=committed), from_start=from_start, now=0.0)
    assert found == Lag(behind, 0.0)


def test_the_age_is_that_of_the_first_message_behind_the_mark() -> None:
    ends = Ends()

    def age(mark: int, end: int, now: float) -> float:
        return ends.lag("h", {HERE: mark}, told((0, end)), from_start=True, now=now).oldest_seconds

    assert age(5, 5, 0.0) == 0.0
    assert age(5, 8, 100.0) == 0.0  # seen for the first time
    assert age(5, 9, 130.0) == 30.0
    assert age(7, 12, 160.0) == 60.0  # the one at 7 was there at 100
    assert age(8, 12, 190.0) == 60.0  # the one at 8 came between 100 and 130
    assert age(12, 12, 220.0) == 0.0
    for moment in range(1_000):
        ends.lag("h", {HERE: 12}, told((0, 13 + moment)), from_start=True, now=300.0 + moment)
    assert age(12, 2_000, 1_400.0) == 1_100.0
    assert max(map(len, ends._seen.values())) < 300


def test_a_partition_without_a_leader_is_left_out() -> None:
    assert Ends().lag("h", {}, told(None, (0, 3)), from_start=True, now=0.0).messages == 3
