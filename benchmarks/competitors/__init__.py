"""The competitors: each reads on where its group stopped, and returns when the meter has seen enough."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from benchmarks.meter import Meter

BATCH = 500


class Course(NamedTuple):
    """Where to run.

    Attributes:
        bootstrap: The broker.
        database: SQLAlchemy's URL of this competitor's own database.
        topic: Filled beforehand.
        group: This competitor's consumer group.
        lanes: consumerkit's `concurrency`; 0 for its default. The others have one of everything.
    """

    bootstrap: str
    database: str
    topic: str
    group: str
    lanes: int = 0


Run = Callable[[Course, Meter], Awaitable[None]]
