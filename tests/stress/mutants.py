"""The product without one of its rules: seeds must fail."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from consumerkit.engine.lanes.lane import Lane
from consumerkit.engine.transaction import transaction
from consumerkit.message import Message
from consumerkit.relay.rows import Rows
from consumerkit.storage.outbox_queues import OutboxPage
from tests.crash.mutants import without_claim, without_drain, without_finalise, without_sort


def without_token() -> None:
    """No transaction checks that it still has the partition's token."""

    def count_owned(*given: object) -> int:
        owners = given[-1]
        assert isinstance(owners, dict)
        return len(owners)

    transaction.fence.count_owned = count_owned  # type: ignore[attr-defined]


def without_order() -> None:
    """The relay goes on after the last row that it read, and misses lower rows that are committed later."""
    read = Rows.lowest
    last: dict[Rows, int] = {}

    async def lowest(self: Rows) -> OutboxPage:
        page = await read(self)
        pending = [one for one in page.pending if one.sequence > last.get(self, 0)]
        # Once nothing follows, it begins again.
        last[self] = pending[-1].sequence if pending else 0
        return page._replace(pending=pending)

    setattr(Rows, "lowest", lowest)  # noqa: B010 - a method is no attribute to be assigned


class _Forgotten(defaultdict[tuple[str, int], deque[Message]]):
    """The set-aside messages, which are not looked at."""

    def __contains__(self, _: object) -> bool:
        return False


def without_aside() -> None:
    """A message of a slowed partition runs once it is admitted, whatever was set aside before it."""
    begin = Lane.__init__

    def forgetful(self: Lane, *given: Any) -> None:
        begin(self, *given)
        self._aside = _Forgotten(deque)

    setattr(Lane, "__init__", forgetful)  # noqa: B010 - a method is no attribute to be assigned


MUTANTS: dict[str, Callable[[], None]] = {
    "claim": without_claim,
    "finalise": without_finalise,
    "sort": without_sort,
    "drain": without_drain,
    "token": without_token,
    "order": without_order,
    "aside": without_aside,
}

# Plans that test each rule hard, and a word of the problem that at least one of them must find.
SEEDS: dict[str, tuple[tuple[int, ...], str]] = {
    "claim": ((111, 0, 78), " has 2 effects"),
    "finalise": ((14, 13, 27), "commits were said to be lost"),
    "sort": ((0, 78, 111), "deadlocks"),
    "drain": ((6, 24, 26), "though nothing broke"),
    "order": ((15, 2, 46, 52), "was published after"),
    "token": ((3, 10, 11, 16), "by a worker after others had taken its partitions"),
    "aside": ((1, 4, 18, 33, 12, 36), " comes after "),
}
