"""Tables of partitions, as an engine has one."""

import asyncio

from consumerkit.engine.partitions.commit_sequence import CommitSequences
from consumerkit.engine.partitions.table import Partitions, Rules
from consumerkit.events import Announcer
from consumerkit.handlers.handler import Ordering


def partitions(ordering: Ordering, parking_limit: int) -> Partitions:
    """Return a table without partitions."""
    return Partitions(Rules(ordering, parking_limit, 1_000_000), CommitSequences(), Announcer(), asyncio.Event())
