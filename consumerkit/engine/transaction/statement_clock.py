"""Measures how long the database has not answered, to distinguish a silent database from a slow handler."""

from __future__ import annotations

import asyncio
import time

from consumerkit.errors import Unavailable


class DatabaseSilent(Unavailable):
    """A statement had no answer when our deadline passed."""


class StatementClock:
    """Times the statements of one transaction.

    Attributes:
        lost: Whether the connection was lost under a statement.
        cut: Whether the user's code cancelled a statement, which costs the connection.
        took: Seconds that the last failed statement took.
        limit: Our running deadline, in a coroutine.
        asked: How many statements were sent.
    """

    __slots__ = ("_asked", "_waited", "asked", "cut", "limit", "lost", "took")

    def __init__(self) -> None:
        self.lost = False
        self.cut = False
        self.took = 0.0
        self.limit: asyncio.Timeout | None = None
        self.asked = 0
        self._asked: float | None = None
        self._waited = 0.0

    def ask(self) -> None:
        """Record that a statement is sent."""
        self._asked = time.monotonic()
        self.asked += 1

    def answered(self) -> None:
        """Record that the statement was answered."""
        self._asked = None

    def failed(self, error: BaseException, *, lost: bool) -> float:
        """Record that a statement failed: on the client, on the server, or because the connection was lost.

        Returns:
            The seconds that the statement took.
        """
        if isinstance(error, Exception):
            self.lost = self.lost or lost
        elif self.limit is None or not self.limit.expired():
            self.cut = True
            lost = False
        waited, self._asked = self.waited(), None
        self._waited = waited if lost else 0.0
        self.took = waited
        return waited

    def waited(self) -> float:
        """Return the seconds that a statement has waited for an answer, or had when its connection was lost."""
        return self._waited if self._asked is None else time.monotonic() - self._asked
