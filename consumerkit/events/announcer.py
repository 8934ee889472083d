"""Announces events to observers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from consumerkit.events.event import Event
from consumerkit.events.worker import Trouble, TroubleOver

Observer = Callable[[Event], None]


_log = logging.getLogger(__name__)


class Announcer:
    """Announces events to observers, and only logs the observers' errors.

    Several parts of a worker meet the same trouble: only the first report of its end is announced.
    """

    __slots__ = ("_observers", "_trouble")

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)
        # None in a handler's announcer: only the worker's one sees the trouble that other parts
        # report.
        self._trouble: set[tuple[str, str, str]] | None = set()

    def add(self, observer: Observer) -> None:
        """Add an observer, which gets all events from now on."""
        self._observers = (*self._observers, observer)

    def for_handler(self, handler: str) -> Announcer:
        """Return an announcer that sets a handler's name in each event and passes the event to this one."""
        made = Announcer([lambda event: self(replace(event, handler=handler))])
        made._trouble = None
        return made

    def __call__(self, event: Event) -> None:
        """Pass an event to all observers, in order."""
        if self._trouble is not None and isinstance(event, Trouble | TroubleOver):
            place = (event.handler, event.work, event.where)
            if isinstance(event, Trouble):
                self._trouble.add(place)
            elif place in self._trouble:
                self._trouble.remove(place)
            else:
                return
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # noqa: BLE001 - an observer changes no outcome, whatever it raises
                _log.exception("observer %r failed on %s", observer, type(event).__name__)
