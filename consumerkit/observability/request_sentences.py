"""The log's sentences about requests at the HTTP edge."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from consumerkit.events import RequestAnswered, RequestOutcome

_SAID: Final[Mapping[RequestOutcome, str]] = {
    "new": "done, and its answer is kept",
    "unprotected": "done; it had no key",
    "replayed": "answered again as before",
    "conflict": "refused: its key came before with another request",
    "in_progress": "refused: another request with its key is being handled",
    "refused": "refused: its key is missing or cannot be read",
    "erased": "refused: its key was used, and the answer was erased",
    "rolled_back": "rolled back, as the endpoint's answer asks; its key is free",
    "failed": "it is rolled back, and its key is free",
    "client_gone": "rolled back, since the client is gone; its key is free",
    "out_of_reach": "the database failed",
}
_LEVELS: Final[Mapping[RequestOutcome, int]] = {
    "client_gone": logging.INFO,
    "failed": logging.WARNING,
    "out_of_reach": logging.ERROR,
}


def level(event: RequestAnswered) -> int:
    """Return the level of the line."""
    return _LEVELS.get(event.outcome, logging.DEBUG)


def answered(event: RequestAnswered) -> str:
    """Return the line."""
    error = f": {event.error}" if event.error else ""
    waited = f", {event.waited * 1000:.0f} ms of them waiting" if event.waited >= 0.001 else ""
    lasted = f"in {event.seconds * 1000:.1f} ms{waited}"
    if event.status is None:  # the application answers the error
        return f"{event.endpoint}: failed {lasted}; it is rolled back, and its key is free"
    return f"{event.endpoint}: answered with {event.status} {lasted}: {_SAID[event.outcome]}{error}"
