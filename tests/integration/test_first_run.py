"""The start of a handler's first run: decided once for all partitions of a topic, whatever crashes or is added."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from alembic import command
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions
from sqlalchemy import text
from sqlalchemy.orm import Session

from consumerkit import Context, Handler, Json, header
from consumerkit.engine.partitions.partition_store import PartitionStore, Wanted
from consumerkit.errors import Unavailable
from consumerkit.events import PartitionStopped, PartitionTaken, PositionDiffers, Trouble
from consumerkit.message import TopicPartition
from consumerkit.operations import positions
from consumerkit.storage import schema
from consumerkit.storage.tables import DEFAULT_TABLES
from consumerkit.transports.base import Survey
from consumerkit.transports.kafka import Client
from consumerkit.transports.memory.group import MemoryConsumer
from tests.crash.model import Payment
from tests.integration.kafka_stage import KafkaStage, effect, payment
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, line, opened
from tests.integration.stage import Run
from tests.services import PostgresServer
from tests.services.databases import Databases

START_FROM = ("earliest", "latest")


@pytest.fixture
async def place(each_url: str) -> AsyncIterator[MemoryStage]:
    """A topic of four partitions, on each database."""
    async with opened(each_url) as made:
        yield made


@pytest.fixture
async def unmade(tmp_path: Path, postgres: PostgresServer, databases: Databases) -> AsyncIterator[MemoryStage]:
    """A database without tables."""
    with databases.lend() as database:
        made = MemoryStage(postgres.url(database))
        yield made
        await made.close()


class Both(Handler[bytes]):
    """Adds a line for each message of two topics."""

    name = "write"
    topics = (TOPIC, "more")
    message_id = header("id")
    start_from = "latest"

    async def handle(self, event: bytes, context: Context) -> None:
        context.session.add(line(context))


def _at(partition: int, topic: str = TOPIC) -> TopicPartition:
    return TopicPartition(topic, partition)


def _place(run: Run) -> positions.PositionStore:
    worker = run.worker
    return positions.PositionStore(
        database=worker.database, dialect=worker.dialect, tables=worker.tables, transport=worker.transport
    )


def _send(place: MemoryStage, numbers: Iterable[int], partitions: int = 4) -> None:
    for number in numbers:
        place.append(number, partition=number % partitions)


async def _ids(place: MemoryStage) -> Counter[int]:
    return Counter(int(one.message_id) for one in await place.lines())


async def _taken(run: Run, *partitions: int, topic: str = TOPIC) -> None:
    wanted = {_at(number, topic) for number in partitions}
    await run.until(lambda: wanted <= {one.partition for one in run.seen(PartitionTaken)}, f"{wanted} taken")


@contextmanager
def only(monkeypatch: pytest.MonkeyPatch, *taken: int) -> Iterator[list[TopicPartition]]:
    """Let workers take only these partitions over; yields the others that they came to."""
    acquire, kept = PartitionStore.acquire, list[TopicPartition]()

    async def taking(self: PartitionStore, wanted: Sequence[Wanted], *args: Any, **named: Any) -> Any:
        allowed = [one for one in wanted if one.partition.name.partition in taken]
        if len(allowed) < len(wanted):
            kept.extend(one.partition.name for one in wanted if one not in allowed)
            await asyncio.sleep(0.05)
        return await acquire(self, allowed, *args, **named) if allowed else {}

    with monkeypatch.context() as patch:
        patch.setattr(PartitionStore, "acquire", taking)
        yield kept
    assert kept, "no partition was kept back"


@pytest.mark.parametrize("start_from", START_FROM)
@pytest.mark.parametrize("adopted", [False, True])
async def test_a_death_between_two_take_overs_changes_nothing(
    place: MemoryStage, start_from: Any, adopted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _send(place, range(8))  # two in each partition
    if adopted:
        # Another consumer of the group has handled the first of each, but for partition 3.
        place.broker.group("write").offsets.update({_at(number): 1 for number in range(3)})
    with only(monkeypatch, 0) as kept:
        async with place.run(Write(start_from=start_from)) as first, place.run(Write(start_from=start_from)):
            await first.until(lambda: {1, 2, 3} <= {at.partition for at in kept}, "a worker dies before it takes more")
    _send(place, range(100, 108))
    handler = Write(start_from=start_from)
    async with place.run(handler) as first, place.run(Write(start_from=start_from)):
        await first.until(lambda: place.committed() == place.ends(), "all offsets")
    old = {"earliest": range(8), "latest": range(0)}[start_from]
    if adopted:
        old = [*range(4, 7), *([3, 7] if start_from == "earliest" else [])]  # type: ignore[assignment]
    assert await _ids(place) == Counter([*old, *range(100, 108)])


@pytest.mark.parametrize("start_from", START_FROM)
@pytest.mark.parametrize("running", [False, True])
async def test_a_partition_that_is_added_is_read_from_its_start(
    place: MemoryStage, start_from: Any, running: bool
) -> None:
    _send(place, range(8))
    async with place.run(Write(start_from=start_from)) as run:
        await _taken(run, 0, 1, 2, 3)
        _send(place, range(100, 104))
        await run.until(lambda: place.committed() == place.ends(), "all offsets")
        if running:
            place.broker.add_partitions(TOPIC, 6)
            for number in range(200, 210):
                place.append(number, partition=4 + number % 2)
            await place.broker.rebalance("write")
            await _taken(run, 4, 5)
            await run.until(lambda: place.committed() == place.ends(), "all offsets")
    if not running:
        place.broker.add_partitions(TOPIC, 6)
        for number in range(200, 210):
            place.append(number, partition=4 + number % 2)
        async with place.run(Write(start_from=start_from)) as run:
            await run.until(lambda: place.committed() == place.ends(), "all offsets")
    old = range(8) if start_from == "earliest" else range(0)
    assert await _ids(place) == Counter([*old, *range(100, 104), *range(200, 210)])


async def test_two_workers_that_decide_at_once_come_to_one_decision(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has asked the broker before the other has written; between their questions, messages come."""
    _send(place, range(4))
    survey, asked, both = MemoryConsumer.survey, list[Survey](), asyncio.Event()

    async def slow(self: MemoryConsumer, topic: str) -> Survey:
        asked.append(await survey(self, topic))
        _send(place, range(100 * len(asked), 100 * len(asked) + 4))
        if len(asked) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 30)
        return asked[-1] if len(asked) > 2 else asked[len(asked) - 1]

    monkeypatch.setattr(MemoryConsumer, "survey", slow)
    async with place.run(Write(start_from="latest")) as first, place.run(Write(start_from="latest")):
        await first.until(lambda: place.committed() == place.ends(), "all offsets")
    assert len(asked) == 2
    seen = await _ids(place)
    # What the first has seen counts or what the second has, and in all partitions the same.
    assert seen in (Counter([*range(100, 104), *range(200, 204)]), Counter(range(200, 204)))


