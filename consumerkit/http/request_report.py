"""The report about one request: its answer, and how long it waited."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException

from consumerkit.events import Announcer, RequestAnswered, RequestOutcome


@dataclass(slots=True)
class RequestReport:
    """How a request was answered, told once that is known.

    Attributes:
        endpoint: The endpoint's name; empty until the request comes to the edge: what authentication or validation
            refuses before is not told.
        outcome: What became of it: it failed, until something else is known.
        waited: Seconds for which it waited for another request with its key.
        error: The type of the database's error, where that is out of reach.
    """

    endpoint: str = ""
    outcome: RequestOutcome = "failed"
    waited: float = 0.0
    error: str = ""
    _begun: float = field(default_factory=time.monotonic)

    def raised(self, error: Exception) -> None:
        """Take what the endpoint raised; its changes are rolled back."""
        self.outcome = "rolled_back" if isinstance(error, HTTPException) else "failed"

    def tell(self, announce: Announcer, owner: str, status: int | None) -> None:
        """Announce it, where the request came to the edge."""
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
