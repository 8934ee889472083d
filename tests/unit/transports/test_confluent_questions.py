"""Questions to a broker: many at a time, and no partition keeps another waiting."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumerkit.errors import Unavailable
from consumerkit.message import TopicPartition
from consumerkit.transports.base import PartitionInfo, Surveyed, TopicInfo
from consumerkit.transports.confluent import questions as asking
from consumerkit.transports.confluent.questions import Questions
from tests.contracts.member import until

COUNT = 40


class Cluster:
    """Answers in place of both clients.

    Attributes:
        renewed: How often a new client was made.
        leaderless: Partitions without a leader.
        silent: Partitions whose leader does not answer.
        asked: How many partitions each request named.
    """

    def __init__(self) -> None:
        self.leaderless: set[int] = set()
        self.silent: set[int] = set()
        self.refused: set[int] = set()
        self.asked: list[int] = []
        self.admin = self
        self.renewed = 0

    admin: Any = None

    @property
    def reader(self) -> Cluster:
        return self

    def list_topics(self, topic: str, timeout: float) -> Any:
        partitions = {n: SimpleNamespace(leader=-1 if n in self.leaderless else 1) for n in range(COUNT)}
        return SimpleNamespace(topics={topic: SimpleNamespace(partitions=partitions)})

    def list_offsets(self, wanted: Mapping[RawPartition, Any], **_: Any) -> dict[RawPartition, Future[Any]]:
        self.asked.append(len(wanted))
        answers: dict[RawPartition, Future[Any]] = {}
        for at in wanted:
            answers[at] = Future()
            if at.partition in self.refused:
                answers[at].set_exception(KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION)))
                self.refused.discard(at.partition)
            elif at.partition not in self.silent:
                answers[at].set_result(SimpleNamespace(offset=at.partition))
        return answers

    def committed(self, partitions: list[RawPartition], timeout: float) -> list[RawPartition]:
        self.asked.append(len(partitions))
        return [RawPartition(at.topic, at.partition, -1001) for at in partitions]

    def close(self) -> None: ...


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()

    def renewed(_: Any) -> Cluster:
        made.renewed += 1
        return made

    monkeypatch.setattr(asking, "AdminClient", renewed)
    monkeypatch.setattr(asking, "Clients", lambda *_: made)
    return made


async def _topics(names: Any) -> dict[str, TopicInfo]:
    return {name: TopicInfo(name, "id", COUNT) for name in names}


def _partitions(*left_out: int) -> list[TopicPartition]:
    return [TopicPartition("t", number) for number in range(COUNT) if number not in left_out]


async def test_all_partitions_are_asked_about_at_once(cluster: Cluster) -> None:
    questions = Questions({}, "g", _topics)
    found = await questions.describe(_partitions())
    assert found == {at: PartitionInfo("id", at.partition, at.partition) for at in _partitions()}
    assert cluster.asked == [COUNT] * 3
    await questions.stop()


async def test_a_partition_without_a_leader_is_not_even_asked_about(cluster: Cluster) -> None:
    questions = Questions({}, "g", _topics)
    cluster.leaderless = {7}
    assert set(await questions.describe(_partitions())) == set(_partitions(7))
    assert (await questions.survey("t")).partitions[7] == Surveyed(None)
    assert set(await questions.describe([TopicPartition("t", 7)])) == set()
    assert sorted(set(cluster.asked)) == [1, COUNT - 1, COUNT]
    with pytest.raises(Unavailable, match=r"t\[7\]"):
        await questions.since(TopicPartition("t", 7), 1)
    await questions.stop()


async def test_a_leader_that_does_not_answer_keeps_no_other_waiting_for_long(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ANSWER_TIMEOUT", 600.0)
    monkeypatch.setattr(asking, "GRACE", 0.2)
    questions = Questions({}, "g", _topics)
    cluster.silent, cluster.refused = {3}, {5}
    began = time.monotonic()
    assert set(await questions.describe(_partitions())) == set(_partitions(3))
    assert time.monotonic() - began < 60.0
    # What a client knows of leaders is old where one refuses, and it keeps that for minutes.
    assert cluster.renewed == 1
    await questions.stop()


async def test_a_broker_that_tells_of_none_is_unavailable(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ANSWER_TIMEOUT", 0.2)
    questions = Questions({}, "g", _topics)
    cluster.silent = set(range(COUNT))
    with pytest.raises(Unavailable, match=r"did not tell about t\[0\], .*\.\.\.$"):
        await questions.describe(_partitions())
    await questions.stop()
    with pytest.raises((Unavailable, RuntimeError)):
        await questions.describe(_partitions())


async def test_a_question_keeps_its_client_until_that_has_answered(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is collected never answers; another question may have it renewed at any moment."""
    monkeypatch.setattr(asking, "GRACE", 60.0)
    asked: list[weakref.ref[Admin]] = []
    answers: list[Future[Any]] = []

    class Admin:
        def list_offsets(self, wanted: Mapping[RawPartition, Any], **_: Any) -> dict[RawPartition, Future[Any]]:
            asked.append(weakref.ref(self))
            answers.append(Future())
            return dict.fromkeys(wanted, answers[-1])

    questions = Questions({}, "g", _topics)
    cluster.admin = Admin()
    finding = asyncio.create_task(questions.describe([TopicPartition("t", 0)]))
    await until(lambda: asked, "it is asked")
    questions._renew()
    assert cluster.renewed == 1
    gc.collect()
    assert asked[0]() is not None
    cluster.admin = Admin()
    answers[0].set_result(SimpleNamespace(offset=3))
    await until(lambda: len(answers) == 2, "it is asked for the end, too")
    answers[1].set_result(SimpleNamespace(offset=4))
    assert (await finding)[TopicPartition("t", 0)].end == 4
    await questions.stop()
