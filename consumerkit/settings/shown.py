"""Settings as a table: the values in force and where each was set, without secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import NamedTuple

from pydantic import BaseModel, SecretStr
from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError

from consumerkit.handlers.declaration import Declaration
from consumerkit.redaction.text import HIDDEN
from consumerkit.settings.layers import handler_key
from consumerkit.settings.model import HandlerSettings, KafkaSettings, Settings, TableSettings
from consumerkit.storage.tables import Tables
from consumerkit.transports.kafka import Kafka

UNSET = "as the code says"
ARGUMENT = "code: Worker(...)"
_SECTIONS: dict[str, type[BaseModel]] = {"kafka": KafkaSettings, "tables": TableSettings}


class Shown(NamedTuple):
    """One setting: its name, its value as text, and where it was set."""

    setting: str
    value: str
    origin: str


def shown(
    settings: Settings, declared: tuple[Declaration, ...] = (), given: Mapping[str, object] | None = None
) -> list[Shown]:
    """Return all settings; with handlers' declarations also each handler's value of every setting.

    Args:
        settings: The settings.
        declared: The declarations of a worker's handlers.
        given: The worker's arguments in code, which override the settings of the same names.

    Example:
        >>> [row for row in shown(Settings(grace=5.0)) if row.setting == "grace"][0]
        Shown(setting='grace', value='5.0', origin='code')
    """
    code = given or {}
    rows = [
        Shown(row.setting, _argument(row.setting, code[row.setting]), ARGUMENT) if row.setting in code else row
        for row in _fields(settings, Settings, (), settings)
    ]
    for name, section in _SECTIONS.items():
        if name in code:
            rows.append(Shown(name, _argument(name, code[name]), ARGUMENT))
        else:
            rows += _fields(getattr(settings, name), section, (name,), settings)
    if declared:
        rows += [row for one in declared for row in _handler(one, settings)]
    else:
        for key, own in settings.handlers.items():
            rows += [row for row in _fields(own, HandlerSettings, ("handlers", key), settings) if row.origin != UNSET]
    return rows


def _fields(model: BaseModel, kind: type[BaseModel], path: tuple[str, ...], settings: Settings) -> Iterator[Shown]:
    for name, field in sorted(kind.model_fields.items()):
        if name in ("handlers", *_SECTIONS):
            continue
        at = (*path, field.alias or name)
        origin = settings.origin(*at)
        value = "" if origin is None else _text(".".join(at), getattr(model, name))
        yield Shown(".".join(at), value, origin or UNSET)


def _handler(declared: Declaration, settings: Settings) -> Iterator[Shown]:
    key = handler_key(declared.name)
    for name in sorted(HandlerSettings.model_fields):
        if name == "topic":
            continue
        value = getattr(declared, name)
        if name == "dead_letter":
            value = None if value is None else value.topic
        origin = settings.origin("handlers", key, name)
        if name == "topics":
            origin = origin or settings.origin("handlers", key, "topic")
        yield Shown(f"handlers.{key}.{name}", _text(name, value), origin or UNSET)


def _argument(name: str, value: object) -> str:
    """Return an argument of the worker as text, without secrets; an object by what it names, else by its class."""
    if name == "database" and isinstance(value, str | URL):
        return _address(str(value) if isinstance(value, str) else value.render_as_string(hide_password=False))
    if isinstance(value, Kafka):
        return ",".join(value.servers)
    if isinstance(value, Tables):
        return f"{value.schema or ''}{'.' if value.schema else ''}{value.prefix}*"
    if value is None or isinstance(value, bool | int | float | timedelta):
        return _text(name, value)
    return type(value).__name__


def _text(name: str, value: object) -> str:
    if isinstance(value, SecretStr):
        return _address(value.get_secret_value()) if name == "database" else HIDDEN
    if name == "kafka.token_endpoint" and isinstance(value, str):
        return value.partition("?")[0] if "@" not in value else HIDDEN
    if isinstance(value, dict):
        return ", ".join(f"{key}={HIDDEN}" for key in value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _address(url: str) -> str:
    """Return a database's URL without its password and parameters, which may be secret."""
    from sqlalchemy import make_url

    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        return HIDDEN
    return found.set(password=None if found.password is None else HIDDEN, query={}).render_as_string(hide_password=True)
