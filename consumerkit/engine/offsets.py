"""Which offset may be committed: the first that is not finished, never the highest seen."""

from __future__ import annotations

import threading
from collections import deque


class OffsetTracker:
    """The messages in hand of one partition, under one assignment.

    Offsets may have gaps; they are delivered in ascending order and finish in any.

    Attributes:
        epoch: The assignment's.
        committed: What the broker has of this assignment, as far as we know.
        leaving: Whether the partition is being given back: what is under way may finish, and nothing more begins.

    Example:
        >>> tracker = OffsetTracker(epoch=1)
        >>> for offset in (4, 5, 9):
        ...     tracker.delivered(offset)
        >>> tracker.finished(5); tracker.position
        4
        >>> tracker.finished(4); tracker.position
        9
        >>> tracker.finished(9); tracker.passed(12), tracker.position
        (True, 12)
    """

    __slots__ = ("_done", "_lock", "_next", "_pending", "committed", "epoch", "leaving")

    def __init__(self, epoch: int, start: int | None = None) -> None:
        self.epoch = epoch
        self.committed: int | None = None
        self.leaving = False
        self._pending: deque[int] = deque()
        self._done: set[int] = set()
        self._next = start
        # Marks are written in threads, on databases without a driver for coroutines.
        self._lock = threading.Lock()

    def delivered(self, offset: int) -> None:
        """Take note of a message that was fetched.

        Raises:
            RuntimeError: It comes after a later one: the transport broke its contract, and to go on could commit past a
                message that was never seen.
        """
        if self._next is not None and offset < self._next:
            raise RuntimeError(f"the transport delivered offset {offset} where {self._next} or a later one is next")
        self._pending.append(offset)
        self._next = offset + 1

    def passed(self, offset: int) -> bool:
        """Take note that nothing more comes below an offset; return whether that is news."""
        if self._next is not None and offset <= self._next:
            return False
        self._next = offset
        return True

    def finished(self, offset: int) -> None:
        """Take note that a message's outcome is durable."""
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
        """The offset after the last message that was delivered, and what was passed over behind it."""
        return self._next

    @property
    def untouched(self) -> bool:
        """Whether nothing beyond `position` is finished."""
        return self.position is None or not self._done

    @property
    def unfinished(self) -> int:
        """How many messages are in hand and not finished."""
        return len(self._pending) - len(self._done)
