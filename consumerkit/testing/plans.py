"""The runs that a handler must pass, apart from the kills."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Final

from consumerkit.handlers.handler import Ordering
from consumerkit.testing.boundaries import Kill, kills
from consumerkit.testing.case import Plan
from consumerkit.transports.base import Record
from consumerkit.transports.partitioner import partition_of

Records = tuple[Record, ...]
_SEED: Final = 7


def clean(records: Records) -> Plan:
    """Return the run with which the others are compared."""
    return Plan("the clean run (each message once, one at a time)", records, alone=True)


def batched(records: Records) -> Plan:
    """Return the run whose places are those of the kills."""
    return Plan("each message once, several in one transaction", records, is_survey=True)


def delivered_again(records: Records, ordering: Ordering) -> list[Plan]:
    """Return the runs that send messages more than once, or in another order."""
    plans = [
        Plan("each message delivered twice", _twice(records)),
        Plan("all messages delivered three times, one after the other", records * 3),
        Plan("two workers, each message sent to two partitions, one worker given up", _to_two(records), two=True),
    ]
    if ordering is not Ordering.PARTITION:
        plans += [
            Plan("keys in the reverse order", _across(records, ordering, _reversed)),
            Plan("keys in a mixed order", _across(records, ordering, _mixed)),
        ]
    return plans


def killed(records: Records, visits: Counter[str]) -> list[Plan]:
    """Return the runs whose worker is killed at a place, and started again.

    Args:
        records: The messages.
        visits: How often a living worker passed each place.
    """
    plans = [Plan(f"killed at {kill}, then started again", records, kill=kill) for kill in kills(visits)]
    # Between messages: some are committed, and others are not.
    between = [Kill("after_commit"), *([Kill("before_commit", 2)] if len(records) > 1 else [])]
    return plans + [
        Plan(f"each message by itself, killed at {kill}, then started again", records, alone=True, kill=kill)
        for kill in between
    ]


def _twice(records: Records) -> Records:
    return tuple(one for record in records for one in (record, record))


def _to_two(records: Records) -> Records:
    """Send each message to its partition and to the other one; within both, a key's messages stay in order."""
    sent = []
    for number, record in enumerate(records):
        at = number % 2 if record.key is None else partition_of(record.key, 2)
        sent += [record._replace(partition=at), record._replace(partition=1 - at)]
    return tuple(sent)


Queues = list[list[Record]]


def _across(records: Records, ordering: Ordering, mix: Callable[[Queues], Iterable[Record]]) -> Records:
    """Reorder messages, except those that `ordering` keeps in order."""
    queues: dict[object, list[Record]] = defaultdict(list)
    for number, record in enumerate(records):
        free = ordering is Ordering.NONE or record.key is None
        queues[number if free else (record.topic, record.key)].append(record)
    return tuple(mix(list(queues.values())))


def _reversed(queues: Queues) -> Iterable[Record]:
    return [record for queue in reversed(queues) for record in queue]


def _mixed(queues: Queues) -> Iterable[Record]:
    """Take the next message of a queue that is drawn, until all are empty; always the same."""
    order = [at for at, queue in enumerate(queues) for _ in queue]
    draw, before = random.Random(_SEED), list(order)
    while order == before and len(queues) > 1:
        draw.shuffle(order)
    left = [iter(queue) for queue in queues]
    return [next(left[at]) for at in order]
