"""Notices that the group has no partition for its member, so that standing still is no fault."""

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
    """Reports once that there is no partition, some seconds after the last one has gone; for the poll thread only.

    In the classic protocol the client gets an empty assignment. In the protocol of KIP-848 it gets
    nothing, so the broker is asked.

    Args:
        begin: Starts work on the event loop.
        confirm: Asks the broker whether it has assigned nothing to this member; None if the client
            learns it itself.
    """

    def __init__(self, begin: Begin, confirm: Confirm | None) -> None:
        self._begin = begin
        self._confirm = confirm
        self._since = math.inf
        self._asked: Future[bool] | None = None

    def joined(self) -> None:
        """Record that the member has asked to join."""
        if self._confirm is not None:
            self._since = time.monotonic()

    def told(self) -> None:
        """Record that the client got an empty assignment."""
        self._since = time.monotonic()

    def over(self) -> None:
        """Record that there are partitions; once the last of them has gone, it may report again."""
        self._since = math.inf if self._confirm is None else time.monotonic()
        self._asked = None

    def is_certain(self) -> bool:
        """Return True, once, if there has been none for some seconds and the broker confirms it."""
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
    """Return whether a group is settled and has assigned nothing to a member.

    Raises:
        KafkaException: The broker did not answer.
    """
    found = admin.describe_consumer_groups([group], request_timeout=_ANSWER)[group].result()
    mine = [one for one in found.members if one.member_id == member]
    settled = found.state is ConsumerGroupState.STABLE
    return settled and bool(mine) and not mine[0].assignment.topic_partitions
