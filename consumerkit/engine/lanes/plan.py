"""Plans the next batches after a batch failed."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class PlannedBatch(NamedTuple):
    """One planned batch.

    Attributes:
        size: How many messages it has.
        careful: Whether to flush after each message, to find the one at fault.
        halving: Whether a flush after each message cannot find it.
        after: For a single message: how many messages it could not share a transaction with; 0 if unknown.
    """

    size: int
    careful: bool = False
    halving: bool = False
    after: int = 0


def halves(size: int, *, halving: bool = False) -> deque[PlannedBatch]:
    """Return the two halves of a batch; a batch that `batch_time` cut may have one message left."""
    sizes = [size // 2, size - size // 2] if size > 1 else [1]
    return deque(PlannedBatch(one, halving=halving) for one in sizes)


def around(at: int, *, crowded: bool = False) -> deque[PlannedBatch]:
    """Return a batch of the messages before the one at fault, then that one alone.

    Args:
        at: Its index.
        crowded: Whether it may fail only beside others.
    """
    alone = PlannedBatch(1, after=at if crowded else 0)
    return deque([PlannedBatch(at), alone] if at else [alone])
