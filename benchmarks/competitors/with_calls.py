"""Handlers that call another service for each message: hand-written loops without a memo, and consumerkit's steps."""

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy import text

from benchmarks.competitors import BATCH, Course, bare, bare_group
from benchmarks.competitors.on_consumerkit import RecordPayment, run_handler
from benchmarks.meter import Meter
from benchmarks.shop import HANDLER, Payment, record
from consumerkit import Context, Effects, IdempotencyKey, step

CALL_SECONDS = 0.05
_KNOWN = text("SELECT message_id FROM inbox WHERE consumer = :consumer AND message_id = ANY(:message_ids)")


async def call() -> str:
    """Call the other service: wait, and compute nothing."""
    await asyncio.sleep(CALL_SECONDS)
    return "ch_1"


async def run_one_by_one(course: Course, meter: Meter) -> None:
    """Take one message at a time: call, then claim, handle and commit."""
    consumer, sessions = bare.consumer(course), bare.sessions(course)
    while not meter.done:
        message = consumer.poll(bare.POLL_SECONDS)
        if message is None:
            continue
        bare.checked(message)
        await call()
        async with sessions.begin() as session:
            await bare_group.handle(session, {bare.message_id(message): bare.value(message)})
        meter.committed(1)
        consumer.commit(message=message, asynchronous=True)
    bare.leave(consumer)


async def run_gather(course: Course, meter: Meter) -> None:
    """Take 500 messages at a time: `asyncio.gather` calls for all unknown ones, then one transaction for all."""
    consumer, sessions = bare.consumer(course), bare.sessions(course)
    while not meter.done:
        messages = consumer.consume(BATCH, bare.POLL_SECONDS)
        if not messages:
            continue
        values = {bare.message_id(bare.checked(message)): bare.value(message) for message in messages}
        async with sessions.begin() as session:
            known = set(await session.scalars(_KNOWN, {"consumer": HANDLER, "message_ids": list(values)}))
        await asyncio.gather(*(call() for one in values if one not in known))
        async with sessions.begin() as session:
            await bare_group.handle(session, values)
        meter.committed(len(messages))
        consumer.commit(asynchronous=True)
    bare.leave(consumer)


class Paying(RecordPayment):
    """Calls in a step, whose result `handle` reads."""

    @step
    async def charge(self, key: IdempotencyKey, payment_id: str) -> str:
        return await call()

    async def prepare(self, event: Payment, effects: Effects) -> None:
        await effects.run(self.charge, event.payment_id)

    async def handle(self, event: Payment, context: Context) -> None:
        assert context.done(self.charge) == "ch_1"
        await record(event, context.session)


class PayingAtOnce(Paying):
    """The same; all calls of a batch may be under way at once, as in `run_gather`."""

    step_concurrency = BATCH


def _runs(handler: Callable[[Course], Any]) -> Callable[[Course, Meter], Any]:
    async def run(course: Course, meter: Meter) -> None:
        await run_handler(handler(course), course, meter, "confluent")

    return run


run_steps = _runs(Paying)
run_steps_at_once = _runs(PayingAtOnce)
run_without_steps = _runs(RecordPayment)
