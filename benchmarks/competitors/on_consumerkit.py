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
    await run_handler(RecordPayment(course), course, meter, "confluent")


async def run_aiokafka(course: Course, meter: Meter) -> None:
    """Consume until the meter has seen enough, on aiokafka."""
    await run_handler(RecordPayment(course), course, meter, "aiokafka")


async def run_handler(handler: RecordPayment, course: Course, meter: Meter, transport: Client) -> None:
    """Run a worker with one handler until the meter has seen enough."""
    stopping = asyncio.Event()

    def observe(event: Event) -> None:
        if isinstance(event, GroupCommitted):
            meter.committed(event.processed)
            if meter.done:
                stopping.set()

    worker = Worker(
        database=course.database,
        kafka=Kafka(course.bootstrap, transport=transport),
        handlers=[handler],
        observers=[observe],
    )
    await worker.run(stopping)
