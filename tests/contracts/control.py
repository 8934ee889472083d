"""The far side of a transport: what a contract test does to the broker behind the transport's back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from consumerkit.message import Headers, TopicPartition
from consumerkit.transports.base import Subscription, Transport


class BrokerControl(Protocol):
    """A broker and the transport under test."""

    transport: Transport

    def subscription(self, group: str, *topics: str, **settings: object) -> Subscription:
        """A subscription; settings are `Subscription`'s own."""
        ...

    async def create(self, topic: str, partitions: int) -> None:
        """Create a topic."""

    async def topics(self) -> set[str]:
        """The names of all topics there are."""
        ...

    async def append(
        self,
        topic: str,
        values: Sequence[bytes | None],
        partition: int = 0,
        key: bytes | None = None,
        headers: Headers = (),
    ) -> None:
        """Append records to one partition, acknowledged."""

    async def committed(self, group: str, topic: str) -> dict[TopicPartition, int]:
        """What the group has committed."""
        ...

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Delete records, as retention does."""

    def outage(self) -> AbstractAsyncContextManager[None]:
        """The broker does not answer until the end of the block."""
        ...

    async def expire(self, group: str) -> None:
        """Let the sessions of all members of the group time out."""
