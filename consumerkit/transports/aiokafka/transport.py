"""The transport on aiokafka, which runs in the event loop and speaks the eager protocol of consumer groups.

Differences that may matter for a choice: every rebalance takes all partitions of all members away
and assigns them again, and heartbeats stop while the event loop is blocked. `lost` is called only
if the broker has already said that the partitions are lost. Otherwise `revoked` is called, and its
commit is refused.

confluent-kafka describes and creates topics, and asks about partitions: aiokafka does not know
topic IDs, and asks on the connections that it fetches by.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]

from consumerkit.errors import ConfigurationError
from consumerkit.transports.aiokafka.client import keep_secrets_out_of_logs
from consumerkit.transports.aiokafka.consumer import AiokafkaConsumer
from consumerkit.transports.aiokafka.leaving import Leaving
from consumerkit.transports.aiokafka.log_reader import AiokafkaLogReader
from consumerkit.transports.aiokafka.producer import AiokafkaProducer
from consumerkit.transports.base import Consumer, LogReader, PlacingProducer, Subscription, TopicInfo
from consumerkit.transports.confluent.admin import TopicAdmin


class AiokafkaTransport:
    """A Kafka cluster, reached with aiokafka.

    Args:
        settings: How to reach the cluster, in aiokafka's keyword arguments.
        options: More keyword arguments; each client gets those that it accepts.
        admin: How to reach the cluster, in librdkafka's settings.
        local_only: Refuse brokers that are not on this machine.

    Raises:
        ConfigurationError: No client of aiokafka takes an option.
    """

    def __init__(
        self,
        settings: Mapping[str, object],
        *,
        admin: Mapping[str, object],
        options: Mapping[str, object],
        local_only: bool = False,
    ) -> None:
        _check_names(options)
        keep_secrets_out_of_logs()
        self._settings: dict[str, Any] = dict(settings)
        self._options: dict[str, Any] = dict(options)
        self._admin = TopicAdmin(admin, local_only=local_only)
        self._leaving = Leaving(lambda: self._settings, local_only=local_only)

    def consumer(self, subscription: Subscription) -> Consumer:
        """Make a consumer."""
        questions = self._admin.questions(subscription.group, self.topics)
        return AiokafkaConsumer(self._settings, self._options, subscription, self.topics, questions, self._leaving)

    def producer(self) -> PlacingProducer:
        """Make a producer."""
        return AiokafkaProducer(self._settings, self._options, self.topics)

    def reader(self, topic: str, offsets: Mapping[int, int] | None = None) -> LogReader:
        """Make a reader outside any group."""
        return AiokafkaLogReader(self._settings, self._options, topic, offsets or {}, self.topics)

    async def topics(self, names: Collection[str]) -> dict[str, TopicInfo]:
        """Describe the topics that exist.

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
        """Create the topics that do not exist.

        Raises:
            StartError: The broker refused; the message names the topic.
        """
        await self._admin.create_topics(partitions)

    async def leave(self, group: str, members: Collection[str]) -> None:
        """Leave a group for members whose processes have died.

        Raises:
            Unavailable: The broker refused, or did not answer in time.
        """
        await self._leaving.leave(group, members)


def _check_names(options: Mapping[str, object]) -> None:
    known = sorted({*signature(AIOKafkaConsumer).parameters, *signature(AIOKafkaProducer).parameters})
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see aiokafka's documentation"
            raise ConfigurationError(f"Kafka(options={{{name!r}: ...}}): aiokafka has no such setting; {hint}")
