"""A log line about a message, and an observer's event, have the message's trace and its fields."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import StatusCode
from sqlalchemy.orm import Session

from consumerkit import (
    BatchContext,
    BatchHandler,
    Context,
    DeadLetter,
    DeadLetterContext,
    DeadLetteredMessage,
    Defer,
    Effects,
    Handler,
    IdempotencyKey,
    Message,
    Received,
    Reject,
    Retry,
    fixed,
    header,
    step,
)
from consumerkit.events import (
    AttemptFailed,
    Event,
    GroupRolledBack,
    MessageDeadLettered,
    OutboxHeldBack,
    StepAwaited,
    StepUndoFailed,
    StepUndone,
)
from consumerkit.observability import JsonFormatter, MessageFields, conventions, message_fields
from consumerkit.outcome import Reason
from tests.integration.memory_stage import TOPIC, MemoryStage, Write
from tests.integration.stage import Run
from tests.integration.step_stage import LETTERS, PlainRefunding, Provider, Refunding, rows
from tests.spans import Exporter, Kept

Line = dict[str, Any]
SENDER = "00f067aa0ba902b7"


def trace(number: int) -> str:
    return f"{0xABC0000 + number:032x}"


def sent(
    stage: MemoryStage, number: int, value: bytes = b"1", *, id: bytes | None = b"", of: int | None = None
) -> Message:
    """A message in a trace of its own, by its sender."""
    name = b"%d" % number if id == b"" else id
    headers = (("traceparent", f"00-{trace(number if of is None else of)}-{SENDER}-01".encode()),)
    own = headers if name is None else (("id", name), *headers)
    return stage.broker.append(TOPIC, value, key=b"k%d" % number, headers=own, partition=0)


class Lines(logging.Handler):
    """Keeps our lines as JSON, each with what plain logging's filter adds as `plain`."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Line] = []

    def emit(self, record: logging.LogRecord) -> None:
        MessageFields().filter(record)
        told = json.loads(JsonFormatter().format(record))
        told["plain"] = {name: value for name, value in vars(record).items() if "." in name or name.endswith("_id")}
        self.kept.append(told)

    def of(self, kind: type[Event]) -> list[Line]:
        return [line for line in self.kept if line.get("event.name") == f"consumerkit.{kind.__name__}"]


@contextmanager
def kept_lines() -> Iterator[Lines]:
    logger, lines = logging.getLogger("consumerkit"), Lines()
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)


@pytest.fixture
def lines() -> Iterator[Lines]:
    with kept_lines() as lines:
        yield lines


class Observed:
    """An observer that keeps what it can find out about a message while it is called."""

    def __init__(self) -> None:
        self.kept: list[tuple[Event, dict[str, Any]]] = []

    def __call__(self, event: Event) -> None:
        self.kept.append((event, message_fields()))

    def of(self, kind: type[Event]) -> list[dict[str, Any]]:
        return [found for event, found in self.kept if type(event) is kind]


