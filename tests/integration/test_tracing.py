"""Traces: from the header through the handler and the outbox, over parking, retries and a redrive."""

import json
import logging
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from sqlalchemy.orm import Session

from consumerkit import (
    BatchContext,
    BatchHandler,
    Context,
    DeadLetter,
    Effects,
    IdempotencyKey,
    Received,
    Retry,
    fixed,
    header,
    outbox,
    step,
)
from consumerkit.observability import JsonFormatter, MessageFields, add_message_fields, conventions, message_fields
from consumerkit.redrive import Selection, redrive
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, opened
from tests.spans import Exporter, Kept

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{SPAN}-01".encode())


@pytest.fixture(params=["sqlite", "postgresql"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryStage]:
    async with opened(fresh_url(request, tmp_path)) as made:
        made.broker.create_topic("out", 1)
        made.broker.create_topic("t.dlq", 4)
        yield made


class Traced(Write):
    """Publishes, and fails if the test says so."""

    dead_letter = DeadLetter("t.dlq")

    def __init__(self, failures: int = 0, **declared: Any) -> None:
        super().__init__(**declared)
        self.failures = failures
        self.current: list[Any] = []

    async def handle(self, event: bytes, context: Context) -> None:
        self.current.append(get_current_span())
        context.publish("out", key=b"k", value=b"v")
        if self.failures:
            self.failures -= 1
            raise ValueError(f"secret of {event!r}")
        await super().handle(event, context)


def send(stage: MemoryStage, number: int, *more: tuple[str, bytes]) -> None:
    stage.broker.append(TOPIC, b"v", key=b"k%d" % number, headers=(("id", b"%d" % number), *more))


def carried(stage: MemoryStage) -> list[tuple[int, int]]:
    """The trace and the span in each message that was published."""
    found = []
    for message in stage.broker.records("out"):
        _, trace, span, _ = (message.header("traceparent") or b"").decode().split("-")
        found.append((int(trace, 16), int(span, 16)))
    return found


async def test_a_message_goes_on_in_the_trace_that_its_header_names(stage: MemoryStage) -> None:
    exporter, handler = Exporter(), Traced()
    send(stage, 1, TRACEPARENT)
    send(stage, 2)
    async with stage.run(handler, tracing=exporter) as run:
        await stage.until_written(run, 2)
        await run.until(lambda: len(stage.broker.records("out")) == 2, "the outbox")
    first, second = sorted(exporter.named("process t"), key=lambda span: span.attributes[conventions.MESSAGE_ID])
    assert handler.current == [span for span in exporter.spans if span.name == "process t"]
    assert f"{first.trace:032x}" == TRACE
    assert f"{first.parent.span_id:016x}" == SPAN
    assert not second.parent.is_valid
    batches = {span.get_span_context().span_id: span for span in exporter.named("batch write")}
    for span in (first, second):
        (link,) = span.links
        assert batches[link.span_id].attributes[conventions.BATCH_COUNT] >= 1
        assert (span.kind.name, span.status) == ("CONSUMER", StatusCode.UNSET)
    assert sorted(carried(stage)) == sorted((span.trace, span.get_span_context().span_id) for span in (first, second))
    message = next(one for one in stage.broker.records(TOPIC) if one.header("traceparent"))
    assert first.attributes == {
        "messaging.system.name": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "write",
        "messaging.destination.name": TOPIC,
        "messaging.destination.partition.id": str(message.partition),
        "messaging.message.id": "1",
        "kafka.offset": message.offset,
        "consumerkit.handler": "write",
        "consumerkit.attempt": 1,
        "consumerkit.outcome": "processed",
    }
    assert all(span.ended == 1 for span in exporter.spans)


async def test_a_retry_goes_on_in_the_trace_and_is_linked_to_the_attempt_before(stage: MemoryStage) -> None:
    """First in place, then parked, then dead, then redriven."""
    exporter = Exporter()
    handler = Traced(failures=3, retry=Retry(attempts=3, in_place=1, wait=fixed(0.05)))
    send(stage, 1, TRACEPARENT)
    async with stage.run(handler, tracing=exporter) as run:
        await run.until(lambda: bool(stage.broker.records("t.dlq")), "the dead letter")
        report = await redrive(stage.url, Selection(), by="test")
        assert report.redriven == 1
        await stage.until_written(run, 1)
        await run.until(lambda: bool(stage.broker.records("out")), "the outbox")
    attempts: list[Kept] = exporter.named("process t")
    assert {f"{span.trace:032x}" for span in attempts} == {TRACE}
    assert [span.attributes[conventions.ATTEMPT] for span in attempts][:3] == [1, 2, 3]
    assert [span.status for span in attempts] == [StatusCode.ERROR] * 3 + [StatusCode.UNSET]
    assert [span.attributes.get(conventions.ERROR_TYPE) for span in attempts] == ["ValueError"] * 3 + [None]
    for before, after in pairwise(attempts):
        assert before.get_span_context() in after.links
    assert stage.broker.records("t.dlq")[0].header("traceparent") == TRACEPARENT[1]
    assert carried(stage) == [(attempts[-1].trace, attempts[-1].get_span_context().span_id)]
    assert "secret" not in str([span.attributes for span in exporter.spans])
    assert all(span.ended == 1 for span in exporter.spans)


async def test_a_batch_handler_has_the_batchs_span(stage: MemoryStage) -> None:
    class Whole(BatchHandler[bytes]):
        name = "write"
        topic = TOPIC
        message_id = header("id")

        def __init__(self) -> None:
            self.current: list[Any] = []

        async def handle_batch(self, events: Sequence[Received[bytes]], context: BatchContext[Any]) -> None:
            self.current.append(get_current_span())
            context.publish("out", value=b"1")

    exporter, handler = Exporter(), Whole()
    send(stage, 1, TRACEPARENT)
    async with stage.run(handler, tracing=exporter) as run:
        await run.until(lambda: bool(stage.broker.records("out")), "the outbox")
    (span,) = handler.current
    assert span.name == "batch write"
    assert [f"{link.trace_id:032x}" for link in span.links] == [TRACE]
    assert carried(stage) == [(span.trace, span.get_span_context().span_id)]


async def test_what_a_request_publishes_goes_on_in_its_trace(stage: MemoryStage) -> None:
    """The whole way: request, outbox, handler, outbox."""
    exporter = Exporter()

    def publish(session: Session) -> None:
        outbox.publish(session, TOPIC, key="k", value=b"v", headers={"id": "1"})

    with exporter.get_tracer("web").start_as_current_span("POST /payments") as request:
        # `run` would have the session in a thread of its own, without the span.
        if stage.database.sync_sessions is not None:
            stage.database.run_blocking(publish)
        else:
            await stage.database.run(publish)
    async with stage.run(Traced(), tracing=exporter) as run:
        await stage.until_written(run, 1)
        await run.until(lambda: bool(stage.broker.records("out")), "the outbox")
    (handled,) = exporter.named("process t")
    assert handled.parent == request.get_span_context() or (
        handled.parent.span_id == request.get_span_context().span_id
    )
    assert {trace for trace, _ in carried(stage)} == {request.get_span_context().trace_id}


@pytest.fixture
def finished() -> tuple[TracerProvider, InMemorySpanExporter]:
    """OpenTelemetry's own SDK, which keeps what was finished."""
    provider, kept = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    return provider, kept


def named(kept: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in kept.get_finished_spans() if span.name == name]


async def test_what_the_relay_sends_has_a_span_below_that_of_the_handler(
    stage: MemoryStage, finished: tuple[TracerProvider, InMemorySpanExporter]
) -> None:
    provider, kept = finished
    send(stage, 1, TRACEPARENT)
    async with stage.run(Traced(), tracing=provider) as run:
        await run.until(lambda: bool(named(kept, "send out")), "the relay's span")
    (handled,), (sent,) = named(kept, "process t"), named(kept, "send out")
    assert handled.context is not None
    assert sent.context is not None
    assert f"{sent.context.trace_id:032x}" == TRACE
    assert sent.parent is not None
    assert sent.parent.span_id == handled.context.span_id
    assert (sent.kind, sent.status.status_code) == (SpanKind.PRODUCER, StatusCode.UNSET)
    (record,) = stage.broker.records("out")
    assert dict(sent.attributes or {}) == {
        "messaging.system.name": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "out",
        "messaging.message.id": (record.header("message-id") or b"").decode(),
    }
    # The message goes as it was written: who receives it is below the handler, too.
    assert carried(stage) == [(handled.context.trace_id, handled.context.span_id)]


async def test_each_try_of_the_relay_has_a_span_and_a_refused_one_says_why(
    stage: MemoryStage, finished: tuple[TracerProvider, InMemorySpanExporter]
) -> None:
    class Elsewhere(Traced):
        async def handle(self, event: bytes, context: Context) -> None:
            context.publish("not-there-yet", value=b"secret")

    provider, kept = finished
    send(stage, 1, TRACEPARENT)
    async with stage.run(Elsewhere(), tracing=provider) as run:
        await run.until(lambda: bool(named(kept, "send not-there-yet")), "the first try")
        stage.broker.create_topic("not-there-yet", 1)
        await run.until(
            lambda: named(kept, "send not-there-yet")[-1].status.status_code is StatusCode.UNSET, "the last try"
        )
    first, *_, last = named(kept, "send not-there-yet")
    assert first.status.status_code is StatusCode.ERROR
    assert (first.attributes or {})[conventions.ERROR_TYPE] == "UNKNOWN_TOPIC_OR_PART"
    assert conventions.ERROR_TYPE not in (last.attributes or {})
    assert first.parent == last.parent
    assert "secret" not in "".join(span.to_json() for span in kept.get_finished_spans())


async def test_a_retry_after_a_restart_goes_on_in_the_trace_of_the_headers(
    stage: MemoryStage, finished: tuple[TracerProvider, InMemorySpanExporter]
) -> None:
    """What is parked keeps its headers; only the link to the attempt before is this process's own knowledge."""
    provider, kept = finished
    send(stage, 1, TRACEPARENT)
    retry = Retry(attempts=1_000, wait=fixed(0.1))
    async with stage.run(Traced(failures=1_000, retry=retry), tracing=provider) as run:
        await run.until(lambda: len(named(kept, "process t")) > 1, "a retry, which was parked")
    first = named(kept, "process t")[0]
    async with stage.run(Traced(retry=retry), tracing=provider) as run:
        await stage.until_written(run, 1)
    last = named(kept, "process t")[-1]
    assert last.context is not None
    assert f"{last.context.trace_id:032x}" == TRACE
    assert (last.attributes or {})["consumerkit.attempt"] != 1
    assert last.parent == first.parent


async def test_headers_of_the_users_own_stay(stage: MemoryStage) -> None:
    class Own(Traced):
        async def handle(self, event: bytes, context: Context) -> None:
            context.publish("out", value=b"1", headers={"traceparent": TRACEPARENT[1]})

    exporter = Exporter()
    send(stage, 1)
    async with stage.run(Own(), tracing=exporter) as run:
        await run.until(lambda: bool(stage.broker.records("out")), "the outbox")
    (message,) = stage.broker.records("out")
    assert [value for name, value in message.headers if name == "traceparent"] == [TRACEPARENT[1]]


async def test_without_tracing_there_is_no_header_and_no_span(stage: MemoryStage) -> None:
    handler = Traced()
    send(stage, 1, TRACEPARENT)
    async with stage.run(handler) as run:
        await run.until(lambda: bool(stage.broker.records("out")), "the outbox")
    assert stage.broker.records("out")[0].header("traceparent") is None
    assert not handler.current[0].get_span_context().is_valid


async def test_what_runs_before_the_transaction_goes_on_in_the_trace(stage: MemoryStage) -> None:
    class Prepared(Traced):
        def __init__(self) -> None:
            super().__init__()
            self.contexts: list[Any] = []

        @step
        async def call(self, key: IdempotencyKey) -> str:
            self.contexts.append(get_current_span().get_span_context())
            return "done"

        async def prepare(self, event: bytes, effects: Effects) -> None:
            await effects.run(self.call)

    handler = Prepared()
    send(stage, 1, TRACEPARENT)
    async with stage.run(handler, tracing=Exporter()) as run:
        await stage.until_written(run, 1)
    (context,) = handler.contexts
    assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == (TRACE, SPAN)


async def test_what_a_handler_logs_has_the_messages_fields(stage: MemoryStage) -> None:
    """Plain logging, structlog's processor and our own formatter have the same."""
    lines: list[dict[str, Any]] = []

    class Logs(Write):
        async def handle(self, event: bytes, context: Context) -> None:
            record = logging.getLogger("shop").makeRecord("shop", logging.INFO, "", 0, "hello", (), None)
            assert MessageFields().filter(record)
            own = {name: value for name, value in vars(record).items() if "." in name or name.endswith("_id")}
            told = json.loads(JsonFormatter().format(record))
            lines.extend([own, dict(add_message_fields(None, "info", {"attempt": "theirs"})), told])
            await super().handle(event, context)

    exporter = Exporter()
    message = stage.append(7)
    async with stage.run(Logs(), tracing=exporter) as run:
        await stage.until_written(run, 1)
    (span,) = exporter.named("process t")
    expected = {
        "consumerkit.handler": "write",
        "messaging.destination.name": "t",
        "messaging.destination.partition.id": str(message.partition),
        "kafka.offset": message.offset,
        "messaging.message.id": "7",
        "consumerkit.attempt": 1,
        "trace_id": f"{span.trace:032x}",
        "span_id": f"{span.get_span_context().span_id:016x}",
    }
    own, structured, told = lines
    assert own == expected
    assert structured == {"attempt": "theirs", **expected}
    assert told.items() >= expected.items()
    assert (told["body"], told["scope"], told["severity_number"]) == ("hello", "shop", 9)
    assert message_fields() == {}
