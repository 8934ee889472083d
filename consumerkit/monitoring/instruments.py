"""Counters, gauges and histograms for Prometheus and for OpenTelemetry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider
    from prometheus_client import CollectorRegistry

Among = Literal["livesum", "livemax", "mostrecent"]
"""A gauge's value over several processes: the sum or maximum over those that live, or the latest."""


class Begins(Protocol):
    """A metric that can be shown before it has a value."""

    def begin(self, *values: str) -> None:
        """Show these label values from now on; a value that they have stays."""


class Counts(Begins, Protocol):
    """A counter: its value goes up."""

    def add(self, amount: float, *values: str) -> None:
        """Add an amount; `values` has one value per label."""


class Shows(Begins, Protocol):
    """A gauge: its value goes up and down."""

    def set(self, value: float, *values: str) -> None:
        """Set the value; `values` has one value per label."""


class Observes(Begins, Protocol):
    """A histogram: it counts how often which values occur."""

    def observe(self, value: float, *values: str) -> None:
        """Add a value; `values` has one value per label."""


class Instruments(Protocol):
    """Creates instruments; names are without `consumerkit`, and labels are in the order of their values."""

    def counter(self, name: str, text: str, labels: Sequence[str]) -> Counts:
        """Return a counter."""
        ...

    def gauge(self, name: str, text: str, labels: Sequence[str], among: Among) -> Shows:
        """Return a gauge."""
        ...

    def histogram(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> Observes:
        """Return a histogram with these upper bounds."""
        ...


class PrometheusInstruments:
    """Instruments that are registered with prometheus-client, as `consumerkit_...`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, labels: Sequence[str]) -> Counts:
        """See `Instruments.counter`."""
        from prometheus_client import Counter

        return _Labelled(Counter(f"consumerkit_{name}", text, labels, registry=self._registry))

    def gauge(self, name: str, text: str, labels: Sequence[str], among: Among) -> Shows:
        """See `Instruments.gauge`."""
        from prometheus_client import Gauge

        return _Labelled(Gauge(f"consumerkit_{name}", text, labels, registry=self._registry, multiprocess_mode=among))

    def histogram(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> Observes:
        """See `Instruments.histogram`."""
        from prometheus_client import Histogram

        return _Labelled(Histogram(f"consumerkit_{name}", text, labels, registry=self._registry, buckets=bounds))


class _Labelled:
    """A metric of prometheus-client that looks up each combination of label values once."""

    def __init__(self, metric: Any) -> None:
        self._of = cache(metric.labels)

    def begin(self, *values: str) -> None:
        self._of(*values)

    def add(self, amount: float, *values: str) -> None:
        self._of(*values).inc(amount)

    def set(self, value: float, *values: str) -> None:
        self._of(*values).set(value)

    def observe(self, value: float, *values: str) -> None:
        self._of(*values).observe(value)


class OpenTelemetryInstruments:
    """Instruments of an OpenTelemetry meter, as `consumerkit....`; labels are attributes, and empty ones are left out.

    Args:
        provider: The provider of the meter; None takes the global one.
    """

    def __init__(self, provider: MeterProvider | None = None) -> None:
        from opentelemetry.metrics import get_meter

        self._meter: Meter = get_meter("consumerkit", meter_provider=provider)

    def counter(self, name: str, text: str, labels: Sequence[str]) -> Counts:
        """See `Instruments.counter`."""
        return _Attributed(labels, add=self._meter.create_counter(f"consumerkit.{name}", _unit(name), text).add)

    def gauge(self, name: str, text: str, labels: Sequence[str], among: Among) -> Shows:
        """See `Instruments.gauge`; each process has its own value, and the collector may add them up."""
        return _Attributed(labels, set=self._meter.create_gauge(f"consumerkit.{name}", _unit(name), text).set)

    def histogram(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> Observes:
        """See `Instruments.histogram`."""
        made = self._meter.create_histogram(
            f"consumerkit.{name}", _unit(name), text, explicit_bucket_boundaries_advisory=bounds
        )
        return _Attributed(labels, observe=made.record)


class _Attributed:
    """An OpenTelemetry instrument, which takes attributes."""

    def __init__(self, labels: Sequence[str], *, add: Any = None, set: Any = None, observe: Any = None) -> None:
        self._labels = tuple(labels)
        self._add, self._set, self._observe = add, set, observe

    def begin(self, *values: str) -> None:
        if self._add is not None:  # a gauge and a histogram have no value that says nothing
            self._add(0, self._attributes(values))

    def add(self, amount: float, *values: str) -> None:
        self._add(amount, self._attributes(values))

    def set(self, value: float, *values: str) -> None:
        self._set(value, self._attributes(values))

    def observe(self, value: float, *values: str) -> None:
        self._observe(value, self._attributes(values))

    def _attributes(self, values: Sequence[str]) -> dict[str, str]:
        return {label: value for label, value in zip(self._labels, values, strict=True) if value}


def _unit(name: str) -> str:
    return "s" if name.endswith("seconds") else "1"
