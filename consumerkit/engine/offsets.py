"""Which offset may be committed: the first that is not finished, never the highest seen."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection


class OffsetTracker:
    """The messages in hand of one partition, under one assignment.

    Offsets may have gaps; they are delivered in ascending order and finish in any.

    Attributes:
        epoch: The assignment's.
        committed: What the broker has of this assignment, as far as we know.
        leaving: Whether the partition is being given back: what is under way may finish, and nothing more begins.
        missing: The first offset that was let go unfinished and is to be fetched again; None where nothing is. Until
            `read_again` nothing is delivered, and no position is beyond it.

    Example:
        >>> tracker = OffsetTracker(epoch=1)
        >>> [tracker.delivered(offset) for offset in (4, 5, 9)]
        [True, True, True]
        >>> tracker.finished(5); tracker.position
        4
        >>> tracker.finished(4); tracker.position
        9
        >>> tracker.finished(9); tracker.passed(12), tracker.position
        (True, 12)
        >>> tracker.delivered(12), tracker.delivered(13), tracker.finished(13)
        (True, True, None)
        >>> tracker.let_go([12]); tracker.missing, tracker.position
        (12, 12)
        >>> tracker.read_again(epoch=2); tracker.delivered(12), tracker.delivered(13)
        (True, False)
    """

    __slots__ = (
        "_ahead",
        "_done",
        "_finished_ahead",
        "_first_epoch",
        "_highest",
        "_lock",
        "_next",
        "_pending",
        "committed",
        "epoch",
        "leaving",
        "missing",
    )

    def __init__(self, epoch: int, start: int | None = None) -> None:
        self.epoch = epoch
        self.committed: int | None = None
        self.leaving = False
        self.missing: int | None = None
        self._first_epoch = epoch
        # What was fetched beyond `missing` and not let go: in hand, or finished. It is fetched again, and not run.
        self._ahead: set[int] = set()
        self._finished_ahead: set[int] = set()
        self._highest = 0
        self._pending: deque[int] = deque()
        self._done: set[int] = set()
        self._next = start
        # Marks are written in threads, on databases without a driver for coroutines.
        self._lock = threading.Lock()

    def delivered(self, offset: int) -> bool:
        """Take note of a message that was fetched; return False where it is in hand or finished already.

        Raises:
            RuntimeError: It comes after a later one: the transport broke its contract, and to go on could commit past a
                message that was never seen.
        """
        if self._next is not None and offset < self._next:
            raise RuntimeError(f"the transport delivered offset {offset} where {self._next} or a later one is next")
        self._pending.append(offset)
        self._next = offset + 1
        if offset in self._ahead:
            self._ahead.discard(offset)
        elif offset in self._finished_ahead:
            self._finished_ahead.discard(offset)
            self._done.add(offset)
        else:
            return True
        return False

    def let_go(self, offsets: Collection[int]) -> None:
        """Take note of messages that were dropped unfinished, to be fetched again from the first of them on."""
        first, dropped = min(offsets), set(offsets)
        with self._lock:
            self._highest = max(self._highest, self._next or 0)
            self._next = self.missing = first
            beyond = [offset for offset in self._pending if offset >= first and offset not in dropped]
            self._pending = deque(offset for offset in self._pending if offset < first)
            self._finished_ahead.update(offset for offset in beyond if offset in self._done)
            self._ahead.update(offset for offset in beyond if offset not in self._done)
            self._done.difference_update(beyond)

    def read_again(self, epoch: int) -> None:
        """Take note that what is missing is fetched again, under a new epoch; what is in hand stays there."""
        self.epoch, self.missing = epoch, None

    def bears(self, epoch: int) -> bool:
        """Whether a message of this epoch is one of ours, in hand or to be fetched."""
        return self._first_epoch <= epoch <= self.epoch

    def passed(self, offset: int) -> bool:
        """Take note that nothing more comes below an offset; return whether that is news."""
        if self._next is not None and offset <= self._next:
            return False
        self._next = offset
        return True

    def finished(self, offset: int) -> None:
        """Take note that a message's outcome is durable."""
        if offset in self._ahead:
            self._ahead.discard(offset)
            self._finished_ahead.add(offset)
        else:
            self._done.add(offset)

    @property
    def position(self) -> int | None:
        """The offset to commit: all below it are finished; None where nothing was delivered and no start is known."""
        pending, done = self._pending, self._done
        with self._lock:
            following = self._next  # before `pending` is looked at, since more may be delivered meanwhile
            while pending and pending[0] in done:
                done.remove(pending.popleft())
            return pending[0] if pending else following

    @property
    def next(self) -> int | None:
        """The offset after the last message that was ever delivered, and what was passed over behind it."""
        return self._next if self._next is None else max(self._next, self._highest)

    @property
    def untouched(self) -> bool:
        """Whether nothing beyond `position` is finished."""
        return self.position is None or not (self._done or self._ahead or self._finished_ahead)

    @property
    def unfinished(self) -> int:
        """How many messages are in hand and not finished."""
        return len(self._pending) - len(self._done) + len(self._ahead)
