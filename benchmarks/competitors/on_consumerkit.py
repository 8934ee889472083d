"""consumerkit, as its users write it, on either transport."""

import asyncio

from benchmarks.competitors import Course
from benchmarks.meter import Meter
from benchmarks.shop import HANDLER, MESSAGE_ID_HEADER, Payment, record
from consumerkit import Context, Handler, Kafka, Worker, header
from consumerkit.events import Event, GroupCommitted
from consumerkit.transports.kafka import Client


class RecordPayment(Handler[Payment]):
    name = HANDLER
    message_id = header(MESSAGE_ID_HEADER)

    def __init__(self, course: Course) -> None:
        self.topic = course.topic
        self.group = course.group
        if course.lanes:
            self.concurrency = course.lanes

    async def handle(self, event: Payment, context: Context) -> None:
        await record(event, context.session)


async def run_confluent(course: Course, meter: Meter) -> None:
    """Consume until the meter has seen enough, on confluent-kafka."""
    await _run(course, meter, "confluent")


async def run_aiokafka(course: Course, meter: Meter) -> None:
    """Consume until the meter has seen enough, on aiokafka."""
    await _run(course, meter, "aiokafka")


async def _run(course: Course, meter: Meter, transport: Client) -> None:
    stopping = asyncio.Event()

    def observe(event: Event) -> None:
        if isinstance(event, GroupCommitted):
            meter.committed(event.processed)
            if meter.done:
                stopping.set()

    worker = Worker(
        database=course.database,
        kafka=Kafka(course.bootstrap, transport=transport),
        handlers=[RecordPayment(course)],
        observers=[observe],
    )
    await worker.run(stopping)
