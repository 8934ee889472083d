"""A hand-written loop: poll one, claim its ID, handle it, commit, commit its offset."""

from sqlalchemy import text

from benchmarks.competitors import Course, bare
from benchmarks.meter import Meter
from benchmarks.shop import HANDLER, Payment, record

_CLAIM = text("""
    INSERT INTO inbox (consumer, message_id) VALUES (:consumer, :message_id)
    ON CONFLICT (consumer, message_id) DO NOTHING RETURNING message_id
""")


async def run(course: Course, meter: Meter) -> None:
    """Consume until the meter has seen enough."""
    consumer, sessions = bare.consumer(course), bare.sessions(course)
    while not meter.done:
        # Blocking: nothing else lives in this event loop, and a thread would only make it slower.
        message = consumer.poll(bare.POLL_SECONDS)
        if message is None:
            continue
        bare.checked(message)
        async with sessions.begin() as session:
            claimed = await session.scalar(_CLAIM, {"consumer": HANDLER, "message_id": bare.message_id(message)})
            if claimed is not None:
                await record(Payment.model_validate_json(bare.value(message)), session)
        meter.committed(1)
        # Not waited for: whatever is delivered again ends at the ledger.
        consumer.commit(message=message, asynchronous=True)
    bare.leave(consumer)
