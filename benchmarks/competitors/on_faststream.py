"""A FastStream subscriber on its confluent broker: a dedupe row and one commit per message, as its users write it."""

import asyncio
import logging
from typing import Annotated

# Comes with `make bench` only; types are checked without it too.
from faststream import AckPolicy, Header  # type: ignore[import-not-found,unused-ignore]
from faststream.confluent import KafkaBroker  # type: ignore[import-not-found,unused-ignore]
from sqlalchemy import text

from benchmarks.competitors import Course, bare
from benchmarks.meter import Meter
from benchmarks.shop import HANDLER, MESSAGE_ID_HEADER, Payment, record

_CLAIM = text("""
    INSERT INTO inbox (consumer, message_id) VALUES (:consumer, :message_id)
    ON CONFLICT (consumer, message_id) DO NOTHING RETURNING message_id
""")


async def run(course: Course, meter: Meter) -> None:
    """Consume until the meter has seen enough."""
    # Its line per message goes to a level that is not shown.
    broker = KafkaBroker(course.bootstrap, log_level=logging.DEBUG)
    sessions, done = bare.sessions(course), asyncio.Event()

    async def record_payment(payment: Payment, message_id: Annotated[str, Header(MESSAGE_ID_HEADER)]) -> None:
        async with sessions.begin() as session:
            claimed = await session.scalar(_CLAIM, {"consumer": HANDLER, "message_id": message_id})
            if claimed is not None:
                await record(payment, session)
        meter.committed(1)
        if meter.done:
            done.set()

    # What its decorator does; as a call, it needs no types of the decorator's.
    broker.subscriber(
        course.topic,
        group_id=course.group,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )(record_payment)

    async with broker:
        await broker.start()
        await done.wait()
