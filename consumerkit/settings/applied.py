"""Turns settings into what a worker takes: its arguments, and its handlers' declarations."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from consumerkit.errors import ConfigurationError
from consumerkit.handlers.declaration import Declaration, check_together
from consumerkit.message import TOPIC_RULE, is_topic_name
from consumerkit.settings.layers import handler_key
from consumerkit.settings.login import security_of
from consumerkit.settings.model import HandlerSettings, Settings
from consumerkit.storage.tables import DEFAULT_PREFIX, Tables
from consumerkit.transports.kafka import Kafka

NUMBERS: Final = (
    "memory_budget",
    "transaction_timeout",
    "drain_timeout",
    "grace",
    "stall_timeout",
    "retention",
    "payload_retention",
    "tracing",
)
_SAME_NAME: Final = (
    "group",
    "concurrency",
    "batch_size",
    "batch_time",
    "shares_transaction",
    "size_limit",
    "parking_limit",
    "start_from",
    "step_concurrency",
)


def arguments(settings: Settings, without: Collection[str] = ()) -> dict[str, Any]:
    """Return the arguments of a worker that are set; a value may be None, which differs from not set.

    Raises:
        ConfigurationError: The settings of Kafka do not fit together.
    """
    found = {name: getattr(settings, name) for name in NUMBERS if settings.is_set(name)}
    if settings.database is not None:
        found["database"] = settings.database.get_secret_value()
    if settings.kafka.model_fields_set and "kafka" not in without:
        found["kafka"] = kafka_of(settings)
    if settings.tables.model_fields_set:
        found["tables"] = Tables(prefix=settings.tables.prefix or DEFAULT_PREFIX, schema=settings.tables.schema_)
    return found


def kafka_of(settings: Settings) -> Kafka:
    """Return the `Kafka` that the settings describe.

    Raises:
        ConfigurationError: The address or a part of the login is missing.
    """
    kafka = settings.kafka
    if kafka.bootstrap is None:
        raise ConfigurationError("settings: kafka has no bootstrap; set CONSUMERKIT_KAFKA__BOOTSTRAP=host:port")
    names = ("transport", "client_id", "allow_insecure")
    given = {name: value for name in names if (value := getattr(kafka, name)) is not None}
    return Kafka(kafka.bootstrap, security=security_of(kafka), **given)


def declarations(settings: Settings, declared: Sequence[Declaration]) -> tuple[Declaration, ...]:
    """Return the handlers' declarations with their settings and the topic prefix applied.

    Raises:
        ConfigurationError: Settings name an unknown handler, or a value does not fit the handler.
    """
    known: dict[str, Declaration] = {}
    for one in declared:
        if handler_key(one.name) in known and handler_key(one.name) in settings.handlers:
            names = f"{known[handler_key(one.name)].name!r} and {one.name!r}"
            raise ConfigurationError(f"settings: handlers {names} have the same name in settings; rename one")
        known[handler_key(one.name)] = one
    for key in settings.handlers:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the handlers are {', '.join(map(repr, known))}"
            raise ConfigurationError(f"{_origin(settings, key)}: there is no handler {key!r}; {hint}")
    made = tuple(_declaration(settings, one) for one in declared)
    check_together(made)
    return made


def _origin(settings: Settings, key: str) -> str:
    found = (origin for path, origin in settings.all_origins().items() if path[:2] == ("handlers", key))
    return next(found, "settings")


def _declaration(settings: Settings, declared: Declaration) -> Declaration:
    own = settings.handlers.get(handler_key(declared.name), HandlerSettings())
    given: dict[str, Any] = {name: getattr(own, name) for name in _SAME_NAME if name in own.model_fields_set}
    if own.topic is not None and own.topics is not None:
        where = _origin(settings, handler_key(declared.name))
        raise ConfigurationError(f"{where}: handler {declared.name!r} has topic and topics set; keep one")
    prefix = settings.topic_prefix or ""
    topics = own.topics or ([own.topic] if own.topic is not None else declared.topics)
    given["topics"] = tuple(prefix + topic for topic in topics)
    given["publishes"] = None if declared.publishes is None else tuple(prefix + topic for topic in declared.publishes)
    for topic in (*given["topics"], *(given["publishes"] or ())):
        if not is_topic_name(topic):
            where = _origin(settings, handler_key(declared.name)) if own.model_fields_set else "topic_prefix"
            raise ConfigurationError(f"{where}: {topic[:300]!r} is not the name of a topic; {TOPIC_RULE}")
    given["topic_prefix"] = prefix
    if own.shares_transaction is not None and declared.is_batch:
        where = settings.origin("handlers", handler_key(declared.name), "shares_transaction") or "settings"
        raise ConfigurationError(f"{where}: handler {declared.name!r} is a batch handler; set its batch_size to 1")
    if own.dead_letter is not None and declared.dead_letter is None:
        where = settings.origin("handlers", handler_key(declared.name), "dead_letter") or "settings"
        raise ConfigurationError(f"{where}: handler {declared.name!r} declares no dead_letter = DeadLetter(...)")
    if declared.dead_letter is not None:
        topic = own.dead_letter or declared.dead_letter.topic
        given["dead_letter"] = replace(declared.dead_letter, topic=prefix + topic)
    return replace(declared, **given)
