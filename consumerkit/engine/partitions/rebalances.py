"""Tells an ordinary rebalance from one that does not end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from consumerkit.errors import Rebalancing

TROUBLE_AFTER: Final = 60.0
"""Seconds for which a group may refuse commits because its members change; a longer rebalance is trouble."""


class Rebalances:
    """Remembers since when a group has refused commits because of a rebalance.

    Args:
        clock: Seconds that only go up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None

    def explains(self, error: Exception) -> bool:
        """Tell whether an error is an ordinary part of a rebalance, so that it is no trouble."""
        if not isinstance(error, Rebalancing):
            return False
        now = self._clock()
        if self._since is None:
            self._since = now
        return now - self._since < TROUBLE_AFTER

    def over(self) -> None:
        """Record that the group takes commits again, or that nothing is to be committed."""
        self._since = None
