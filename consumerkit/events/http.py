"""Events about requests at the HTTP edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from consumerkit.events.event import Event

RequestOutcome = Literal[
    "new", "unprotected", "replayed", "conflict", "in_progress", "refused", "erased", "rolled_back", "failed",
    "client_gone", "out_of_reach",
]  # fmt: skip
"""The outcome of a request at the HTTP edge; see `docs/http.md`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAnswered(Event):
    """An idempotent endpoint's request is answered, or has failed; `handler` is the edge's name, such as `http:shop`.

    Attributes:
        endpoint: The endpoint's name.
        outcome: `new`: it took effect, and its answer is kept. `unprotected`: it took effect, and
            has no key. `replayed`: it got the kept answer. `conflict`: its key was used with
            another request. `in_progress`: another request with its key did not end in time.
            `refused`: its key is missing or malformed. `erased`: the kept answer is gone.
            `rolled_back`: the endpoint answered 4xx or 5xx, and nothing is kept. `failed`: the
            endpoint raised, or was cut off. `client_gone`: the client disconnected before COMMIT.
            `out_of_reach`: the database failed.
        status: The status of the answer; None where the application answered.
        seconds: From the request's body to its answer.
        waited: The part of `seconds` for which it waited for another request with its key.
        error: The type of the database's error, where the outcome is `out_of_reach`.
    """

    endpoint: str
    outcome: RequestOutcome
    status: int | None
    seconds: float
    waited: float = 0.0
    error: str = ""
