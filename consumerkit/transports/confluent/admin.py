"""Describing and creating topics with librdkafka's admin client, which both Kafka transports use."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._metadata import ClusterMetadata
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic

from consumerkit.errors import StartError
from consumerkit.transports.advertised import Address, in_words, unreachable, unresolvable
from consumerkit.transports.base import TopicInfo
from consumerkit.transports.confluent.messages import without_values
from consumerkit.transports.confluent.questions import AskTopics, Questions
from consumerkit.transports.loopback import check_advertised, is_loopback
from consumerkit.transports.oauth import wait_for_token

T = TypeVar("T")
_log: Final = logging.getLogger(__name__)
_NO_KAFKA: Final = re.compile(
    r"Receive failed: Invalid response size \d+ \(0\.\.\d+\): increase receive\.message\.max\.bytes \([^)]*\)"
)

# Waiting does not cure these: they raise a StartError at once, not after the timeout.
_REFUSALS = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED})  # noqa: SLF001
_TRY = 2.0
_PAUSE = 0.5
_NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"


class TopicAdmin:
    """Describes and creates topics.

    Args:
        config: librdkafka's settings for reaching the cluster.
        timeout: Seconds after which the broker counts as unreachable.
        local_only: Refuse brokers that are not on this machine.
    """

    def __init__(self, config: Mapping[str, object], timeout: float = 15.0, *, local_only: bool = False) -> None:
        self._config = dict(config)
        self._local_only = local_only
        self._timeout = timeout
        self._reached = False

    async def topics(self, names: Collection[str]) -> dict[str, TopicInfo]:
        """Describe the topics that exist; never creates one.

        Raises:
            StartError: The broker refused, or could not be reached in time.
        """
        return await asyncio.to_thread(self.describe, names)

    async def keeps(self, names: Collection[str]) -> dict[str, float]:
        """Return for how many seconds the broker keeps each topic's records, if it says so.

        Raises:
            StartError: The broker refused the connection, or could not be reached in time.
        """
        return await asyncio.to_thread(self._keeps, names)

    async def create_topics(self, partitions: Mapping[str, int]) -> None:
        """Create the topics that do not exist.

        Raises:
            StartError: The broker refused; the message names the topic.
        """
        await asyncio.to_thread(self._create, partitions)

    def questions(self, group: str, topics: AskTopics) -> Questions:
        """Return a `Questions` about partitions for a group; `topics` describes topics as our method does."""
        return Questions(self._config, group, topics)

    def describe(self, names: Collection[str]) -> dict[str, TopicInfo]:
        """Do the work of `topics`, blocking."""
        if not names and not self._local_only:
            return {}
        with _Session(self._config, self._timeout) as session:
            metadata = self._metadata(session)
            if not names:
                return {}
            if _is_embedded(metadata):
                known = {name: topic for name, topic in metadata.topics.items() if name in names}
                return {name: TopicInfo(name, name, len(topic.partitions)) for name, topic in known.items()}
            asked = session.admin.describe_topics(TopicCollection(sorted(names)), request_timeout=self._timeout)
            found = {name: self._info(session, name, answer) for name, answer in asked.items()}
        return {name: info for name, info in found.items() if info is not None}

    def _metadata(self, session: _Session) -> ClusterMetadata:
        """Ask about the cluster, and refuse brokers elsewhere if none may be there."""
        metadata = session.metadata()
        if self._local_only:
            elsewhere = [at for at in _advertised(metadata) if not is_loopback(at.host)]
            if unknown := unresolvable(elsewhere):
                raise StartError(f"{session.place}: {in_words(unknown)}")
            check_advertised(at.host for at in elsewhere)
        if not self._reached:
            self._reach(session, metadata)
            self._reached = True
        return metadata

    def _reach(self, session: _Session, metadata: ClusterMetadata) -> None:
        """Check once that the advertised addresses of brokers can be reached; some brokers of a cluster may be down.

        Raises:
            StartError: None can be reached.
        """
        known = str(self._config.get("bootstrap.servers")).split(",")
        while True:
            there = _advertised(metadata)
            found = unreachable([at for at in there if str(at) not in known])
            if not found or len(found) < len(there):
                break
            session.check_reached(in_words(found))
            time.sleep(_PAUSE)
            metadata = session.metadata()
        if found:
            _log.warning("%s: %s; what those brokers lead is not read", session.place, in_words(found))

    def _info(self, session: _Session, name: str, answer: Future[Any]) -> TopicInfo | None:
        try:
            topic = session.wait(answer)
        except KafkaException as error:
            reason = error.args[0]
            if reason.code() in {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}:  # noqa: SLF001
                return None
            raise StartError(session.words(f"topic {name!r} cannot be described", reason)) from error
        return TopicInfo(name, _topic_id(topic.topic_id) or name, len(topic.partitions))

    def _keeps(self, names: Collection[str]) -> dict[str, float]:
        with _Session(self._config, self._timeout) as session:
            if not names or _is_embedded(self._metadata(session)):
                return {}
            resources = [ConfigResource(ResourceType.TOPIC, name) for name in sorted(names)]
            asked = session.admin.describe_configs(resources, request_timeout=self._timeout)
            found = {resource.name: _kept(session, answer) for resource, answer in asked.items()}
        return {name: seconds for name, seconds in found.items() if seconds is not None}

    def _create(self, partitions: Mapping[str, int]) -> None:
        if not partitions:
            return
        topics = [NewTopic(name, num_partitions=number) for name, number in partitions.items()]
        with _Session(self._config, self._timeout) as session:
            if _is_embedded(self._metadata(session)):
                for name in partitions:
                    session.admin.list_topics(name, timeout=self._timeout)  # asking for it creates it
                return
            # Both timeouts: the second delays the answer until the topics can be used.
            asked = session.admin.create_topics(topics, request_timeout=self._timeout, operation_timeout=self._timeout)
            for name, answer in asked.items():
                try:
                    session.wait(answer)
                except KafkaException as error:
                    reason = error.args[0]
                    if reason.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise StartError(session.words(f"topic {name!r} cannot be created", reason)) from error
            _poll_until(lambda: self._known(session, partitions), self._timeout)

    def _known(self, session: _Session, partitions: Mapping[str, int]) -> bool:
        found = session.admin.list_topics(timeout=self._timeout).topics
        return all(
            name in found and all(part.leader >= 0 for part in found[name].partitions.values()) for name in partitions
        )


class _Session:
    """Keeps an admin client until its futures have answered: collected earlier, it would destroy them."""

    def __init__(self, config: Mapping[str, object], timeout: float) -> None:
        self._refusal: KafkaError | None = None
        self._last: KafkaError | None = None
        self._told = False
        self._timeout = timeout
        self.place = f"Kafka at {config.get('bootstrap.servers')}"
        wait_for_token(config)
        self._end = time.monotonic() + timeout
        settings: dict[str, Any] = {**config, "error_cb": self._note, "log_level": 0}
        try:
            self.admin = AdminClient(settings)
        except (KafkaException, TypeError, ValueError) as error:
            raise StartError(refused_settings(error)) from None

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.admin.poll(0)
        del self.admin  # the client refers to `_note`, and so to us: otherwise only the garbage collector would end it

    def metadata(self) -> ClusterMetadata:
        """Ask for all existing topics, which creates none."""
        while True:
            try:
                return self.admin.list_topics(timeout=_TRY)
            except KafkaException as error:
                self.admin.poll(0)
                self._check(error.args[0])
                self._tell_once(self.words("no answer yet", error.args[0]))

    def wait(self, answer: Future[T]) -> T:
        """Wait for an answer, and check for a refusal that would otherwise appear only as a timeout."""
        self._end = time.monotonic() + self._timeout + _TRY  # the client's own timeout comes first, and names a cause
        while not answer.done():
            self.admin.poll(0.05)
            self._check(None)
        return answer.result()

    def words(self, what: str, reason: KafkaError | None) -> str:
        """Return what went wrong, with the client's own latest trouble, which is often the cause of a timeout."""
        said = ": ".join(dict.fromkeys(error.str() for error in (reason, self._last) if error is not None))
        # The client takes the first bytes of an HTTP or TLS answer for a size, and advises a larger limit.
        said = _NO_KAFKA.sub("what answers there is not a Kafka listener, or is one that needs security=", said)
        return f"{what}: {said}" if said else what

    def _check(self, trouble: KafkaError | None) -> None:
        if self._refusal is not None:
            raise StartError(f"{self.place} refused the connection: {self._refusal.str()}; check security=")
        if time.monotonic() > self._end:
            why = self.words("no answer", trouble)
            raise StartError(f"{self.place}: {why}; check that the broker runs and that bootstrap= is right")

    def check_reached(self, why: str) -> None:
        """Keep waiting for brokers that are unreachable at their advertised addresses; that is logged once.

        Raises:
            StartError: The wait is over.
        """
        if time.monotonic() > self._end:
            raise StartError(f"{self.place}: {why}")
        self._tell_once(why)

    def _tell_once(self, why: str) -> None:
        """Log that the address may be wrong long before giving up: a broker may just be starting."""
        if not self._told:
            self._told = True
            left = max(0.0, self._end - time.monotonic())
            _log.warning("%s: %s; trying for %.0f s more", self.place, why, left)

    def _note(self, error: KafkaError) -> None:
        self._last = error
        if error.code() in _REFUSALS:
            self._refusal = error


