"""Which settings of the client libraries a user may change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from consumerkit.errors import ConfigurationError

SESSION_MS: Final = 8_000
"""Milliseconds after which the group gives up a confluent member that has died, unless an option says otherwise.

librdkafka sends heartbeats from its own thread, whatever the handlers do, so this may be short.
"""
AIOKAFKA_SESSION_MS: Final = 45_000
"""The same for an aiokafka member, whose heartbeats stop while a handler blocks the event loop."""
BROKERS_SESSION_MS: Final = 45_000
"""The same if the broker's own setting decides it (KIP-848): the broker's default."""
_OFFSETS: Final = "consumerkit alone decides what is committed"
_START: Final = "where reading starts is the handler's start_from"
_GROUP: Final = "the handler's `group` says it"
_READ: Final = "only committed records may be read"
_WRITE: Final = "a dead letter must be acknowledged by all replicas, once"
_REACH: Final = "Kafka's own parameters say it"
_DRAIN: Final = "consumerkit derives it from the drain's time"
_ADAPTER: Final = "the transport sets it"
_CODE: Final = "it would run or load foreign code"

# By librdkafka's names; aiokafka's are the same with underscores, except those below.
_RESERVED: Final = {
    "enable.auto.commit": _OFFSETS,
    "auto.commit.interval.ms": _OFFSETS,
    "enable.auto.offset.store": _OFFSETS,
    "auto.offset.reset": _START,
    "group.id": _GROUP,
    "isolation.level": _READ,
    "acks": _WRITE,
    "request.required.acks": _WRITE,
    "enable.idempotence": _WRITE,
    "transactional.id": _WRITE,
    "bootstrap.servers": _REACH,
    "metadata.broker.list": _REACH,
    "client.id": _REACH,
    "max.poll.interval.ms": _DRAIN,
    "rebalance.timeout.ms": _DRAIN,
    "partitioner": "keys must go where Kafka's own clients send them",
    "check.crcs": "a broken batch must be noticed",
    "plugin.library.paths": _CODE,
    "key.deserializer": _ADAPTER,
    "value.deserializer": _ADAPTER,
    "key.serializer": _ADAPTER,
    "value.serializer": _ADAPTER,
    "max.poll.records": _ADAPTER,
    "fetch.max.bytes": "the handler's byte budget says it",
    "queued.max.messages.kbytes": "the handler's byte budget says it",
    "loop": _ADAPTER,
    "enable.partition.eof": _ADAPTER,
}
PROTOCOL: Final = "group.protocol"
_ASSIGNOR: Final = "group.remote.assignor"
CLASSIC: Final = "classic"
# In the new protocol, a group's own settings on the broker decide these.
_BROKERS: Final = {
    "session.timeout.ms": "group.consumer.session.timeout.ms",
    "heartbeat.interval.ms": "group.consumer.heartbeat.interval.ms",
    "partition.assignment.strategy": "group.consumer.assignors",
    "group.protocol.type": "the protocol itself",
}
_CREDENTIALS: Final = ("sasl.", "ssl.", "security.", "enable.ssl.", "https.ca.", "enable.sasl.")


# Words without digits. Only known words may stand alone: any other may be a password.
_NAME: Final = re.compile(r"[A-Za-z]{1,40}(?:[._][A-Za-z]{1,40}){1,12}")
_ALONE: Final = frozenset(("acks", "debug", "linger", "loop", "partitioner", "retries"))


def milliseconds(options: Mapping[str, object], name: str, default: int) -> float:
    """Return an option that is a number, maybe given as text; the default if it is none."""
    try:
        return float(str(options.get(name, default)))
    except ValueError:
        return float(default)


def has_broker_assignment(options: Mapping[str, object]) -> bool:
    """Return whether members use the group protocol of KIP-848, in which the broker assigns partitions."""
    return str(options.get(PROTOCOL, CLASSIC)).lower() == "consumer"


def unknown_to(options: Mapping[str, object]) -> Mapping[str, str]:
    """Return the settings that librdkafka refuses beside these, each with what decides it instead."""
    return _BROKERS if has_broker_assignment(options) else {}


def check_options(client: str, options: object) -> None:
    """Refuse settings that the promise depends on, credentials, callbacks, and invalid values.

    Raises:
        ConfigurationError: Names the option and why it is refused, never its value.
    """
    if not isinstance(options, Mapping):
        raise ConfigurationError(f"Kafka(options=...) takes a mapping, not {type(options).__name__}")
    for number, (name, value) in enumerate(options.items(), 1):
        if not isinstance(name, str) or not (_NAME.fullmatch(name) or name.lower() in _ALONE):
            # The name is not repeated: name and value in the wrong order put a secret here.
            raise ConfigurationError(f"Kafka(options=...): name {number} is not the name of a setting")
        _check_name(client, name)
        if not isinstance(value, str | int | float | bool):
            # Callbacks and whole objects would bypass the adapter.
            wrong = type(value).__name__
            raise ConfigurationError(f"Kafka(options={{{name!r}: ...}}) takes text, a number or a bool, not {wrong}")
    _check_protocol(client, options)


def _check_protocol(client: str, options: Mapping[str, object]) -> None:
    place = f"Kafka(options={{{PROTOCOL!r}: ...}})"
    if client == "aiokafka" and (name := PROTOCOL.replace(".", "_")) in options:
        raise ConfigurationError(
            f"Kafka(options={{{name!r}: ...}}): aiokafka knows the classic protocol only; leave it out, "
            'or give transport="confluent"'
        )
    if PROTOCOL in options and options[PROTOCOL] not in (CLASSIC, "consumer"):
        raise ConfigurationError(f"{place}: unknown value; it is one of 'classic', 'consumer'")
    for name, setting in unknown_to(options).items():
        if name in options:
            raise ConfigurationError(
                f"Kafka(options={{{name!r}: ...}}) does not go with group.protocol=consumer: the broker decides it "
                f"({setting}); leave it out"
            )
    if not has_broker_assignment(options) and _ASSIGNOR in options:
        raise ConfigurationError(
            f"Kafka(options={{{_ASSIGNOR!r}: ...}}) goes with group.protocol=consumer only; leave it out, or give both"
        )


def _check_name(client: str, name: str) -> None:
    place = f"Kafka(options={{{name!r}: ...}})"
    dotted = name.lower().replace("_", ".")
    if dotted.endswith(".cb"):
        raise ConfigurationError(f"{place} is refused: {_ADAPTER}; leave it out")
    if client == "aiokafka" and "." in name:
        raise ConfigurationError(f"{place} is librdkafka's spelling; aiokafka's is {dotted.replace('.', '_')!r}")
    if client == "confluent" and "_" in name:
        raise ConfigurationError(f"{place} is not librdkafka's spelling, which is {dotted!r}")
    # librdkafka accepts a topic's settings under this prefix too.
    bare = dotted.removeprefix("default.topic.config.").removeprefix("topic.")
    if bare in _RESERVED:
        raise ConfigurationError(f"{place} is refused: {_RESERVED[bare]}; leave it out")
    if bare.startswith(_CREDENTIALS):
        raise ConfigurationError(f"{place} is refused: secrets go to security=Sasl(...) or Tls(...)")
