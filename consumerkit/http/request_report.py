"""The report about one request: its answer, and how long it waited."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException

from consumerkit.events import Announcer, RequestAnswered, RequestOutcome


@dataclass(slots=True)
class RequestReport:
    """How a request was answered, announced once that is known.

    Attributes:
        endpoint: The endpoint's name; empty until the request reaches the edge. A request that
            authentication or validation refuses before is not announced.
        outcome: The request's outcome; "failed" until another one is known.
        waited: Seconds for which the request waited for another one with its key.
        error: The type of the database's error, where the database is out of reach.
    """

    endpoint: str = ""
    outcome: RequestOutcome = "failed"
    waited: float = 0.0
    error: str = ""
    _begun: float = field(default_factory=time.monotonic)

    def raised(self, error: Exception) -> None:
        """Record the endpoint's error; its changes are rolled back."""
        self.outcome = "rolled_back" if isinstance(error, HTTPException) else "failed"

    def tell(self, announce: Announcer, owner: str, status: int | None) -> None:
        """Announce the report, if the request has reached the edge."""
        if self.endpoint:
            announce(
                RequestAnswered(
                    handler=owner,
                    endpoint=self.endpoint,
                    outcome=self.outcome,
                    status=status,
                    seconds=time.monotonic() - self._begun,
                    waited=self.waited,
                    error=self.error,
                )
            )
