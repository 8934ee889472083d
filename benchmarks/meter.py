"""When the commits happened, told by each competitor in the same words."""

import time
from typing import NamedTuple


class Measured(NamedTuple):
    """One round of one competitor.

    Attributes:
        messages: Between the first commit after the warm-up and the last one.
        seconds: From the one to the other.
        cpu_seconds: What this process, with its threads, computed in that time; the servers' part is not in it.
        commits: Transactions in that time.
        total: Messages committed, the warm-up's among them.
    """

    messages: int
    seconds: float
    cpu_seconds: float
    commits: int
    total: int


class Meter:
    """Counts commits; the warm-up before `warm_up` messages is left out.

    Args:
        warm_up: Messages before the clock runs.
        messages: Messages to measure.
    """

    def __init__(self, warm_up: int, messages: int) -> None:
        self._warm_up = warm_up
        self._enough = warm_up + messages
        self._total = self._start = self._measured = self._commits = 0
        self._began: tuple[float, float] | None = None
        self._ended = (0.0, 0.0)

    @property
    def done(self) -> bool:
        """Whether enough has been measured."""
        return self._total >= self._enough

    def committed(self, messages: int) -> None:
        """Record a commit that was just answered."""
        if self.done:
            self._total += messages
            return
        self._total += messages
        now = time.perf_counter(), time.process_time()
        if self._began is None:
            if self._total >= self._warm_up:
                self._began, self._start = now, self._total
            return
        self._ended, self._measured = now, self._total
        self._commits += 1

    def result(self) -> Measured:
        """Return what was measured."""
        assert self._began is not None, "the warm-up was not over"
        return Measured(
            messages=self._measured - self._start,
            seconds=self._ended[0] - self._began[0],
            cpu_seconds=self._ended[1] - self._began[1],
            commits=self._commits,
            total=self._total,
        )