def refused_settings(error: Exception) -> str:
    """Return a text about refused settings: all but `options` were checked or made by us."""
    reason = error.args[0].str() if isinstance(error, KafkaException) else type(error).__name__
    told = without_values(reason)
    return f"Kafka(options=...): the Kafka client refused its settings: {told}; correct it, or leave it out"


def _kept(session: _Session, answer: Future[Any]) -> float | None:
    try:
        settings = session.wait(answer)
        policy, milliseconds = settings["cleanup.policy"].value, int(settings["retention.ms"].value)
    except (KafkaException, KeyError, TypeError, ValueError):
        return None
    return milliseconds / 1000 if "delete" in policy and milliseconds >= 0 else math.inf


def _advertised(metadata: ClusterMetadata) -> list[Address]:
    return [Address(broker.host or "", broker.port or 0) for broker in metadata.brokers.values()]


def _is_embedded(metadata: ClusterMetadata) -> bool:
    """Return whether it is librdkafka's mock cluster: it has no admin API or topic IDs, and asking creates topics."""
    return str(metadata.cluster_id).startswith("mockCluster")


def _topic_id(uuid: Any) -> str:
    """Return Kafka's own notation, which its tools print (URL-safe base64); empty if the broker has no ID."""
    text = str(uuid).rstrip("=").replace("+", "-").replace("/", "_") if uuid is not None else ""
    return "" if text == _NO_ID else text


def _poll_until(condition: Callable[[], bool], timeout: float) -> None:
    end = time.monotonic() + timeout
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
