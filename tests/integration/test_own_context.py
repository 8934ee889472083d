"""Code for one message does not see what code for another message set in its context."""

import decimal
from collections.abc import AsyncIterator
from contextvars import ContextVar
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.orm import Session

from consumerkit import Context, Handler, Json, Message, Retry, fixed, header
from consumerkit.handlers.codecs import Codec
from tests.integration.memory_stage import MemoryStage, line, opened

NAME: ContextVar[str] = ContextVar("NAME", default="nothing")
AMOUNT = Decimal("1234567.89")
seen: list[tuple[str, str, str]] = []


def leave_traces(where: str) -> None:
    """Note what this code finds, then set what would be found by the next."""
    seen.append((where, NAME.get(), str(+AMOUNT)))
    NAME.set(where)
    decimal.getcontext().prec = 4


class Traces(Json):
    def decoder(self, event_type: Any) -> Any:
        decode = super().decoder(event_type)

        def traced(message: Message) -> Any:
            leave_traces("decode")
            return decode(message)

        return traced


def asks(_error: Exception) -> bool:
    leave_traces("on")
    return True


def looks(_result: object) -> bool:
    leave_traces("on_result")
    return False


class Declared:
    name = "write"
    topic = "t"
    message_id = header("id")
    codec: Codec = Traces()
    retry = Retry(attempts=3, wait=fixed(0), on=asks, on_result=looks)


class Coroutine(Declared, Handler[int]):
    async def prefetch(self, events: Any, session: Any) -> None:
        leave_traces("prefetch")

    async def session_setup(self, event: int, session: Any) -> None:
        leave_traces("session_setup")

    async def handle(self, event: int, context: Context) -> None:
        handled(context)
        await context.session.flush()
        assert NAME.get() == "handle"

    async def on_duplicate(self, event: int, result: Any, context: Context) -> None:
        leave_traces("on_duplicate")


class Plain(Declared, Handler[int]):
    def prefetch(self, events: Any, session: Any) -> None:
        leave_traces("prefetch")

    def session_setup(self, event: int, session: Any) -> None:
        leave_traces("session_setup")

    def handle(self, event: int, context: Context[Session]) -> None:
        handled(context)

    def on_duplicate(self, event: int, result: Any, context: Context[Session]) -> None:
        leave_traces("on_duplicate")


def handled(context: Context[Any]) -> None:
    leave_traces("handle")
    context.session.add(line(context))
    if context.message_id == "3" and context.attempt == 1:
        raise ValueError


@pytest.fixture
async def place(each_url: str) -> AsyncIterator[MemoryStage]:
    async with opened(each_url, partitions=1) as made:
        seen.clear()
        yield made


@pytest.mark.parametrize("handler", [Coroutine, Plain])
async def test_each_attempt_begins_in_the_context_that_the_worker_had(
    place: MemoryStage, handler: type[Coroutine | Plain]
) -> None:
    for number in (1, 2, 3, 4, 1):
        place.append(number, key=b"%d" % number, value=b"1")
    async with place.run(handler()) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is finished")
        await place.until_written(run, 4)
        await run.until(lambda: any(where == "on_duplicate" for where, *_ in seen), "the duplicate was announced")
    assert {where for where, *_ in seen} == {
        "decode",
        "prefetch",
        "session_setup",
        "handle",
        "on_duplicate",
        "on",
        "on_result",
    }
    # Of one message, the setup, the handler and what looks at its result share a context.
    follows = {"handle": "session_setup", "on_duplicate": "session_setup", "on_result": "handle"}
    assert {(where, name) for where, name, _ in seen} == {(one, follows.get(one, "nothing")) for one, *_ in seen}
    assert {amount for where, _, amount in seen if where not in follows} == {"1234567.89"}
