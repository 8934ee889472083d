"""A trace's context in message headers, by OpenTelemetry's global propagator."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from consumerkit.message import Headers


def extracted(headers: Headers) -> Any:
    """Return the context that a message's headers carry."""
    from opentelemetry.context import Context as NoParent
    from opentelemetry.propagate import extract

    return extract(_carrier(headers), context=NoParent())


def _carrier(headers: Headers) -> Mapping[str, str]:
    return {name.lower(): value.decode("ascii", "replace") for name, value in headers if value is not None}


def current_headers() -> Headers:
    """Return headers that continue the caller's trace, if the process uses OpenTelemetry and a span is current.

    A process that has not imported OpenTelemetry pays nothing.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.propagate import inject
    from opentelemetry.trace import get_current_span

    if not get_current_span().get_span_context().is_valid:
        return ()
    carrier: dict[str, str] = {}
    inject(carrier)
    return tuple((name, value.encode()) for name, value in carrier.items())


def carried_on(headers: Headers, trace: Headers) -> Headers:
    """Return headers with a trace's headers added; existing ones stay.

    Example:
        >>> carried_on((("traceparent", b"mine"),), (("traceparent", b"theirs"), ("baggage", b"a=1")))
        (('traceparent', b'mine'), ('baggage', b'a=1'))
    """
    known = {name.lower() for name, _ in headers}
    return (*headers, *(one for one in trace if one[0].lower() not in known))
