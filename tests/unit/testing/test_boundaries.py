"""A worker under test is killed at one place, and passes no other from then on."""

from collections import Counter

import pytest

from consumerkit.failpoints import NAMES, FailpointError
from consumerkit.testing.boundaries import IN_ORDER, Boundaries, Kill, kills

# What a killed worker's test cannot show, or what belongs to an endpoint.
ELSEWHERE = {
    "commit_sent", "in_on_revoke", "in_shutdown_drain", "request_claimed", "request_handled", "request_committed",
}  # fmt: skip


def test_each_place_of_the_product_is_on_the_list_or_left_out_by_name() -> None:
    assert set(IN_ORDER) | ELSEWHERE == NAMES
    assert len(IN_ORDER) == len(set(IN_ORDER))
    assert not ELSEWHERE & set(IN_ORDER)


async def test_a_worker_is_killed_at_its_visit_and_passes_no_place_afterwards() -> None:
    boundaries = Boundaries(Kill("in_handler", 2))
    boundaries("in_handler")
    with pytest.raises(FailpointError):
        boundaries("in_handler")
    for place in ("before_begin", "in_handler", "before_mark"):
        with pytest.raises(FailpointError):
            boundaries(place)
    boundaries("commit_sent")  # it was on its way
    boundaries("in_shutdown_drain")  # the test itself ends the worker
    boundaries.revive()
    boundaries("in_handler")
    assert boundaries.visits == Counter(in_handler=3)


async def test_marks_and_offsets_count_from_the_first_commit_on() -> None:
    boundaries = Boundaries(Kill("before_offset_commit"))
    boundaries("before_offset_commit")
    boundaries("after_commit")
    with pytest.raises(FailpointError):
        boundaries("before_offset_commit")


async def test_a_commit_of_offsets_that_began_before_the_first_commit_is_not_the_whole_way() -> None:
    boundaries = Boundaries()
    for place in ("before_mark", "after_mark", "before_offset_commit", "after_commit", "after_offset_commit"):
        boundaries(place)
    assert not boundaries.has_told_position
    for place in ("before_mark", "after_mark", "before_offset_commit", "offset_commit_sent"):
        assert not boundaries.has_told_position
        boundaries(place)
    assert boundaries.has_told_position


def test_a_place_is_visited_twice_where_a_second_visit_differs() -> None:
    found = kills(Counter(after_commit=5, in_handler=1, before_mark=3, commit_sent=5))
    assert list(map(str, found)) == ["in_handler", "after_commit", "after_commit (visit 2)", "before_mark"]
