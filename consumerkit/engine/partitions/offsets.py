"""Finds the offset to commit: the first unfinished one, never the highest seen."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection


class OffsetTracker:
    """The messages in hand of one partition, under one assignment.

    Offsets may have gaps. They are delivered in ascending order and finish in any order. Unfinished messages may be
    dropped: the partition is then read again from the first of them, under a new epoch. `position` does not pass
    that offset until it is read again and finished. Later messages in hand or finished do not run twice.

    Attributes:
        epoch: The epoch under which messages are fetched now.
        committed: The offset that the broker has under this assignment, as far as we know.
        reread_from: The offset to seek to after messages were dropped; None if no seek is due. Nothing is delivered
            until `reread`.

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
        >>> tracker.drop([12]); tracker.reread_from, tracker.position
        (12, 12)
        >>> tracker.reread(epoch=2); tracker.delivered(12), tracker.delivered(13), tracker.position
        (True, False, 12)
    """

    __slots__ = (
        "_ahead",
        "_done",
        "_first_epoch",
        "_highest",
        "_lock",
        "_next",
        "_pending",
        "committed",
        "epoch",
        "reread_from",
    )

    def __init__(self, epoch: int, start: int | None = None) -> None:
        self.epoch = epoch
        self.committed: int | None = None
        self.reread_from: int | None = None
        self._first_epoch = epoch
        # Two ascending queues hold all known offsets: `_pending` those below the next place to read, `_ahead` those
        # at or beyond it. Only a drop fills `_ahead`. No position passes an unfinished offset of either.
        self._pending: deque[int] = deque()
        self._ahead: deque[int] = deque()
        self._done: set[int] = set()
        self._next = start
        self._highest = 0
        # Threads write the marks on databases without a coroutine driver.
        self._lock = threading.Lock()

    def delivered(self, offset: int) -> bool:
        """Record a fetched message; return False if it is already in hand or finished.

        Raises:
            RuntimeError: It comes after a later one. The transport broke its contract; going on could commit past an
                unseen message.
        """
        if self._next is not None and offset < self._next:
            raise RuntimeError(f"the transport delivered offset {offset} where {self._next} or a later one is next")
        if self.reread_from is not None:
            raise RuntimeError(f"offset {offset} was delivered where {self.reread_from} is to be read again first")
        self._catch_up(offset)
        known = bool(self._ahead) and self._ahead[0] == offset
        if known:
            self._ahead.popleft()
        self._pending.append(offset)
        self._next = offset + 1
        return not known and offset not in self._done

    def passed(self, offset: int) -> bool:
        """Record that nothing more comes below an offset; return whether that was unknown."""
        if self.reread_from is not None or (self._next is not None and offset <= self._next):
            return False
        self._catch_up(offset)
        self._next = offset
        return True

    def _catch_up(self, offset: int) -> None:
        """Move known offsets below an offset to `_pending`; the offset itself is still to be delivered.

        The log may no longer have a message in hand, as after compaction; the position still waits for it.
        """
        while self._ahead and self._ahead[0] < offset:
            self._pending.append(self._ahead.popleft())

    def finished(self, offset: int) -> None:
        """Record that a message's outcome is durable."""
        self._done.add(offset)

    def drop(self, offsets: Collection[int]) -> None:
        """Record that unfinished messages are no longer in hand; they are fetched again."""
        with self._lock:
            known = [*self._pending, *self._ahead]
            dropped = set(offsets).intersection(known) - self._done
            if self._next is None or not dropped:
                return
            # A message beyond the next place to read is delivered when that place reaches it.
            if min(dropped) < self._next:
                self._highest = max(self._highest, self._next)
                self._next = self.reread_from = min(dropped)
            kept = [offset for offset in known if offset not in dropped]
            self._pending = deque(offset for offset in kept if offset < self._next)
            self._ahead = deque(offset for offset in kept if offset >= self._next)

    def reread(self, epoch: int) -> None:
        """Record that the partition is read from `reread_from`, under a new epoch."""
        self.epoch, self.reread_from = epoch, None

    def covers(self, epoch: int) -> bool:
        """Return whether a message in hand that was fetched under this epoch belongs here."""
        return self._first_epoch <= epoch <= self.epoch

    @property
    def position(self) -> int | None:
        """The offset to commit: all below it are finished. None if nothing was delivered and no start is known."""
        with self._lock:
            pending, done = self._pending, self._done
            following = self._next  # read before `pending`, since more may be delivered at the same time
            while pending and pending[0] in done:
                done.remove(pending.popleft())
            return pending[0] if pending else following

    def advanced_by(self, offsets: Collection[int]) -> int | None:
        """Return the position if these were finished as well; None if nothing was delivered."""
        with self._lock:
            done = self._done.union(offsets)
            known = (*self._pending, *self._ahead)
            return next((offset for offset in known if offset not in done), self._next)

    @property
    def next(self) -> int | None:
        """The offset after the last message ever delivered or the last gap passed."""
        return self._next if self._next is None else max(self._next, self._highest)

    @property
    def untouched(self) -> bool:
        """Whether nothing beyond `position` is finished."""
        return self.position is None or not self._done

    @property
    def unfinished(self) -> int:
        """How many messages are in hand and not finished."""
        return len(self._pending) + len(self._ahead) - len(self._done)