@pytest.mark.parametrize("start_from", START_FROM)
async def test_a_partition_without_a_leader_when_it_is_decided_loses_nothing_and_holds_up_no_other(
    place: MemoryStage, start_from: Any
) -> None:
    _send(place, range(8))
    with place.broker.leaderless(TOPIC, 2):
        async with place.run(Write(start_from=start_from)) as run:
            await _taken(run, 0, 1, 3)
            for number in (100, 101, 103):
                place.append(number, partition=number % 4)
            await run.until(
                lambda: all(place.committed().get(_at(number)) == 3 for number in (0, 1, 3)), "the others go on"
            )
    place.append(102, partition=2)  # before anybody has noticed that it has a leader again
    async with place.run(Write(start_from=start_from)) as run:
        await run.until(lambda: place.committed() == place.ends(), "all offsets")
    old = range(8) if start_from == "earliest" else range(0)
    assert await _ids(place) == Counter([*old, *range(100, 104)])


async def test_a_partition_that_loses_its_leader_before_it_is_taken_holds_up_no_other_and_is_told_of(
    place: MemoryStage,
) -> None:
    _send(place, range(8))
    place.broker.group("write").offsets[_at(0)] = 1
    told: list[Trouble] = []
    async with place.run(Write()) as run:
        await _taken(run, 0, 1, 2, 3)
        for partition in run.worker._parts.engines[0].partitions:  # what a failover of the database brings
            run.worker._parts.engines[0].partitions.in_doubt(
                {partition.name: partition.fencing_token or b""}, RuntimeError("lost")
            )
        with place.broker.leaderless(TOPIC, 1):
            await run.until(lambda: len(run.seen(PartitionTaken)) >= 7, "the others")
            await run.until(lambda: bool(run.seen(Trouble)), "what is wrong")
            told = run.seen(Trouble)
        await run.until(lambda: len(run.seen(PartitionTaken)) == 8, "all")
    assert any("t[1]" in one.error and "leader" in one.error for one in told)


async def test_a_topic_added_to_a_handler_has_a_first_run_of_its_own(place: MemoryStage) -> None:
    _send(place, range(4))
    async with place.run(Write(start_from="latest")) as run:
        await _taken(run, 0, 1, 2, 3)
    place.broker.create_topic("more", 2)
    for number in range(200, 204):
        place.broker.append("more", b"v", headers=(("id", b"%d" % number),), partition=number % 2)
    _send(place, range(100, 104))
    async with place.run(Both()) as run:
        run.worker.adopt(["write"])
        await _taken(run, 0, 1, topic="more")
        for number in range(300, 304):
            place.broker.append("more", b"v", headers=(("id", b"%d" % number),), partition=number % 2)
        await place.until_written(run, 8)
        await run.until(lambda: place.committed().get(_at(0, "more")) == 4, "all offsets")
    assert await _ids(place) == Counter([*range(100, 104), *range(300, 304)])


