"""Measures how long each stage of a transaction takes."""

from __future__ import annotations

import time

from consumerkit.events import Stages


class Stopwatch:
    """Adds up the seconds of each stage; each transaction has its own stopwatch.

    Example:
        >>> watch = Stopwatch()
        >>> began = watch.began()
        >>> watch.over("begin") >= began
        True
    """

    __slots__ = ("_last", "_seconds")

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._seconds: dict[str, float] = {}

    def began(self) -> float:
        """Begin the first stage now; return the moment, by the monotonic clock."""
        self._last = time.monotonic()
        return self._last

    def over(self, stage: str) -> float:
        """End a stage and begin the next one now; return the moment."""
        now = time.monotonic()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now
        return now

    def stages(self) -> Stages:
        """Return the seconds of all stages."""
        return Stages(**self._seconds)
