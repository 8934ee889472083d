"""Questions to a broker about partitions: many at a time, on connections that fetch nothing.

A broker answers the requests of one connection in their order, so a question on a connection with a fetch waits until
that fetch is answered. Both Kafka transports ask here. One client describes the logs, partition by partition; another
client reads the group's offsets, and never joins the group.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

import confluent_kafka
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from consumerkit.errors import StartError, Unavailable
from consumerkit.message import TopicPartition
from consumerkit.transports.base import PartitionInfo, Span, Survey, Surveyed, TopicInfo
from consumerkit.transports.confluent.without import has_none
from consumerkit.transports.notes import note_of
from consumerkit.transports.oauth import wait_for_token

T = TypeVar("T")
AskTopics = Callable[[Collection[str]], Awaitable[Mapping[str, TopicInfo]]]

ANSWER_TIMEOUT: Final = 10.0
"""Seconds after which a silent broker counts as one that does not answer."""

GRACE: Final = 1.0
"""Seconds for the other partitions, once the first one is answered."""

_EARLIEST: Final = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]
_TRY: Final = 2.0
_PAUSE: Final = 0.1
_TURN: Final = 0.005


class Committed(NamedTuple):
    """A group's committed offset and text for one partition: None and empty if it has committed nothing."""

    offset: int | None = None
    note: str = ""


