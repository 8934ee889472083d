"""Makes answers of the servers late, so that a test that does not wait for what follows an answer fails.

A worker counts, announces and logs what it did after its COMMIT, and the relay after Kafka's answer. A test that has
seen the row or the record and looks for the announcement at once passes on a fast machine and fails on a busy one.
`make test-late` finds it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from time import sleep
from typing import Any

from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import await_only

from consumerkit.transports.aiokafka.consumer import AiokafkaConsumer
from consumerkit.transports.aiokafka.producer import AiokafkaProducer
from consumerkit.transports.confluent.consumer import ConfluentConsumer
from consumerkit.transports.confluent.producer import ConfluentProducer
from consumerkit.transports.memory.group import MemoryConsumer
from consumerkit.transports.memory.producer import IntakeProducer

PRODUCERS: tuple[type[Any], ...] = (ConfluentProducer, AiokafkaProducer, IntakeProducer)
CONSUMERS: tuple[type[Any], ...] = (ConfluentConsumer, AiokafkaConsumer, MemoryConsumer)


def answer_late(seconds: float) -> None:
    """Have a COMMIT, a send and a commit of offsets answered so much later than it is done, until the process ends."""
    DefaultDialect.do_commit = _late_commit(DefaultDialect.do_commit, seconds)  # type: ignore[method-assign]
    for producer in PRODUCERS:
        producer.send = _late(producer.send, seconds)
    for consumer in CONSUMERS:
        consumer.commit = _late(consumer.commit, seconds)


def _late_commit(
    commit: Callable[[DefaultDialect, Any], None], seconds: float
) -> Callable[[DefaultDialect, Any], None]:
    @functools.wraps(commit)
    def late(self: DefaultDialect, connection: Any) -> None:
        commit(self, connection)
        if self.is_async:
            await_only(asyncio.sleep(seconds))
        else:
            sleep(seconds)

    return late


def _late(method: Callable[..., Awaitable[Any]], seconds: float) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def late(*args: Any) -> Any:
        answer = await method(*args)
        await asyncio.sleep(seconds)
        return answer

    return late
