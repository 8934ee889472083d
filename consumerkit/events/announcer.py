"""Announces events to observers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import replace
from typing import Protocol

from consumerkit.events.event import Event
from consumerkit.events.worker import Trouble, TroubleOver
from consumerkit.message import Headers

Observer = Callable[[Event], None]


class HasHeaders(Protocol):
    """A message that an event is about: consumed, or to be sent."""

    @property
    def headers(self) -> Headers:
        """Its headers, which may name a trace."""
        ...


Surround = Callable[[Context, str, HasHeaders, str, int], None]
"""Sets the current message and its span in a context: handler, message, the message's ID, its attempt."""


_log = logging.getLogger(__name__)


def _nothing(context: Context, handler: str, about: HasHeaders, message_id: str, attempt: int) -> None:
    pass


class Announcer:
    """Announces events to observers, and only logs the observers' errors.

    Several parts of a worker meet the same trouble: only the first report of its end is announced.

    Args:
        observers: Called with every event.
        surround: Sets the message that an event is about, and its span, in the context in which observers are called.
    """

    __slots__ = ("_handler", "_observers", "_trouble", "_worker", "surround")

    def __init__(self, observers: Sequence[Observer] = (), surround: Surround = _nothing) -> None:
        self._observers = tuple(observers)
        self._trouble: set[tuple[str, str, str]] = set()
        self._worker: Announcer | None = None
        self._handler = ""
        self.surround = surround

    def add(self, observer: Observer) -> None:
        """Add an observer, which gets all events from now on."""
        self._observers = (*self._observers, observer)

    def for_handler(self, handler: str) -> Announcer:
        """Return an announcer that sets a handler's name in each event and passes the event to this one."""
        made = Announcer(surround=self.surround)
        # Only the worker's announcer sees the trouble that other parts report.
        made._worker, made._handler = self, handler
        return made

    def __call__(self, event: Event, about: HasHeaders | None = None) -> None:
        """Pass an event to all observers, in order.

        Args:
            event: The event.
            about: The message that it is about: observers are called as if they ran within its span.
        """
        if self._worker is not None:
            self._worker(replace(event, handler=self._handler), about)
        elif not self._is_known_end(event):
            if about is None:
                self._tell(event)
                return
            context = copy_context()
            attempt = getattr(event, "attempt", 0) or getattr(event, "attempts", 0)
            self.surround(context, event.handler, about, getattr(event, "message_id", ""), attempt)
            context.run(self._tell, event)

    def _is_known_end(self, event: Event) -> bool:
        """Record trouble and its end; tell whether the event is an end that was announced already."""
        if isinstance(event, Trouble | TroubleOver):
            place = (event.handler, event.work, event.where)
            if isinstance(event, Trouble):
                self._trouble.add(place)
            elif place in self._trouble:
                self._trouble.remove(place)
            else:
                return True
        return False

    def _tell(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # noqa: BLE001 - an observer changes no outcome, whatever it raises
                _log.exception("observer %r failed on %s", observer, type(event).__name__)
