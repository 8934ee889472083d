"""An exporter in memory for OpenTelemetry's API: spans that are kept as they were ended."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    TracerProvider,
    get_current_span,
    use_span,
)


class Kept(Span):
    """One span.

    Attributes:
        name, kind, attributes, links: As it was started, with what was set since.
        parent: What it was started under.
        status: What it was given.
        ended: How often it was ended.
    """

    def __init__(self, name: str, kind: SpanKind, parent: SpanContext, attributes: Mapping[str, Any]) -> None:
        self.name, self.kind, self.parent = name, kind, parent
        self.attributes = dict(attributes)
        self.links: list[SpanContext] = []
        self.status = StatusCode.UNSET
        self.ended = 0
        trace = parent.trace_id if parent.is_valid else random.getrandbits(128)
        self._context = SpanContext(trace, random.getrandbits(64), is_remote=False, trace_flags=TraceFlags(1))

    @property
    def trace(self) -> int:
        return self._context.trace_id

    def get_span_context(self) -> SpanContext:
        return self._context

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self.attributes.update(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        assert not self.ended
        self.attributes[key] = value

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None: ...

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        self.links.append(context)

    def update_name(self, name: str) -> None:
        self.name = name

    def is_recording(self) -> bool:
        return not self.ended

    def set_status(self, status: Any, description: str | None = None) -> None:
        assert description is None
        self.status = status

    def record_exception(self, *_: Any, **__: Any) -> None:
        raise AssertionError("an error's text may quote a payload")

    def end(self, end_time: int | None = None) -> None:
        self.ended += 1


class Exporter(TracerProvider):
    """Keeps all spans, in the order in which they began."""

    def __init__(self) -> None:
        self.spans: list[Kept] = []

    def get_tracer(self, *_: Any, **__: Any) -> Tracer:
        return _Tracer(self.spans)

    def named(self, name: str) -> list[Kept]:
        return [span for span in self.spans if span.name == name]


class _Tracer(Tracer):
    def __init__(self, spans: list[Kept]) -> None:
        self._spans = spans

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Sequence[Link] | None = None,
        *_: Any,
        **__: Any,
    ) -> Span:
        parent = get_current_span(context).get_span_context()
        made = Kept(name, kind, parent, attributes or {})
        made.links += [link.context for link in links or ()]
        self._spans.append(made)
        return made

    @contextmanager
    def start_as_current_span(self, name: str, *args: Any, **named: Any) -> Iterator[Span]:  # type: ignore[override]
        span = self.start_span(name, *args, **named)
        with use_span(span, end_on_exit=True, record_exception=False):
            yield span
