"""The product with one of its rules taken out: seeds must fail."""

from __future__ import annotations

from collections.abc import Callable

from consumerkit.engine import transaction
from tests.crash.mutants import without_claim, without_drain, without_finalise, without_sort


def without_token() -> None:
    """Nobody looks whether the partition's token is still his."""

    def count_owned(*given: object) -> int:
        owners = given[-1]
        assert isinstance(owners, dict)
        return len(owners)

    transaction.fence.count_owned = count_owned  # type: ignore[attr-defined]


MUTANTS: dict[str, Callable[[], None]] = {
    "claim": without_claim,
    "finalise": without_finalise,
    "sort": without_sort,
    "drain": without_drain,
    "token": without_token,
}

# Plans that are hard on each, one of which must fail, and a word of the problem that must be found.
SEEDS: dict[str, tuple[tuple[int, ...], str]] = {
    "claim": ((13, 14, 27), " effects"),
    "finalise": ((14, 13, 27), "commits were said to be lost"),
    "sort": ((0, 78, 111), "deadlocks"),
    "drain": ((6, 24, 26), "though nothing broke"),
    "token": ((3, 10, 11, 16), "by a worker after others had taken its partitions"),
}
