"""However often messages are dropped and read again, no position passes an unfinished message."""

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from consumerkit.engine.partitions.offsets import OffsetTracker

END = 24


class DroppedAndReadAgain(RuleBasedStateMachine):
    """A log, a transport that reads it, and lanes; they know nothing of how the tracker counts."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = OffsetTracker(epoch=1, start=0)
        self.log = list(range(END))
        self.read_to = 0
        self.epoch = 1
        self.in_hand: set[int] = set()
        self.finished: set[int] = set()
        self.highest = 0
        self.position = 0

    def fetch(self) -> None:
        offset = next(offset for offset in self.log if offset >= self.read_to)
        self.read_to = offset + 1
        self.highest = max(self.highest, self.read_to)
        is_new = offset not in self.in_hand | self.finished
        assert self.tracker.delivered(offset) is is_new, "what is in hand or finished is not run again"
        if is_new:
            self.in_hand.add(offset)

    @property
    def can_fetch(self) -> bool:
        return self.tracker.reread_from is None and any(offset >= self.read_to for offset in self.log)

    @precondition(lambda self: self.can_fetch)
    @rule(count=st.integers(1, 6))
    def deliver(self, count: int) -> None:
        while count and self.can_fetch:
            self.fetch()
            count -= 1

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.in_hand)))
        self.in_hand.remove(offset)
        self.finished.add(offset)
        self.tracker.finished(offset)

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Any of them: lanes keep what runs, and what waits before it."""
        dropped = data.draw(st.sets(st.sampled_from(sorted(self.in_hand)), min_size=1))
        self.in_hand -= dropped
        self.tracker.drop(dropped)

    @precondition(lambda self: self.tracker.reread_from is not None)
    @rule()
    def reread(self) -> None:
        assert self.tracker.reread_from is not None
        self.read_to = self.tracker.reread_from
        self.epoch += 1
        self.tracker.reread(self.epoch)

    @precondition(lambda self: self.can_fetch)
    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        """Compaction removes records ahead of the transport, also those that are already fetched."""
        gone = data.draw(st.sampled_from([offset for offset in self.log if offset >= self.read_to]))
        self.log.remove(gone)

    @precondition(lambda self: self.tracker.reread_from is None)
    @rule()
    def pass_over(self) -> None:
        """The transport is read on to the next message, or to the end."""
        self.read_to = next((offset for offset in self.log if offset >= self.read_to), END)
        self.highest = max(self.highest, self.read_to)
        self.tracker.passed(self.read_to)

    @rule()
    def ask_for_what_was_dropped(self) -> None:
        assert self.tracker.covers(1)
        assert self.tracker.covers(self.epoch)
        assert not self.tracker.covers(self.epoch + 1)

    @invariant()
    def nothing_unfinished_is_passed(self) -> None:
        position = self.tracker.position
        assert position is not None
        below = [offset for offset in {*self.log, *self.in_hand} if offset < position]
        assert not set(below) - self.finished, "the position passed what is not finished"
        assert position >= self.position, "the position fell"
        self.position = position
        assert self.tracker.unfinished == len(self.in_hand)
        assert self.tracker.next == self.highest

    def teardown(self) -> None:
        """Once all is read and finished, the position is the log's end, so nothing stands still."""
        if self.tracker.reread_from is not None:
            self.reread()
        while self.can_fetch:
            self.fetch()
        self.pass_over()
        for offset in sorted(self.in_hand, reverse=True):
            self.tracker.finished(offset)
        assert self.tracker.position == END
        assert self.tracker.unfinished == 0
        assert self.tracker.untouched


class TestDroppedAndReadAgain(DroppedAndReadAgain.TestCase):  # type: ignore[misc,valid-type]
    # No shrinking: a failure shows its steps, and finding fewer takes minutes.
    settings = settings(max_examples=40, stateful_step_count=30, phases=[Phase.generate])


def delivered(*offsets: int) -> OffsetTracker:
    tracker = OffsetTracker(epoch=1, start=offsets[0])
    for offset in offsets:
        assert tracker.delivered(offset)
    return tracker


@pytest.mark.parametrize("again", [[8], [7], [6, 8], [5]])
def test_dropping_twice_reads_from_the_first_that_is_missing(again: list[int]) -> None:
    """Another lane keeps the messages beyond the first drop, and drops them later."""
    tracker = delivered(3, 4, 5, 6, 7, 8)
    tracker.drop([4])
    tracker.drop(again)
    tracker.finished(3)
    assert (tracker.reread_from, tracker.position) == (4, 4)
    tracker.reread(epoch=2)
    found = [offset for offset in (4, 5, 6, 7, 8) if tracker.delivered(offset)]
    assert found == sorted({4, *again})


def test_what_is_dropped_beyond_the_place_of_reading_needs_no_seek() -> None:
    tracker = delivered(3, 4, 5, 6)
    tracker.drop([4])
    tracker.reread(epoch=2)
    tracker.drop([6])
    assert tracker.reread_from is None
    assert [tracker.delivered(offset) for offset in (4, 5, 6)] == [True, False, True]


def test_a_message_that_the_log_has_no_more_is_waited_for() -> None:
    """Compaction took 5 and 6 out while 6 was running."""
    tracker = delivered(3, 4, 5, 6)
    tracker.drop([4, 5])
    tracker.reread(epoch=2)
    assert tracker.delivered(4)
    tracker.finished(3)
    tracker.finished(4)
    assert tracker.passed(9)
    assert tracker.position == 6
    tracker.finished(6)
    assert tracker.position == 9


@pytest.mark.parametrize("is_finished", [True, False])
def test_what_is_in_hand_right_behind_a_gap_is_still_known(is_finished: bool) -> None:
    """Compaction has removed 3: the transport reports that it is at 4, and delivers 4 again."""
    tracker = delivered(3, 4, 5)
    tracker.drop([3])
    tracker.reread(epoch=2)
    if is_finished:
        tracker.finished(4)
    assert tracker.passed(4)
    assert tracker.unfinished == (1 if is_finished else 2)
    assert not tracker.delivered(4)
    assert tracker.position == (4 if not is_finished else 5)


def test_until_it_is_read_again_nothing_else_counts() -> None:
    tracker = delivered(3, 4, 5)
    tracker.drop([4])
    assert not tracker.passed(9)
    with pytest.raises(RuntimeError, match="4 is to be read again first"):
        tracker.delivered(6)


def test_what_finishes_after_it_was_dropped_is_finished() -> None:
    tracker = delivered(3, 4)
    tracker.drop([3, 4])
    tracker.finished(4)
    tracker.reread(epoch=2)
    assert [tracker.delivered(3), tracker.delivered(4)] == [True, False]
    tracker.finished(3)
    assert tracker.position == 5


def test_what_is_finished_or_unknown_is_not_dropped() -> None:
    tracker = delivered(3, 4)
    tracker.finished(3)
    tracker.drop([3, 9])
    assert (tracker.reread_from, tracker.position) == (None, 4)
