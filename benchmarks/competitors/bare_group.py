"""A hand-written loop that commits 500 at once: one statement claims them all, one flush inserts them all."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.competitors import BATCH, Course, bare
from benchmarks.meter import Meter
from benchmarks.shop import HANDLER, Payment, record

_CLAIM = text("""
    INSERT INTO inbox (consumer, message_id) SELECT :consumer, unnest(CAST(:message_ids AS text[]))
    ON CONFLICT (consumer, message_id) DO NOTHING RETURNING message_id
""")


async def run(course: Course, meter: Meter) -> None:
    """Consume until the meter has seen enough."""
    consumer, sessions = bare.consumer(course), bare.sessions(course)
    while not meter.done:
        # Blocking: nothing else lives in this event loop, and a thread would only make it slower.
        messages = consumer.consume(BATCH, bare.POLL_SECONDS)
        if not messages:
            continue
        # The first of each ID: a copy in the same batch is a duplicate as well.
        values: dict[str, bytes] = {}
        for message in messages:
            bare.checked(message)
            values.setdefault(bare.message_id(message), bare.value(message))
        async with sessions.begin() as session:
            await handle(session, values)
        meter.committed(len(messages))
        # Not waited for: whatever is delivered again ends at the ledger.
        consumer.commit(asynchronous=True)
    bare.leave(consumer)


async def handle(session: AsyncSession, values: dict[str, bytes]) -> None:
    """Claim the IDs, and handle the messages that are new."""
    # Sorted, or two processes would deadlock; handled in the order of the log.
    found = await session.scalars(_CLAIM, {"consumer": HANDLER, "message_ids": sorted(values)})
    claimed = set(found)
    for message_id, value in values.items():
        if message_id in claimed:
            await record(Payment.model_validate_json(value), session)
