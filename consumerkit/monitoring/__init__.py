"""What an operator's tools read: metrics, and whether a worker lives and is ready.

`Metrics` needs prometheus-client, which the extra `metrics` brings, and `OpenTelemetryMetrics` opentelemetry-api.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consumerkit.monitoring.metrics import Metrics, OpenTelemetryMetrics
    from consumerkit.monitoring.monitor import measured

__all__ = ["Metrics", "OpenTelemetryMetrics", "measured"]


def __getattr__(name: str) -> object:
    """Import what is used: a worker's own health needs no library."""
    if name in ("Metrics", "OpenTelemetryMetrics"):
        from consumerkit.monitoring import metrics

        return getattr(metrics, name)
    if name == "measured":
        from consumerkit.monitoring.monitor import measured

        return measured
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
