"""The log of librdkafka's own lines, without the repetitions of an outage."""

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

    librdkafka reports each failed connection: in an outage of the broker, 45 lines a second from one process.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line is logged."""
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


log: Final = logging.getLogger(__name__)
log.addFilter(Repetitions())
