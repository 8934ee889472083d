"""Records of dead-letter topics, written by the rules of each framework."""

from __future__ import annotations

from consumerkit.message import Headers, Message

SPRING_ERROR = "org.springframework.kafka.listener.ListenerExecutionFailedException"
JAVA_STACK = f"{SPRING_ERROR}: Listener failed\n\tat com.shop.Payments.on(Payments.java:12)\n"


def record(*headers: tuple[str, bytes | None], key: bytes | None = b"k", value: bytes | None = b"v") -> Message:
    return Message("dead", 2, 40, key, value, headers, 1_700_000_000_999, "dead-id")


def spring(
    topic: str = "payments",
    partition: int = 3,
    offset: int = 5_000_000_000,
    *,
    prefix: str = "kafka_dlt-",
    kind: str = SPRING_ERROR,
    cause: str | None = "java.lang.IllegalStateException",
    message: str | None = "Listener failed; no such account",
    timestamp: int = 1_700_000_000_123,
    group: str | None = "payments-service",
) -> Headers:
    """What `DeadLetterPublishingRecoverer` adds, in its order: the exception's headers, then the original's."""
    headers: list[tuple[str, bytes | None]] = [(f"{prefix}exception-fqcn", kind.encode())]
    if cause is not None:
        headers.append((f"{prefix}exception-cause-fqcn", cause.encode()))
    if message is not None:
        headers.append((f"{prefix}exception-message", message.encode()))
    headers += [
        (f"{prefix}exception-stacktrace", JAVA_STACK.encode()),
        (f"{prefix}original-topic", topic.encode()),
        (f"{prefix}original-partition", partition.to_bytes(4, "big", signed=True)),
        (f"{prefix}original-offset", offset.to_bytes(8, "big", signed=True)),
        (f"{prefix}original-timestamp", timestamp.to_bytes(8, "big", signed=True)),
        (f"{prefix}original-timestamp-type", b"CreateTime"),
    ]
    if group is not None:
        headers.append((f"{prefix}original-consumer-group", group.encode()))
    return tuple(headers)


def connect(
    topic: str = "payments",
    partition: int = 3,
    offset: int = 5_000_000_000,
    *,
    stage: str = "TASK_PUT",
    kind: str = "org.apache.kafka.connect.errors.ConnectException",
    message: bytes | None = b"no such table",
) -> Headers:
    """What `DeadLetterQueueReporter` adds, in its order; a message that is null in Java has no value."""
    return (
        ("__connect.errors.topic", topic.encode()),
        ("__connect.errors.partition", str(partition).encode()),
        ("__connect.errors.offset", str(offset).encode()),
        ("__connect.errors.connector.name", b"jdbc-sink"),
        ("__connect.errors.task.id", b"0"),
        ("__connect.errors.stage", stage.encode()),
        ("__connect.errors.class.name", b"org.apache.kafka.connect.sink.SinkTask"),
        ("__connect.errors.exception.class.name", kind.encode()),
        ("__connect.errors.exception.message", message),
        ("__connect.errors.exception.stacktrace", f"{kind}: no such table\n\tat x.Y.z(Y.java:1)\n".encode()),
    )


def replaced(headers: Headers, name: str, value: bytes | None) -> Headers:
    assert name in dict(headers)
    return tuple((one, value if one == name else kept) for one, kept in headers)


def without(headers: Headers, *names: str) -> Headers:
    assert set(names) <= set(dict(headers))
    return tuple(header for header in headers if header[0] not in names)
