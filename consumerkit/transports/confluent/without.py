"""Notices that the group has no partition for its member, which then knows that it stands still for no fault."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, Final

from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient

Confirm = Callable[[], Coroutine[Any, Any, bool]]
Begin = Callable[[Coroutine[Any, Any, bool]], "Future[bool]"]

_AFTER: Final = 3.0
_ANSWER: Final = 2.0


class WithoutPartitions:
    """Tells once that there is none, some seconds after the last one has gone; used by the poll thread only.

    In the classic protocol the client gets an assignment of nothing. In that of KIP-848 it gets nothing at
    all, so the broker is asked.

    Args:
        begin: Begins something on the event loop.
        confirm: Asks the broker whether it has assigned nothing to this member; None where the client is told so.
    """

    def __init__(self, begin: Begin, confirm: Confirm | None) -> None:
        self._begin = begin
        self._confirm = confirm
        self._since = math.inf
        self._asked: Future[bool] | None = None

    def joined(self) -> None:
        """Record that the member has asked to be let in."""
        if self._confirm is not None:
            self._since = time.monotonic()

    def told(self) -> None:
        """Record that the client got an assignment of nothing."""
        self._since = time.monotonic()

    def over(self) -> None:
        """Record that there are partitions; once the last of them has gone, it may tell again."""
        self._since = math.inf if self._confirm is None else time.monotonic()
        self._asked = None

    def is_certain(self) -> bool:
        """Return True, once, where there has been none for some seconds and the broker means it."""
        if time.monotonic() - self._since <= _AFTER:
            return False
        if self._confirm is None or self._is_confirmed():
            self._since = math.inf
            return True
        return False

    def _is_confirmed(self) -> bool:
        assert self._confirm is not None
        if self._asked is None:
            self._asked = self._begin(self._confirm())
        if not self._asked.done():
            return False
        asked, self._asked = self._asked, None
        self._since = time.monotonic()
        try:
            return asked.result()
        except CancelledError:
            return False


def has_none(admin: AdminClient, group: str, member: str) -> bool:
    """Tell whether a group is settled and has assigned nothing to a member.

    Raises:
        KafkaException: The broker did not answer.
    """
    found = admin.describe_consumer_groups([group], request_timeout=_ANSWER)[group].result()
    mine = [one for one in found.members if one.member_id == member]
    settled = found.state is ConsumerGroupState.STABLE
    return settled and bool(mine) and not mine[0].assignment.topic_partitions
