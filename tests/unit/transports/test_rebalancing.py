"""A commit that a rebalance refuses is told from one that the broker's trouble refuses."""

import asyncio
import logging
from typing import Any

import aiokafka.errors as errors  # type: ignore[import-untyped]
import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from consumerkit.errors import Rebalancing, Unavailable
from consumerkit.observability.repetitions import without_rebalances
from consumerkit.transports.confluent import commits as module
from consumerkit.transports.confluent.commits import Commits, commit_last

ORDINARY = ("ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "REBALANCE_IN_PROGRESS", "STALE_MEMBER_EPOCH")
TROUBLE = ("NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "REQUEST_TIMED_OUT", "FENCED_INSTANCE_ID", "_WAIT_COORD")


class Client:
    """Sends nothing."""

    def commit(self, offsets: list[TopicPartition], *, asynchronous: bool) -> None:
        assert asynchronous


async def answered(error: KafkaError | None, *, of_partition: bool) -> BaseException | None:
    loop = asyncio.get_running_loop()
    commits, answer = Commits(loop), loop.create_future()
    at = TopicPartition("t", 0, 7)
    client: Any = Client()
    commits.begin(client, [at], answer, wait=False)
    if of_partition:
        at = TopicPartition("t", 0, 7)
        # librdkafka sets it; the stubs know no setter.
        told: Any = type("Told", (), {"topic": "t", "partition": 0, "offset": 7, "error": error})()
        commits.on_commit(None, [told])
    else:
        commits.on_commit(error, [at])
    await asyncio.wait([answer], timeout=60)
    return answer.exception()


@pytest.mark.parametrize("of_partition", [False, True])
@pytest.mark.parametrize("code", [*ORDINARY, *TROUBLE])
async def test_only_the_codes_of_a_rebalance_are_one(code: str, of_partition: bool) -> None:
    found = await answered(KafkaError(getattr(KafkaError, code)), of_partition=of_partition)
    assert type(found) is (Rebalancing if code in ORDINARY else Unavailable)


async def test_a_commit_whose_partitions_are_revoked_is_part_of_a_rebalance() -> None:
    loop = asyncio.get_running_loop()
    commits, answer = Commits(loop), loop.create_future()
    client: Any = Client()
    commits.begin(client, [TopicPartition("t", 0, 7)], answer, wait=False)
    commits.give_up()
    await asyncio.wait([answer], timeout=60)
    assert type(answer.exception()) is Rebalancing


class Refusing:
    """Refuses commits with these codes, one after another, and takes what comes then."""

    def __init__(self, *codes: str) -> None:
        self.codes = list(codes)
        self.commits = 0

    def commit(self, offsets: list[TopicPartition], *, asynchronous: bool) -> list[TopicPartition]:
        assert not asynchronous
        self.commits += 1
        if self.codes:
            code = self.codes.pop(0)
            raise KafkaException(KafkaError(getattr(KafkaError, code)))
        return offsets


def last(client: Any) -> None:
    commit_last(client, [TopicPartition("t", 0, 7)])


def test_a_last_commit_waits_for_the_epoch_that_is_on_its_way(caplog: pytest.LogCaptureFixture) -> None:
    """The broker has raised the epoch of a member, whose client learns it from the answer to a heartbeat."""
    caplog.set_level(logging.INFO)
    client = Refusing("STALE_MEMBER_EPOCH", "STALE_MEMBER_EPOCH")
    last(client)
    assert client.commits == 3
    assert not caplog.records


@pytest.mark.parametrize("code", [code for code in (*ORDINARY, *TROUBLE) if code != "STALE_MEMBER_EPOCH"])
def test_a_last_commit_that_is_refused_otherwise_is_the_next_owners(
    code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = Refusing(code)
    last(client)
    assert client.commits == 1
    assert "the next owner commits again" in caplog.text


def test_a_last_commit_waits_for_no_epoch_for_ever(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "STALE_TIMEOUT", 0.05)
    client = Refusing(*["STALE_MEMBER_EPOCH"] * 1000)
    last(client)
    assert 2 <= client.commits < 1000
    assert "the next owner commits again" in caplog.text


def line(
    text: str, *given: object, level: int = logging.WARNING, name: str = "aiokafka.consumer.group_coordinator"
) -> bool:
    return without_rebalances(logging.LogRecord(name, level, "", 0, text, given, None))


def test_aiokafkas_warnings_about_an_ordinary_rebalance_are_left_out() -> None:
    beat = "Heartbeat failed for group %s because it is rebalancing"
    refused = "OffsetCommit failed for group %s due to group error (%s), will rejoin"
    assert not line(beat, "credit")
    assert not line(refused, "credit", errors.IllegalGenerationError("credit"), level=logging.ERROR)
    assert line(refused, "credit", errors.UnknownMemberIdError("credit"), level=logging.ERROR)
    assert line("Heartbeat failed: %r", "x", level=logging.ERROR)
    assert line(beat, "credit", name="shop")


def test_the_texts_of_those_warnings_are_aiokafkas() -> None:
    """A new version may write them otherwise."""
    import inspect

    from aiokafka.consumer import group_coordinator  # type: ignore[import-untyped]

    source = "".join(inspect.getsource(group_coordinator).split())
    for text in ("Heartbeat failed for group %s because it is rebalancing", "error (%s), will rejoin"):
        assert "".join(text.split()) in source.replace('""', "")
