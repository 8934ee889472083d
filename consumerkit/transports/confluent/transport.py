"""Kafka through librdkafka (confluent-kafka): the transport that `Kafka(transport="confluent")` makes.

* Cooperative rebalances: a joining member takes partitions from others without stopping those that stay.
  Therefore all members of a group must use the same client library.
* A header name that is not UTF-8 comes escaped. If one record has several such names, the client shows only the first
  one; the others come as U+FFFD, with their values and their order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from consumerkit.transports.base import Consumer, LogReader, PlacingProducer, Subscription, TopicInfo
from consumerkit.transports.confluent.admin import TopicAdmin
from consumerkit.transports.confluent.consumer import ConfluentConsumer
from consumerkit.transports.confluent.log_reader import ConfluentReader
from consumerkit.transports.confluent.producer import ConfluentProducer

if TYPE_CHECKING:
    from consumerkit.transports.aiokafka.leaving import Leaving

Aside = Callable[[], Mapping[str, Any]]

# Settings of consumers, which the other kinds of client would complain about.
_CONSUMER_ONLY = ("fetch.", "queued.m", "session.", "heartbeat.", "group.", "partition.", "max.poll.", "check.crcs")


class ConfluentTransport:
    """Makes consumers and producers for one cluster.

    Args:
        config: librdkafka's settings: how to reach the cluster, and the user's own. Settings that
            the contract of `consumerkit.transports.base` depends on are overwritten here.
        local_only: Refuse brokers that are not on this machine.
        aside: Returns how to reach the cluster, in aiokafka's keyword arguments, for requests that
            librdkafka lacks; a plain connection if it is left out.
    """

    def __init__(self, config: Mapping[str, object], *, local_only: bool = False, aside: Aside | None = None) -> None:
        self._config = dict(config)
        servers = str(config["bootstrap.servers"]).split(",")
        self._aside = aside or (lambda: {"bootstrap_servers": servers})
        self._local_only = local_only
        self._shared = {name: value for name, value in config.items() if not name.startswith(_CONSUMER_ONLY)}
        self._admin = TopicAdmin(self._shared, local_only=local_only)

    def consumer(self, subscription: Subscription) -> Consumer:
        """Make a consumer; nothing happens before its `start`."""
        return ConfluentConsumer(self._config, subscription, self._admin, self._leaving)

    def producer(self) -> PlacingProducer:
        """Make a producer; nothing happens before its `start`."""
        return ConfluentProducer(self._shared)

    def reader(self, topic: str, offsets: Mapping[int, int] | None = None) -> LogReader:
        """Make a reader outside any group; nothing happens before its `start`."""
        return ConfluentReader(self._config, topic, offsets or {}, self._admin)

    async def topics(self, names: Collection[str]) -> dict[str, TopicInfo]:
        """Describe the topics that exist; never creates one.

        Raises:
            StartError: The broker refused, or could not be reached in time.
        """
        return await self._admin.topics(names)

    async def keeps(self, names: Collection[str]) -> dict[str, float]:
        """Return for how many seconds the broker keeps each topic's records, if it says so.

        Raises:
            StartError: The broker refused the connection, or could not be reached in time.
        """
        return await self._admin.keeps(names)

    async def create_topics(self, partitions: Mapping[str, int]) -> None:
        """Create the topics that do not exist, with the broker's defaults.

        Raises:
            StartError: The broker refused; the message names the topic.
        """
        await self._admin.create_topics(partitions)

    async def leave(self, group: str, members: Collection[str]) -> None:
        """Leave a group for members whose processes have died.

        Raises:
            Unavailable: The broker refused, or did not answer in time.
        """
        await self._leaving().leave(group, members)

    def _leaving(self) -> Leaving:
        # Seldom needed, and aiokafka takes a while to import.
        from consumerkit.transports.aiokafka.leaving import Leaving

        return Leaving(self._aside, local_only=self._local_only)
