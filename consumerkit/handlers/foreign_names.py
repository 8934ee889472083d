"""Other frameworks' names of what a handler declares: as attributes they would silently do nothing."""

from __future__ import annotations

from typing import Final

MEANT: Final = {
    "retries": "retry",
    "max_retries": "retry",
    "max_attempts": "retry",
    "attempts": "retry",
    "batch": "batch_size",
    "max_batch_size": "batch_size",
    "dlq": "dead_letter",
    "dlq_topic": "dead_letter",
    "idempotency_key": "message_id",
    "consumer_group": "group",
    "auto_offset_reset": "start_from",
    "decoder": "codec",
    "serializer": "codec",
    "deserializer": "codec",
    "max_records": "batch_size",
    "max_workers": "concurrency",
    "parallelism": "concurrency",
    "backoff": "retry",
    "retry_backoff": "retry",
    "autoretry_for": "retry",
    "default_retry_delay": "retry",
    "dont_autoretry_for": "retry",
    "retry_backoff_max": "retry",
    "retry_jitter": "retry",
    "retry_kwargs": "retry",
    "throws": "retry",
}
"""Other frameworks' names for declarations: close matching does not find them, and they would silently do nothing."""
SET_ELSEWHERE: Final = {
    "timeout": "a transaction's time is Worker(transaction_timeout=...)",
    "workers": "the number of processes is consumerkit run --workers",
    "time_limit": "a transaction's time is Worker(transaction_timeout=...)",
    "soft_time_limit": "a transaction's time is Worker(transaction_timeout=...)",
    "ack_policy": "an offset is committed once the effect, or the dead letter, is durable",
    "acks_late": "an offset is committed once the effect, or the dead letter, is durable",
    "acks_on_failure_or_timeout": "an offset is committed once the effect, or the dead letter, is durable",
    "reject_on_worker_lost": "an offset is committed once the effect, or the dead letter, is durable",
    "auto_commit": "an offset is committed once the effect, or the dead letter, is durable",
    "ignore_result": "an effect is what the handler writes; message_status tells how a message stands",
    "track_started": "message_status tells how a message stands",
    "bind": "handle gets self and its context",
    "countdown": "a message runs when its turn comes; raise Defer to wait",
    "expires": "a message runs however old it is; raise Reject to give it up",
    "queue": "messages come from the handler's topic",
    "routing_key": "messages come from the handler's topic",
    "priority": "there is none; give what is urgent a topic and a handler of its own",
    "rate_limit": "there is none; handle with fewer lanes, concurrency=",
    "middleware": "there is none; observers of events are Worker(observers=...)",
    "middlewares": "there are none; observers of events are Worker(observers=...)",
}
"""What other frameworks let a handler declare, and where consumerkit sets it."""
