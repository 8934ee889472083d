"""Decides whether one handler's messages may share a transaction in this process."""

from __future__ import annotations

from consumerkit.events import Announcer, OutsideWaitNoticed
from consumerkit.handlers.declaration import Declaration


class Sharing:
    """The declarations of one handler, and whether its messages share transactions; all its lanes use it.

    If a message fails, its neighbours in the transaction run again and repeat their effects outside the database. So a
    handler that was seen to wait for something outside gets a transaction for each message.

    Attributes:
        declared: The handler's declarations.
        alone: Whether each message now has a transaction of its own.
    """

    __slots__ = ("_announce", "_notices", "alone", "declared")

    def __init__(self, declared: Declaration, announce: Announcer) -> None:
        self.declared = declared
        self._announce = announce
        self.alone = declared.shares_transaction is False
        self._notices = (
            declared.shares_transaction is None
            and declared.is_async
            and not declared.is_batch
            and declared.batch_size > 1
        )

    @property
    def notices(self) -> bool:
        """Whether a wait outside the session would still make a difference."""
        return self._notices and not self.alone

    def notice(self, place: str, seconds: float) -> None:
        """Record that the handler waited for something other than its session; announce the first such wait.

        Args:
            place: Where the user's code waited.
            seconds: How long it waited.
        """
        if self.notices:
            self.alone = True
            self._announce(OutsideWaitNoticed(place=place, seconds=seconds))
