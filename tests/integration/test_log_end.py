"""A log that ends without a message is read to its end: no lag remains, and retention continues."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, get_args

import confluent_kafka
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from sqlalchemy import text

from consumerkit import Context, Handler, Json, header
from consumerkit.events import PartitionStopped, PartitionTaken
from consumerkit.message import TopicPartition
from consumerkit.transports.kafka import Client
from tests.crash.model import Payment
from tests.integration.kafka_stage import KafkaStage, effect, payment
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, opened

AT = TopicPartition(TOPIC, 0)


@pytest.fixture
async def place(each_url: str) -> AsyncIterator[MemoryStage]:
    """A topic of one partition, on each database."""
    async with opened(each_url, partitions=1) as made:
        yield made


@pytest.mark.parametrize("found", ["running", "starting"])
async def test_control_records_at_the_end_leave_no_lag_and_stop_nothing(place: MemoryStage, found: str) -> None:
    for number in range(5):
        place.append(number)
    if found == "starting":
        place.broker.append_control_records(TOPIC, 0, 3)
    async with place.run(Write()) as run:
        await place.until_written(run, 5)
        if found == "running":
            await run.until(lambda: place.committed() == {AT: 5}, "the messages")
            place.broker.append_control_records(TOPIC, 0, 3)
        await run.until(lambda: place.committed() == {AT: 8}, "the end of the log")
    [row] = await place.database.run(
        lambda session: session.execute(text("SELECT mark, settled_at FROM consumerkit_partition_progress")).all()
    )
    assert row.mark == 8
    place.broker.delete_before(TOPIC, 0, 8)
    async with place.run(Write()) as run:
        await run.until(lambda: bool(run.seen(PartitionTaken)), "the take-over")
        place.append(5)
        await place.until_written(run, 6)
        assert not run.seen(PartitionStopped)


async def test_what_is_passed_over_never_passes_what_is_unfinished(place: MemoryStage) -> None:
    gate = asyncio.Event()

    async def wait(_: Context[Any]) -> None:
        await gate.wait()

    place.append(0)
    place.broker.append_control_records(TOPIC, 0, 3)
    handler = Write(wait)
    async with place.run(handler) as run:
        await run.until(lambda: bool(handler.seen), "the message")
        await asyncio.sleep(1.0)
        assert place.committed() == {}
        gate.set()
        await run.until(lambda: place.committed() == {AT: 4}, "the end of the log")


class Apply(Handler[Payment]):
    """Adds an effect for each payment."""

    codec = Json()
    message_id = header("message-id")

    def __init__(self, stage: KafkaStage) -> None:
        self.name = self.topic = stage.topic

    async def handle(self, event: Payment, context: Context) -> None:
        context.session.add(effect(event, context))


def _transaction(stage: KafkaStage, numbers: range, *, commit: bool) -> None:
    name = f"{stage.topic}-{numbers.start}"
    producer = Producer({"bootstrap.servers": stage.kafka.bootstrap, "transactional.id": name, "log_level": 0})
    producer.init_transactions(60)
    producer.begin_transaction()
    for given in (payment(number) for number in numbers):
        producer.produce(stage.topic, given.value, given.key, 0, headers=list(given.all_headers))
    assert producer.flush(30) == 0
    (producer.commit_transaction if commit else producer.abort_transaction)(60)


def _delete_before(stage: KafkaStage, offset: int) -> None:
    admin = AdminClient({"bootstrap.servers": stage.kafka.bootstrap})
    at = confluent_kafka.TopicPartition(stage.topic, 0, offset)
    assert admin.delete_records([at])[at].result(30).low_watermark == offset


@pytest.mark.parametrize("transport", get_args(Client))
async def test_on_kafka_a_log_that_ends_in_markers_is_read_to_its_end(
    narrow_stage: KafkaStage, transport: Client
) -> None:
    stage = narrow_stage
    await asyncio.to_thread(_transaction, stage, range(5), commit=True)  # a marker at 5
    async with stage.run(Apply(stage), transport=transport) as run:
        await run.until(lambda: stage.committed(stage.topic) == {0: 6}, "the marker", within=90)
        await asyncio.to_thread(_transaction, stage, range(100, 103), commit=False)  # 6 to 8, a marker at 9
        await run.until(lambda: stage.committed(stage.topic) == {0: 10}, "what was aborted", within=90)
    await asyncio.to_thread(_delete_before, stage, 10)
    async with stage.run(Apply(stage), transport=transport) as run:
        await run.until(lambda: bool(run.seen(PartitionTaken)), "the take-over", within=90)
        await asyncio.to_thread(_transaction, stage, range(5, 7), commit=True)
        await run.until(lambda: stage.count_effects() == 7, "what comes later", within=90)
        assert not run.seen(PartitionStopped)
