"""What `on_dead_letter` gets: the dead letter, and a context with a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import TypeVar

from consumerkit.handlers.context import Publisher, Publishing
from consumerkit.message import Message
from consumerkit.outcome import Reason

S = TypeVar("S", default=AsyncSession)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetteredMessage:
    """A message that became a dead letter.

    Attributes:
        id: The number of its dead letter, as `consumerkit dead-letters show` takes it.
        message: The record. Its value is None if it was not kept, or was erased since.
        message_id: The message ID as text; empty if it has none.
        reason: Why it is dead; see `Reason`.
        error_type: The class of its last error.
        error: The text of its last error.
        attempts: How often the handler was called for it.
        redrives: How often it was redriven before.
    """

    id: int
    message: Message
    message_id: str
    reason: Reason
    error_type: str
    error: str
    attempts: int
    redrives: int = 0


class DeadLetterContext(Publishing, Generic[S]):
    """What `on_dead_letter` gets besides the dead letter.

    Attributes:
        session: A session of the same kind as that of `handle`. Its transaction also records that
            the call was made. Only consumerkit commits, rolls back and closes it.
    """

    __slots__ = ("session",)

    def __init__(self, session: S, publisher: Publisher) -> None:
        self.session = session
        self._publisher = publisher
        self._over = None
