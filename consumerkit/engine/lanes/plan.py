"""How the messages of a batch that failed are grouped next."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class PlannedBatch(NamedTuple):
    """One batch to come.

    Attributes:
        size: Its messages.
        careful: Whether to flush after each message, to find the one at fault.
        halving: Whether flushing after each message would not find it.
        after: For a message by itself: the messages with which it could not share a transaction; 0 is unknown.
    """

    size: int
    careful: bool = False
    halving: bool = False
    after: int = 0


def halves(size: int, *, halving: bool = False) -> deque[PlannedBatch]:
    """Return the two halves of a batch; a batch that `batch_time` cut may be down to one message."""
    sizes = [size // 2, size - size // 2] if size > 1 else [1]
    return deque(PlannedBatch(one, halving=halving) for one in sizes)


def around(at: int, *, crowded: bool = False) -> deque[PlannedBatch]:
    """Return the messages before the one at fault, and then that one by itself.

    Args:
        at: Its index.
        crowded: Whether it may be at fault only beside others.
    """
    alone = PlannedBatch(1, after=at if crowded else 0)
    return deque([PlannedBatch(at), alone] if at else [alone])
