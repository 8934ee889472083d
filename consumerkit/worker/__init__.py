"""The worker: one process that consumes for its handlers, relays the outbox, and watches over itself."""

from consumerkit.worker.worker import Worker

__all__ = ["Worker"]
