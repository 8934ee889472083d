"""The root of all events."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The root of all events.

    Attributes:
        handler: The handler's name; empty for an event of the whole worker.
    """

    handler: str = ""
