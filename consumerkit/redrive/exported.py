"""Exports dead letters as JSON values."""

from __future__ import annotations

import base64
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from consumerkit.errors import PayloadSealed
from consumerkit.storage.dead_letters import history
from consumerkit.storage.dead_letters.letters import State
from consumerkit.storage.dead_letters.selection import Selection
from consumerkit.storage.payload import Sealer, payload
from consumerkit.storage.tables import Tables

PAGE: Final = 50


def page(
    session: Session, tables: Tables, selection: Selection, states: Collection[State], after: int
) -> list[dict[str, Any]]:
    """Return the next letters after an ID, `PAGE` at most."""
    c, consumers = tables.dead_letters.c, tables.consumers.c
    rows = session.execute(
        select(tables.dead_letters, consumers.name.label("handler"))
        .join_from(tables.dead_letters, tables.consumers, c.consumer == consumers.id)
        .where(selection.where(tables), c.state.in_([state.value for state in states]), c.id > after)
        .order_by(c.id)
        .limit(PAGE)
    )
    return [exported(row, tables.sealer) for row in rows]


def exported(row: Any, sealer: Sealer | None) -> dict[str, Any]:
    """Return one complete letter; a payload that cannot be unsealed here is None, and `sealed` stays true."""
    told = {name: _plain(value) for name, value in row._mapping.items()}  # noqa: SLF001 - SQLAlchemy's public name
    for name in ("digest", "fingerprint"):
        told[name] = None if told[name] is None else bytes(getattr(row, name)).hex()
    told["value"], told["headers"], told["sealed"] = None, None, True
    with suppress(PayloadSealed):
        value, headers = payload(sealer, row)
        told["value"], told["sealed"] = _plain(value), False
        told["headers"] = [[name, _plain(content)] for name, content in headers]
    told["history"] = history.load(row.history)
    del told["consumer"]
    return told


def _plain(value: Any) -> Any:
    r"""Return a value in a form that JSON can hold.

    Example:
        >>> _plain(b"caf\xc3\xa9"), _plain(b"\xff")
        ('café', {'base64': '/w=='})
    """
    if isinstance(value, datetime):
        aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return aware.isoformat().replace("+00:00", "Z")
    if not isinstance(value, bytes | memoryview):
        return value
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(bytes(value)).decode()}
