"""The committed position never passes an unfinished message, whatever finishes first."""

import threading
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumerkit.engine.partitions.offsets import OffsetTracker

OFFSETS = st.lists(st.integers(0, 2**62), unique=True, max_size=40).map(sorted)


def test_nothing_delivered_is_nothing_to_commit() -> None:
    tracker = OffsetTracker(epoch=3)
    assert tracker.position is None
    assert tracker.unfinished == 0


def test_a_gap_in_the_log_is_no_gap_in_the_work() -> None:
    tracker = OffsetTracker(1)
    for offset in (4, 9, 20):
        tracker.delivered(offset)
    tracker.finished(4)
    assert tracker.position == 9
    tracker.finished(9)
    tracker.finished(20)
    assert tracker.position == 21


def test_one_slow_message_holds_the_position() -> None:
    tracker = OffsetTracker(1)
    for offset in range(1000):
        tracker.delivered(offset)
    for offset in range(1, 1000):
        tracker.finished(offset)
    assert (tracker.position, tracker.unfinished) == (0, 1)
    tracker.finished(0)
    assert (tracker.position, tracker.unfinished) == (1000, 0)


@given(OFFSETS, st.data())
def test_the_position_is_the_first_unfinished_offset(offsets: list[int], data: st.DataObject) -> None:
    """Deliveries and finishes in any interleaving: after each step the position is what a plain model says."""
    tracker = OffsetTracker(1)
    to_come, in_hand = list(offsets), set[int]()
    last: int | None = None
    while to_come or in_hand:
        if to_come and (not in_hand or data.draw(st.booleans())):
            last = to_come.pop(0)
            tracker.delivered(last)
            in_hand.add(last)
        else:
            done = data.draw(st.sampled_from(sorted(in_hand)))
            tracker.finished(done)
            in_hand.remove(done)
        if data.draw(st.booleans()):
            assert last is not None
            assert tracker.position == (min(in_hand) if in_hand else last + 1)
        assert tracker.unfinished == len(in_hand)


@given(OFFSETS.filter(bool), st.randoms())
def test_the_position_never_falls(offsets: list[int], random: Random) -> None:
    tracker = OffsetTracker(1)
    for offset in offsets:
        tracker.delivered(offset)
    order = list(offsets)
    random.shuffle(order)
    seen = [tracker.position]
    for offset in order:
        tracker.finished(offset)
        seen.append(tracker.position)
    assert seen == sorted(seen, key=lambda position: position or 0)
    assert seen[-1] == offsets[-1] + 1


def test_a_transport_that_breaks_the_order_is_found_out() -> None:
    tracker = OffsetTracker(epoch=1)
    tracker.delivered(5)

    with pytest.raises(RuntimeError, match="delivered offset 4 where 6 or a later one is next"):
        tracker.delivered(4)


def test_before_anything_is_delivered_the_position_is_where_reading_starts() -> None:
    assert OffsetTracker(epoch=1, start=7).position == 7
    assert OffsetTracker(epoch=1).position is None


class _Meddled(set[int]):
    """Lets another thread run while one reads what is finished."""

    meanwhile: Callable[[], object] | None = None

    def __contains__(self, offset: object) -> bool:
        found = super().__contains__(offset)
        if found and (work := self.meanwhile) is not None:
            self.meanwhile = None
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(0.2)
        return found


def test_two_threads_that_ask_do_not_pass_what_is_unfinished() -> None:
    tracker = OffsetTracker(1)
    for offset in (5, 6, 7):
        tracker.delivered(offset)
    done = tracker._done = _Meddled()
    tracker.finished(5)
    done.meanwhile = lambda: tracker.position
    assert (tracker.position, tracker.position, tracker.unfinished) == (6, 6, 2)


HAND = (3, 4, 6, 7)


@pytest.mark.parametrize(
    "finished, batch, reached",
    [
        pytest.param((), (3, 4), 6, id="from-the-position-on"),
        pytest.param((4,), (3,), 6, id="up-to-what-is-finished"),
        pytest.param((), (4, 6), 3, id="behind-an-unfinished-one"),
        pytest.param((), HAND, 8, id="all-in-hand"),
        pytest.param((3, 4, 6), (), 7, id="nothing"),
    ],
)
def test_the_position_that_a_batch_will_reach(finished: tuple[int, ...], batch: tuple[int, ...], reached: int) -> None:
    tracker = OffsetTracker(epoch=1)
    for offset in HAND:
        tracker.delivered(offset)
    for offset in finished:
        tracker.finished(offset)
    before = tracker.position
    assert tracker.advanced_by(batch) == reached
    assert tracker.position == before


def test_where_nothing_was_delivered_nothing_is_reached() -> None:
    assert OffsetTracker(epoch=1).advanced_by(()) is None