async def test_a_topic_taken_out_and_put_back_goes_on_where_it_stood(place: MemoryStage) -> None:
    place.broker.create_topic("more", 1)
    async with place.run(Both()) as run:
        await _taken(run, 0, 1, 2, 3)
        await _taken(run, 0, topic="more")
    async with place.run(Write(start_from="latest")) as run:
        run.worker.adopt(["write"])
        await _taken(run, 0, 1, 2, 3)
    place.broker.add_partitions("more", 2)
    for number in range(4):
        place.broker.append("more", b"v", headers=(("id", b"%d" % number),), partition=number % 2)
    async with place.run(Both()) as run:
        run.worker.adopt(["write"])
        await place.until_written(run, 4)
    assert await _ids(place) == Counter(range(4))


async def test_a_topic_made_anew_is_read_whole_once_a_person_says_so(place: MemoryStage) -> None:
    """Whatever is in it came after the handler's first run, so that `latest` passes over nothing."""
    _send(place, range(8))
    async with place.run(Write(start_from="latest")) as run:
        await _taken(run, 0, 1, 2, 3)
    del place.broker.logs.topics[TOPIC]
    place.broker.group("write").offsets.clear()
    place.broker.group("write").notes.clear()
    place.broker.create_topic(TOPIC, 6)
    for number in range(100, 112):
        place.append(number, partition=number % 6)
    async with place.run(Write(start_from="latest")) as run:
        await run.until(lambda: len(run.seen(PartitionStopped)) == 4, "the stop of those it had begun with")
        await _taken(run, 4, 5)
        await positions.skip(_place(run), "write", TOPIC, "start", partitions=range(4))
        await run.until(lambda: place.committed() == place.ends(), "all offsets")
    assert await _ids(place) == Counter(range(100, 112))


async def test_what_an_older_release_has_begun_is_not_decided_again(unmade: MemoryStage) -> None:
    """What it has marked goes on there; what it had not found counts as added since, and is read from its start."""
    place = unmade
    topic_id = place.broker.logs.topics[TOPIC].id

    def begin(session: Session) -> None:
        config = schema._config(DEFAULT_TABLES)
        config.attributes |= {"connection": session.connection(), "on_version_apply": lambda **_: None}
        command.upgrade(config, "0005")
        topics = json.dumps([TOPIC])
        insert = (
            "INSERT INTO consumerkit_consumers (id, name, group_name, topics) VALUES (1, 'write', 'write', :topics)"
        )
        session.execute(text(insert), {"topics": topics})
        insert = (
            "INSERT INTO consumerkit_partition_progress (consumer, topic, partition, owner, topic_id, start, mark) "
            "VALUES (1, 't', :partition, :owner, :topic_id, :start, :mark)"
        )
        for partition, mark in ((0, 2), (1, 1), (2, None)):
            start = None if mark is None else 1
            which = topic_id if mark is not None else None
            row = {"partition": partition, "owner": b"o" * 16, "topic_id": which, "start": start, "mark": mark}
            session.execute(text(insert), row)

    _send(place, range(12))  # three in each partition
    await place.database.run(begin)
    await place.database.run(schema.apply)
    await place.create_tables()
    async with place.run(Write(start_from="latest")) as run:
        await run.until(lambda: place.committed() == place.ends(), "all offsets")
    assert await _ids(place) == Counter([8, 5, 9, 2, 6, 10, 3, 7, 11])


@pytest.mark.parametrize("start_from", START_FROM)
async def test_rows_without_a_record_go_on_at_their_marks(place: MemoryStage, start_from: Any) -> None:
    """As a database does whose record was lost, or that an older release wrote to after the upgrade."""
    _send(place, range(8))
    async with place.run(Write(start_from="earliest")) as run:
        await run.until(lambda: place.committed() == place.ends(), "all offsets")
    await place.database.run(lambda session: session.execute(text("DELETE FROM consumerkit_first_runs")))
    _send(place, range(100, 108))
    async with place.run(Write(start_from=start_from)) as run:
        await run.until(lambda: place.committed() == place.ends(), "all offsets")
    assert await _ids(place) == Counter([*range(8), *range(100, 108)])


