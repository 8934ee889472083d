"""Several worker processes on one machine, and what binds them to their supervisor."""

from consumerkit.supervisor.lifeline import Channel, Lifeline
from consumerkit.supervisor.supervisor import (
    CLEAN,
    FAILED,
    GRACE_EXCEEDED,
    NOT_STARTED,
    SAME_REQUEST,
    Backoff,
    Supervisor,
)

__all__ = [
    "CLEAN",
    "FAILED",
    "GRACE_EXCEEDED",
    "NOT_STARTED",
    "SAME_REQUEST",
    "Backoff",
    "Channel",
    "Lifeline",
    "Supervisor",
]
