"""Names of spans' attributes, from OpenTelemetry's semantic conventions for messaging and Kafka.

These conventions are not stable, and names have changed from release to release: no other module
writes such a name.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = "1.45.0"
"""The release of the semantic conventions that these names come from."""
SCHEMA_URL: Final = f"https://opentelemetry.io/schemas/{VERSION}"

SYSTEM: Final = "messaging.system.name"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
PARTITION: Final = "messaging.destination.partition.id"
GROUP: Final = "messaging.consumer.group.name"
MESSAGE_ID: Final = "messaging.message.id"
BATCH_COUNT: Final = "messaging.batch.message_count"
OFFSET: Final = "kafka.offset"
TOMBSTONE: Final = "kafka.message.tombstone"
ERROR_TYPE: Final = "error.type"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACK: Final = "exception.stacktrace"

# Our own name, since the conventions have none.
HANDLER: Final = "consumerkit.handler"
ATTEMPT: Final = "consumerkit.attempt"
OUTCOME: Final = "consumerkit.outcome"
EVENT: Final = "event.name"

KAFKA: Final = "kafka"
PROCESS: Final = "process"
SEND: Final = "send"