class Questions:
    """Asks about partitions, for one group; used from one event loop.

    Args:
        config: librdkafka's settings for reaching the cluster.
        group: The group whose committed offsets are read.
        topics: Describes topics.
    """

    def __init__(self, config: Mapping[str, object], group: str, topics: AskTopics) -> None:
        self._config: dict[str, Any] = {
            **config,
            "log_level": 0,
            "log.connection.close": False,
            "error_cb": self._note,
        }
        self._group = group
        self._topics = topics
        self._threads = ThreadPoolExecutor(4, thread_name_prefix=f"consumerkit-ask-{group}")
        self._clients: Clients | None = None
        self._making = threading.Lock()
        self._last: KafkaError | None = None
        self._over = False

    async def describe(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, PartitionInfo]:
        """Describe partitions; leaves out partitions without a leader.

        Raises:
            Unavailable: The broker answered about none of them.
        """
        if not partitions:
            return {}
        spans, committed = await self._ask(partitions)
        # Asked last: with an earlier ID, a recreated log would pass for the old one.
        infos = await self._topic_infos({at.topic for at in partitions})
        return {
            at: PartitionInfo(infos[at.topic].topic_id, *span, *committed[at])
            for at, span in spans.items()
            if at.topic in infos
        }

    async def survey(self, topic: str) -> Survey:
        """Describe a topic with all its partitions.

        Raises:
            Unavailable: The broker did not answer, or the topic was recreated while it was asked.
        """
        info = (await self._topic_infos({topic}))[topic]
        partitions = [TopicPartition(topic, number) for number in range(info.partitions)]
        spans, committed = await self._ask(partitions)
        if (await self._topic_infos({topic}))[topic].topic_id != info.topic_id:
            raise Unavailable(f"topic {topic!r} was recreated while the worker asked the broker about it")
        found = {at.partition: Surveyed(spans.get(at), *committed[at]) for at in partitions}
        return Survey(info.topic_id, found)

    async def since(self, partition: TopicPartition, milliseconds: int) -> int:
        """Return the first offset with this timestamp or a later one; the log's end if there is none.

        Raises:
            Unavailable: The broker did not answer.
        """
        for which in (OffsetSpec.for_timestamp(milliseconds), _LATEST):
            found = await self._run(lambda which=which: self._listed(self._led([partition]), which))  # type: ignore[misc]
            if found.get(partition, -1) >= 0:
                return int(found[partition])
        raise self._no_answer([partition])

    async def has_none(self, member: str) -> bool:
        """Return whether the group is settled and has assigned nothing to a member; False if that is not known."""
        try:
            return await self._run(lambda: has_none(self._client().admin, self._group, member))
        except (KafkaException, Unavailable):
            return False

    async def stop(self) -> None:
        """Disconnect."""
        self._over = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._run(self._close), _TRY + GRACE)
        self._threads.shutdown(wait=False)

    async def _topic_infos(self, topics: Collection[str]) -> Mapping[str, TopicInfo]:
        try:
            found = await self._topics(topics)
        except StartError as error:
            raise Unavailable(f"{self._group}: the topics' IDs could not be asked for: {error}") from error
        if unknown := set(topics) - found.keys():
            raise Unavailable(f"{self._group}: the broker does not know of {', '.join(sorted(unknown))}")
        return found

    async def _ask(
        self, partitions: Collection[TopicPartition]
    ) -> tuple[dict[TopicPartition, Span], dict[TopicPartition, Committed]]:
        return await asyncio.gather(
            self._run(lambda: self._spans(partitions)), self._run(lambda: self._committed(partitions))
        )

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # -- in a thread

    def _spans(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, Span]:
        led = self._led(partitions)
        starts = self._listed(led, _EARLIEST)
        ends = self._listed(list(starts), _LATEST)
        # A log that was recreated in between may end before the old one started.
        return {at: Span(starts[at], max(starts[at], end)) for at, end in ends.items()}

    def _led(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Return the partitions with a leader: the client would wait for the others, and delay all."""
        asked: dict[str, list[TopicPartition]] = {}
        for at in partitions:
            asked.setdefault(at.topic, []).append(at)
        return [at for topic, some in asked.items() for at in self._led_of(topic, some)]

    def _led_of(self, topic: str, partitions: list[TopicPartition]) -> list[TopicPartition]:
        found = self._until(lambda: self._client().reader.list_topics(topic, timeout=_TRY), partitions)
        told = found.topics[topic].partitions
        return [at for at in partitions if at.partition in told and told[at.partition].leader >= 0]

    def _listed(self, partitions: Collection[TopicPartition], which: OffsetSpec) -> dict[TopicPartition, int]:
        """Ask for one offset of each partition; once the first are answered, the others have little time left.

        Raises:
            Unavailable: None was answered.
        """
        found: dict[TopicPartition, int] = {}
        answers: dict[TopicPartition, Future[Any]] = {}
        # Another question may renew the client. A client without a reference to it never answers.
        held: list[AdminClient] = []
        graced, pause = False, _PAUSE
        end = time.monotonic() + ANSWER_TIMEOUT
        while len(found) < len(partitions):
            if missing := [at for at in partitions if at not in found and at not in answers]:
                held.append(self._client().admin)
                answers |= _request(held[-1], missing, which)
            if not self._take(answers, found):
                # Its knowledge of the leaders is outdated, and it would not ask again for minutes.
                self._renew()
                answers.clear()
                time.sleep(pause)
                pause *= 2
            if len(found) < len(partitions) and (self._over or time.monotonic() > end):
                if not found:
                    raise self._no_answer(partitions)
                break
            if found and not graced:
                graced, end = True, min(end, time.monotonic() + GRACE)
            if len(found) < len(partitions):
                time.sleep(_TURN)
        return found

    def _take(self, answers: dict[TopicPartition, Future[Any]], found: dict[TopicPartition, int]) -> bool:
        """Take the available answers; return whether none was a refusal."""
        refused = False
        for at in [at for at, answer in answers.items() if answer.done()]:
            try:
                found[at] = answers.pop(at).result().offset
            except KafkaException as error:
                self._last, refused = error.args[0], True
        return not refused

    def _committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, Committed]:
        asked = [confluent_kafka.TopicPartition(*at) for at in partitions]
        answers = self._until(lambda: _checked(self._client().reader.committed(asked, timeout=_TRY)), partitions)
        return {TopicPartition(one.topic, one.partition): _committed(one) for one in answers}

    def _until(self, work: Callable[[], T], partitions: Collection[TopicPartition]) -> T:
        """Ask the broker; repeat while it does not answer, up to `ANSWER_TIMEOUT` seconds.

        Raises:
            Unavailable: It did not answer.
        """
        end = time.monotonic() + ANSWER_TIMEOUT
        while True:
            try:
                return work()
            except KafkaException as error:
                self._last = error.args[0]
                if self._over or time.monotonic() > end:
                    raise self._no_answer(partitions) from error
            time.sleep(_PAUSE)

    def _no_answer(self, partitions: Collection[TopicPartition]) -> Unavailable:
        some = ", ".join(map(str, sorted(partitions)[:5])) + (", ..." if len(partitions) > 5 else "")
        why = f": {self._last.name()}: {self._last.str()}" if self._last is not None else ""
        return Unavailable(f"{self._group}: the broker did not tell about {some}{why}")

    def _note(self, error: KafkaError) -> None:
        self._last = error

    def _client(self) -> Clients:
        with self._making:
            if self._over:
                raise Unavailable(f"{self._group}: the consumer has ended")
            if self._clients is None:
                self._check_token()
                self._clients = Clients(self._config, self._group)
            return self._clients

    def _check_token(self) -> None:
        try:
            wait_for_token(self._config)
        except StartError as error:
            raise Unavailable(f"{self._group}: {error}") from None

    def _renew(self) -> None:
        """Describe with a new client from now on."""
        with self._making:
            if self._clients is not None:
                self._check_token()
                self._clients.admin = AdminClient(dict(self._config))

    def _close(self) -> None:
        with self._making:
            clients, self._clients = self._clients, None
        if clients is not None:
            clients.reader.close()


class Clients:
    """The two clients; the second uses the group's name only, since it subscribes to nothing."""

    def __init__(self, config: Mapping[str, Any], group: str) -> None:
        self.admin = AdminClient(dict(config))
        self.reader = Consumer({**config, "group.id": group, "enable.auto.commit": False})


def _request(
    admin: AdminClient, partitions: Collection[TopicPartition], which: OffsetSpec
) -> dict[TopicPartition, Future[Any]]:
    asked = {confluent_kafka.TopicPartition(*at): which for at in partitions}
    level = IsolationLevel.READ_COMMITTED
    answers = admin.list_offsets(asked, isolation_level=level, request_timeout=ANSWER_TIMEOUT)
    return {TopicPartition(at.topic, at.partition): answer for at, answer in answers.items()}


def _checked(answers: list[confluent_kafka.TopicPartition]) -> list[confluent_kafka.TopicPartition]:
    for one in answers:
        if one.error is not None:
            raise KafkaException(one.error)
    return answers


def _committed(one: confluent_kafka.TopicPartition) -> Committed:
    return Committed(one.offset, note_of(one)) if one.offset >= 0 else Committed()
