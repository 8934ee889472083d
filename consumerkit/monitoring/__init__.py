"""Monitoring for operators: metrics, and whether a worker lives and is ready.

`Metrics` needs prometheus-client, from the extra `metrics`, and `OpenTelemetryMetrics` needs
opentelemetry-api.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consumerkit.monitoring.metrics import Metrics, OpenTelemetryMetrics
    from consumerkit.monitoring.monitor import measured

__all__ = ["Metrics", "OpenTelemetryMetrics", "measured"]


def __getattr__(name: str) -> object:
    """Import a name at its first use: a worker's health needs neither library."""
    if name in ("Metrics", "OpenTelemetryMetrics"):
        from consumerkit.monitoring import metrics

        return getattr(metrics, name)
    if name == "measured":
        from consumerkit.monitoring.monitor import measured

        return measured
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
