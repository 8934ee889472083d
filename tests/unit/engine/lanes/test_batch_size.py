"""The size of the next batch: within its bounds, smaller where messages fail, and as long as handling may take."""

from math import isclose, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumerkit.engine.lanes.batch_size import COMMIT_COST, BatchSize


def failing(pace: BatchSize, share: float, messages: int) -> None:
    """Let `pace` learn from messages where a share fails; batches are as large as it says."""
    left, until_failure = messages, round(1 / share)
    while left > 0:
        size = pace.size()
        if size < until_failure:
            pace.succeeded(size, size * 1e-6)
            until_failure -= size
            left -= size
        else:
            pace.failed()
            pace.succeeded(until_failure, until_failure * 1e-6)
            left -= until_failure
            until_failure = round(1 / share)


def test_without_failures_a_group_takes_the_whole_batch() -> None:
    pace = BatchSize(500, 0.5)
    assert pace.size() == 500
    pace.succeeded(500, 0.01)
    assert pace.size() == 500


@pytest.mark.parametrize("share", [0.005, 0.02, 0.1])
def test_groups_settle_where_the_cost_of_a_message_is_least(share: float) -> None:
    pace = BatchSize(10_000, 1000)
    failing(pace, share, 20_000)
    best = sqrt(2 * COMMIT_COST / share)
    assert 0.6 * best < pace.size() < 1.6 * best


def test_a_single_failure_in_a_large_group_does_not_break_it_up() -> None:
    pace = BatchSize(500, 0.5)
    pace.failed()
    assert pace.size() == int(min(500, sqrt(2 * COMMIT_COST * 500)))


def test_groups_grow_again_when_the_failures_are_over() -> None:
    pace = BatchSize(500, 0.5)
    for _ in range(2000):
        pace.failed()
    smallest = pace.size()
    assert smallest < 30
    for _ in range(400):
        pace.succeeded(pace.size(), 1e-4)
    assert pace.size() == 500


def test_a_group_takes_no_longer_than_its_time() -> None:
    pace = BatchSize(500, 0.5)
    for _ in range(50):
        handled = pace.size()
        pace.succeeded(handled, handled * 0.02)
    assert isclose(pace.size(), 1.5 * 0.5 / 0.02, abs_tol=2)


def test_slow_handling_is_forgotten_when_it_is_quick_again() -> None:
    pace = BatchSize(500, 0.5)
    for _ in range(50):
        pace.succeeded(pace.size(), pace.size() * 0.1)
    assert pace.size() < 10
    for _ in range(200):
        pace.succeeded(pace.size(), pace.size() * 1e-5)
    assert pace.size() == 500


def test_a_group_of_duplicates_teaches_nothing() -> None:
    pace = BatchSize(500, 0.5)
    pace.failed()
    before = pace.size()
    pace.succeeded(0, 9.0)
    assert pace.size() == before


@given(
    st.integers(1, 5000),
    st.floats(0.001, 100),
    st.lists(st.none() | st.tuples(st.integers(0, 5000), st.floats(0, 1e4)), max_size=50),
)
def test_a_group_is_never_empty_and_never_too_large(
    batch_size: int, batch_time: float, learned: list[tuple[int, float] | None]
) -> None:
    pace = BatchSize(batch_size, batch_time)
    for one in learned:
        if one is None:
            pace.failed()
        else:
            pace.succeeded(*one)
        assert 1 <= pace.size() <= batch_size


def test_messages_that_cannot_share_a_transaction_run_alone_and_a_group_is_tried_now_and_then() -> None:
    pace = BatchSize(batch_size=500, batch_time=0.5)
    pace.crowded(1)
    tried = 0
    for _ in range(320):
        if pace.size() > 1:
            tried += 1
            pace.crowded(1)
        pace.succeeded(1, 0.001)
    assert 5 <= tried <= 10
    for _ in range(1000):
        pace.succeeded(pace.size(), 0.0001 * pace.size())
    assert pace.size() == 500
