"""Filters for lines of Kafka clients: those that they repeat during an outage, and warnings about nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

PAUSE: Final = 60.0
"""Seconds for which a line is not logged again."""
_MOST: Final = 200


class Repetitions(logging.Filter):
    """Lets the first line of a kind through, then one a minute with the number of lines that were left out.

    Kafka clients report each failed connection: while the broker is away, 45 to 100 lines a second from one process.

    Args:
        of: The logger whose lines are filtered, with those below it; all if empty.
        clock: Seconds that only go up.
    """

    def __init__(self, of: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._of = logging.Filter(of)
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line is logged."""
        if not self._of.filter(record):
            return True
        text = record.getMessage()
        # What follows is a time, which is another in each line.
        kind = record.levelno, text.partition(" (after ")[0]
        now = self._clock()
        with self._lock:
            until, left_out = self._seen.get(kind, (now, 0))
            if now < until:
                self._seen[kind] = until, left_out + 1
                return False
            if len(self._seen) >= _MOST:
                self._seen = {kind: at for kind, at in self._seen.items() if now < at[0]}
            self._seen[kind] = now + PAUSE, 0
        if left_out:
            record.msg, record.args = "%s; %d more lines like it since the last one", (text, left_out)
        return True


_REBALANCES: Final = (
    ("Heartbeat failed for group %s because it is rebalancing", ()),
    (
        "OffsetCommit failed for group %s due to group error (%s), will rejoin",
        ("RebalanceInProgressError", "IllegalGenerationError"),
    ),
)


def without_rebalances(record: logging.LogRecord) -> bool:
    """Return whether a line is logged; false for aiokafka's warnings about an ordinary rebalance.

    consumerkit's own lines tell which partitions each member gives back and gets.
    """
    if record.name != "aiokafka.consumer.group_coordinator" or record.levelno < logging.WARNING:
        return True
    given = record.args if isinstance(record.args, tuple) else ()
    kinds = {type(one).__name__ for one in given}
    return not any(record.msg == text and (not of or kinds & set(of)) for text, of in _REBALANCES)
