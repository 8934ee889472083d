"""What an operator's tools read: metrics, and whether a worker lives and is ready.

`Metrics` needs prometheus-client, which the extra `metrics` brings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consumerkit.monitoring.metrics import Metrics

__all__ = ["Metrics"]


def __getattr__(name: str) -> object:
    """Import `Metrics` when it is used: the rest needs no prometheus-client."""
    if name == "Metrics":
        from consumerkit.monitoring.metrics import Metrics

        return Metrics
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
