"""How many messages the next transaction takes.

With a share p of failing messages, a batch of n is rolled back and partly run again about n * p times, which costs
n * p * n / 2 handler calls, while its COMMIT costs as much as C calls. The sum for each message, C / n + p * n / 2, is
least at n = sqrt(2 C / p).
"""

from __future__ import annotations

from math import sqrt
from typing import Final

# What a COMMIT costs, in handler calls: measured between 20 (a handler of several statements) and 300 (one ORM add).
COMMIT_COST: Final = 200.0
_MEMORY: Final = 500.0
# Handled messages after which a found limit grows by one. Only a failed batch finds the limit again, so growth is slow.
_GROWS_AFTER: Final = 32.0


class BatchSize:
    """Adapts the size of batches to failures and to the time that handling takes.

    Args:
        batch_size: The most messages in a batch.
        batch_time: Seconds of handling at which a batch should be over.
    """

    __slots__ = ("_failures", "_most", "_seconds", "batch_size", "batch_time")

    def __init__(self, batch_size: int, batch_time: float) -> None:
        self.batch_size = batch_size
        self.batch_time = batch_time
        self._failures = 0.0
        self._seconds = 0.0
        self._most: float | None = None

    def succeeded(self, handled: int, seconds: float) -> None:
        """Learn from a batch that was committed after `seconds` of handling."""
        if handled:
            self._failures *= max(0.0, 1 - handled / _MEMORY)
            weight = min(1.0, handled / 50)
            self._seconds += weight * (seconds / handled - self._seconds)
            if self._most is not None:
                self._most += handled / _GROWS_AFTER

    def failed(self) -> None:
        """Learn that one message failed its batch."""
        self._failures += (1 - self._failures) / _MEMORY

    def crowded(self, size: int) -> None:
        """Learn that a message succeeded alone after it had failed behind `size` others in one batch."""
        self._most = float(size)

    def size(self) -> int:
        """Return how many messages the next batch may take."""
        size = float(self.batch_size)
        if self._most is not None:
            size = min(size, self._most)
        if self._failures > 0:
            size = min(size, sqrt(2 * COMMIT_COST / self._failures))
        if self._seconds > 0:
            size = min(size, 1.5 * self.batch_time / self._seconds)
        return max(1, int(size))