@pytest.fixture(params=["sqlite", "postgresql"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryStage]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/traced.sqlite"
    else:
        url = request.getfixturevalue("postgres").url(request.getfixturevalue("database"))
    made = MemoryStage(url)
    made.broker.create_topic("t.dlq", 1)
    await made.create_tables()
    yield made
    await made.close()


class Picky(Write):
    """Takes numbers; fails, rejects or defers as the value says."""

    name = "picky"
    concurrency = 1
    dead_letter = DeadLetter("t.dlq")
    retry = Retry(attempts=2, in_place=1, wait=fixed(0.05))

    def __init__(self) -> None:
        super().__init__()
        self.deferred = False

    async def handle(self, event: bytes, context: Context) -> None:
        if event == b"fails":
            raise ValueError("as asked")
        if event == b"rejected":
            raise Reject("as asked")
        if event == b"deferred" and not self.deferred:
            self.deferred = True
            raise Defer(0.05)
        await super().handle(event, context)


def spans_of(exporter: Exporter, number: int) -> dict[str, Kept]:
    return {
        f"{span.get_span_context().span_id:016x}": span
        for span in exporter.named(f"process {TOPIC}")
        if f"{span.trace:032x}" == trace(number)
    }


async def dead(run: Run, count: int) -> None:
    await run.until(lambda: len(run.seen(MessageDeadLettered)) >= count, f"{count} dead letters")


async def test_each_line_about_a_message_that_fails_has_its_span(stage: MemoryStage, lines: Lines) -> None:
    exporter, observed = Exporter(), Observed()
    failed, rejected = sent(stage, 1, b"fails"), sent(stage, 2, b"rejected")
    sent(stage, 3, b"deferred")
    unnamed = sent(stage, 4, b"1", id=None)
    sent(stage, 5, b"one")
    conflicting = sent(stage, 6, b"another", id=b"5")
    async with stage.run(Picky(), tracing=exporter, observers=[observed]) as run:
        await dead(run, 4)
        await stage.until_written(run, 2)
    attempts = lines.of(AttemptFailed)
    of_failed = spans_of(exporter, 1)
    tried = [line for line in attempts if line["messaging.message.id"] == "1"]
    assert [line["trace_id"] for line in tried] == [trace(1)] * 2
    # Of several runs of an attempt, the last is the one that counts.
    for line in tried:
        span = of_failed[line["span_id"]]
        assert span.attributes[conventions.ATTEMPT] == line["consumerkit.attempt"]
        assert span.status is StatusCode.ERROR
    letters = {line["consumerkit.reason"]: line for line in lines.of(MessageDeadLettered)}
    for reason, number, message in (
        (Reason.EXHAUSTED, 1, failed),
        (Reason.REJECTED, 2, rejected),
        (Reason.UNIDENTIFIED, 4, unnamed),
        (Reason.CONFLICT, 6, conflicting),
    ):
        line = letters[reason.value]
        assert (line["trace_id"], line["kafka.offset"]) == (trace(number), message.offset), reason
        span = spans_of(exporter, number)[line["span_id"]]
        assert (span.status, span.ended) == (StatusCode.ERROR, 1), reason
        # Plain logging and structlog find the same message.
        assert (
            line["plain"].items()
            >= {
                "trace_id": trace(number),
                "span_id": line["span_id"],
                "kafka.offset": message.offset,
                "messaging.destination.name": TOPIC,
                "consumerkit.handler": "picky",
            }.items()
        ), reason
    assert exporter.named("process t")[-1].attributes.keys() >= {conventions.HANDLER, conventions.OFFSET}
    unread = next(iter(spans_of(exporter, 4).values()))
    assert unread.attributes[conventions.ERROR_TYPE] == "unidentified"
    assert unread.parent.span_id == int(SENDER, 16)
    # An observer has the same while it is called, and nothing stays behind.
    assert [found["trace_id"] for found in observed.of(MessageDeadLettered)] == [
        line["trace_id"] for line in lines.of(MessageDeadLettered)
    ]
    assert message_fields() == {}


async def test_a_batch_that_is_rolled_back_has_its_own_span(stage: MemoryStage, lines: Lines) -> None:
    exporter = Exporter()
    for number in range(3):
        sent(stage, number, b"fails" if number == 2 else b"1")
    async with stage.run(Picky(), tracing=exporter) as run:
        await dead(run, 1)
        await stage.until_written(run, 2)
    batches = {f"{span.get_span_context().span_id:016x}": span for span in exporter.named("batch picky")}
    rolled_back = lines.of(GroupRolledBack)
    assert rolled_back
    assert {batches[line["span_id"]].status for line in rolled_back} == {StatusCode.ERROR}


async def test_a_batch_handlers_line_has_the_batchs_span(stage: MemoryStage, lines: Lines) -> None:
    class Whole(BatchHandler[bytes]):
        name = "whole"
        topic = TOPIC
        message_id = header("id")
        retry = Retry(attempts=1)

        async def handle_batch(self, events: Any, context: BatchContext[Any]) -> None:
            received: list[Received[bytes]] = list(events)
            raise ValueError(f"as asked, for {len(received)}")

    exporter = Exporter()
    sent(stage, 1)
    async with stage.run(Whole(), tracing=exporter) as run:
        await dead(run, 1)
    batches = {f"{span.get_span_context().span_id:016x}": span for span in exporter.named("batch whole")}
    (line,) = lines.of(MessageDeadLettered)
    assert [f"{link.trace_id:032x}" for link in batches[line["span_id"]].links] == [trace(1)]


async def test_two_handlers_of_a_topic_have_their_own_spans(stage: MemoryStage, lines: Lines) -> None:
    class First(Picky):
        name = "first"

    class Second(Picky):
        name = "second"

    exporter = Exporter()
    sent(stage, 1, b"fails")
    async with stage.run(First(), Second(), tracing=exporter) as run:
        await dead(run, 2)
    for line in lines.of(AttemptFailed):
        span = spans_of(exporter, 1)[line["span_id"]]
        assert span.attributes[conventions.HANDLER] == line["consumerkit.handler"]
    by_handler = {
        span.get_span_context().span_id: span.attributes[conventions.HANDLER] for span in exporter.named("process t")
    }
    for span in exporter.named("process t"):
        links = [by_handler[link.span_id] for link in span.links if link.span_id in by_handler]
        assert set(links) <= {span.attributes[conventions.HANDLER]}


async def test_a_step_that_fails_in_prepare_has_a_span_and_waits_in_its_trace(stage: MemoryStage, lines: Lines) -> None:
    class Calls(Write):
        retry = Retry(attempts=1)

        @step
        async def call(self, key: IdempotencyKey) -> str:
            raise ValueError("as asked")

        async def prepare(self, event: bytes, effects: Effects) -> None:
            await effects.run(self.call)

    exporter = Exporter()
    sent(stage, 1)
    async with stage.run(Calls(), tracing=exporter) as run:
        await dead(run, 1)
    (line,) = lines.of(MessageDeadLettered)
    assert line["trace_id"] == trace(1)
    assert spans_of(exporter, 1)[line["span_id"]].attributes[conventions.ERROR_TYPE] == "ValueError"


async def test_the_lines_of_undos_and_their_calls_are_in_the_messages_trace(
    stage: MemoryStage, lines: Lines, tmp_path: Path
) -> None:
    kind = PlainRefunding if stage.url.startswith("sqlite") else Refunding
    seen: list[dict[str, Any]] = []
    again = [True]

    def fails(what: str) -> None:
        seen.append(message_fields())
        if what == "refund" and again.pop():
            again.append(False)
            raise ValueError("as asked")

    def rejects(event: bytes) -> None:
        raise Reject("as asked")

    handler = kind(Provider(tmp_path / "charges"), in_handle=rejects)
    vars(handler)["undo_fails"] = fails
    message = sent(stage, 1)
    async with stage.run(handler, tracing=Exporter()) as run:
        await run.until(lambda: len(run.seen(StepUndone)) == 2, "both undos")
    told = [*lines.of(StepUndoFailed), *lines.of(StepUndone)]
    assert len(told) == 3
    for found in (*told, *seen):
        assert (found["trace_id"], found["kafka.offset"]) == (trace(1), message.offset)
        assert (found["messaging.message.id"], found["consumerkit.handler"]) == ("1", "charge")
    assert len(await rows(stage, LETTERS)) == 1


@pytest.mark.parametrize("plain", [False, True])
async def test_on_dead_letter_and_what_it_publishes_are_in_the_messages_trace(stage: MemoryStage, plain: bool) -> None:
    seen: list[dict[str, Any]] = []

    class Telling(Picky):
        async def on_dead_letter(self, letter: DeadLetteredMessage, context: DeadLetterContext) -> None:
            seen.append(message_fields())
            context.publish("told", value=b"1")

    class PlainTelling(Handler[bytes]):
        name, topic, message_id, retry = "picky", TOPIC, header("id"), Retry(attempts=1)

        def handle(self, event: bytes, context: Context[Session]) -> None:
            raise Reject("as asked")

        def on_dead_letter(self, letter: DeadLetteredMessage, context: DeadLetterContext[Session]) -> None:
            seen.append(message_fields())
            context.publish("told", value=b"1")

    stage.broker.create_topic("told", 1)
    message = sent(stage, 1, b"rejected")
    async with stage.run(PlainTelling() if plain else Telling(), tracing=Exporter()) as run:
        await run.until(lambda: bool(stage.broker.records("told")), "what the call published")
    (found,) = seen
    assert (found["trace_id"], found["kafka.offset"]) == (trace(1), message.offset)
    assert (found["messaging.message.id"], found["consumerkit.handler"]) == ("1", "picky")
    headers = dict(stage.broker.records("told")[0].headers)
    assert trace(1).encode() in (headers.get("traceparent") or b"")


async def test_a_step_that_another_worker_began_waits_in_the_messages_trace(
    stage: MemoryStage, lines: Lines, tmp_path: Path
) -> None:
    """The line comes from the code of the steps, which the handler's own code calls."""
    provider = Provider(tmp_path / "charges")
    hangs = asyncio.Event()

    class Slow(Write):
        @step(deadline=600.0)
        async def call(self, key: IdempotencyKey) -> str:
            provider.keys.append(key)
            await hangs.wait()
            return "done"

        async def prepare(self, event: bytes, effects: Effects) -> None:
            await effects.run(self.call)

    sent(stage, 1)
    async with stage.run(Slow(), grace=0.1) as run:
        await run.until(lambda: bool(provider.keys), "the first call")
    async with stage.run(Slow(), tracing=Exporter()) as run:
        await run.until(lambda: bool(run.seen(StepAwaited)), "the wait")
        hangs.set()
    assert {line["trace_id"] for line in lines.of(StepAwaited)} == {trace(1)}


async def test_what_the_relay_holds_back_is_in_its_writers_trace(stage: MemoryStage, lines: Lines) -> None:
    class Elsewhere(Write):
        async def handle(self, event: bytes, context: Context) -> None:
            context.publish("not-there-yet", value=b"1")

    sent(stage, 1)
    async with stage.run(Elsewhere(), tracing=Exporter()) as run:
        await run.until(lambda: bool(run.seen(OutboxHeldBack)), "the hold")
        stage.broker.create_topic("not-there-yet", 1)
    assert {line["trace_id"] for line in lines.of(OutboxHeldBack)} == {trace(1)}


async def test_without_tracing_a_line_has_the_messages_fields_only(stage: MemoryStage, lines: Lines) -> None:
    message = sent(stage, 1, b"fails")
    async with stage.run(Picky()) as run:
        await dead(run, 1)
    for line in (*lines.of(AttemptFailed), *lines.of(MessageDeadLettered)):
        assert line["plain"]["kafka.offset"] == message.offset
        assert not line.keys() & {"trace_id", "span_id"}
