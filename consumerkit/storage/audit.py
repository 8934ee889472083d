"""What people did to messages and positions: who, when, what, and to what."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert

from consumerkit.storage.dead_letters.letters import storable
from consumerkit.storage.tables import Tables


def record(
    connection: Connection,
    tables: Tables,
    *,
    actor: str,
    action: str,
    consumer: int | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Record an action in the caller's transaction: the record exists exactly if the action does."""
    connection.execute(
        insert(tables.operator_actions).values(
            actor=storable(actor), action=action, consumer=consumer, details=json.dumps(dict(details or {}))
        )
    )


def current_user() -> str:
    """Return the default name for recorded actions: the operating system's user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"