@pytest.mark.parametrize("start_from", START_FROM)
async def test_a_database_that_lost_everything_begins_where_kafka_has_noted_it(
    place: MemoryStage, start_from: Any
) -> None:
    """A partition that was added since begins at its start: the commits' texts show that the first run is decided."""
    _send(place, range(8))
    async with place.run(Write(start_from="latest")) as run:
        await _taken(run, 0, 1, 2, 3)
        _send(place, range(100, 108))
        await run.until(lambda: place.committed() == place.ends(), "all offsets")
    place.broker.add_partitions(TOPIC, 5)
    place.append(200, partition=4)

    def lose(session: Any) -> None:
        for table in ("first_runs", "partition_progress", "processed_messages"):
            session.execute(text(f"DELETE FROM consumerkit_{table}"))
        session.execute(text("DELETE FROM lines"))

    await place.database.run(lose)
    async with place.run(Write(start_from=start_from)) as run:
        await run.until(lambda: place.committed() == place.ends(), "all offsets")
        assert {one.lost for one in run.seen(PositionDiffers)} == {True}
    assert await _ids(place) == Counter([*range(100, 108), 200])


async def test_a_position_below_the_log_at_which_a_first_run_should_begin_stops_its_partition(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with only(monkeypatch, 0) as kept:
        async with place.run(Write(start_from="latest")) as run:
            await run.until(lambda: len(kept) > 3, "a death before the others are taken")
    _send(place, range(8))
    place.broker.delete_before(TOPIC, 1, 1)
    async with place.run(Write(start_from="latest")) as run:
        await run.until(lambda: bool(run.seen(PartitionStopped)), "the stop")
        (stopped,) = run.seen(PartitionStopped)
        assert "t[1]" in stopped.error
        assert "deleted unread" in stopped.error
        await place.until_written(run, 6)


async def test_what_retention_takes_before_a_handler_has_begun_to_read_stops_nothing(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _send(place, range(8))
    with only(monkeypatch, 0) as kept:
        async with place.run(Write()) as run:
            await run.until(lambda: len(kept) > 3, "a death before the others are taken")
    place.broker.delete_before(TOPIC, 1, 1)
    async with place.run(Write()) as run:
        await run.until(lambda: place.committed() == place.ends(), "all offsets")
        assert not run.seen(PartitionStopped)
    assert await _ids(place) == Counter(set(range(8)) - {1})


async def test_a_skip_before_the_first_run_decides_for_its_partition_alone(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _send(place, range(8))

    async def silent(*_: Any) -> Survey:
        raise Unavailable("the broker does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryConsumer, "survey", silent)
        async with place.run(Write(start_from="latest")) as run:
            await run.until(lambda: bool(run.seen(Trouble)), "the trouble")
            await positions.skip(_place(run), "write", TOPIC, 1, partitions=[2])
    async with place.run(Write(start_from="latest")) as run:
        await _taken(run, 0, 1, 2, 3)
        await run.until(lambda: place.committed() == place.ends(), "all offsets")
    assert await _ids(place) == Counter([6])


# On a real broker, with each client.


class Apply(Handler[Payment]):
    """Adds an effect for each payment."""

    codec = Json()
    message_id = header("message-id")
    start_from = "latest"

    def __init__(self, stage: KafkaStage) -> None:
        self.name = stage.topic
        self.topic = stage.topic

    async def handle(self, event: Payment, context: Context) -> None:
        context.session.add(effect(event, context))


def _pay(stage: KafkaStage, numbers: Iterable[int], partitions: int = 2) -> None:
    stage.send([payment(number, account=f"a-{number}", partition=number % partitions) for number in numbers])


def _add_partitions(stage: KafkaStage, number: int) -> None:
    admin = AdminClient({"bootstrap.servers": stage.kafka.bootstrap})
    for answer in admin.create_partitions([NewPartitions(stage.topic, number)], operation_timeout=30).values():
        answer.result(30)


@pytest.mark.parametrize("transport", get_args(Client))
async def test_on_kafka_nothing_old_runs_and_nothing_is_passed_over(
    stage: KafkaStage, transport: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pay(stage, range(6))
    with only(monkeypatch, 0) as kept:
        async with stage.run(Apply(stage), transport=transport) as run:
            await run.until(lambda: len(kept) > 3, "a death before the other is taken", within=90)
    _pay(stage, range(100, 106))
    _add_partitions(stage, 3)
    await asyncio.to_thread(_pay, stage, range(200, 206), 3)
    async with stage.run(Apply(stage), transport=transport) as run:
        await run.until(lambda: stage.count_effects() >= 12, "all effects", within=90)
        await _taken(run, 0, 1, 2, topic=stage.topic)
    found = Counter(row["message_id"] for row in stage.effects())
    assert found == Counter(f"p-{number}" for number in [*range(100, 106), *range(200, 206)])
