"""What a handler may set for its transaction or session on PostgreSQL, and how it is set back before our statements.

The state is read by statements that run anyway, at BEGIN and after the handler, so that every way of changing it is
seen: SET, set_config, a function's own, a driver's. It is set back to what it was at BEGIN, not to the default, which a
role or a path set on connect is not.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, text

from consumerkit.errors import TransactionMisused

# In the order in which they are set back: another user resets the role, and the role decides what may be set.
NAMES: Final = (
    "session_authorization",
    "role",
    "search_path",
    "row_security",
    "session_replication_role",
    "synchronous_commit",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "default_transaction_deferrable",
    "datestyle",
    "intervalstyle",
    "timezone",
    "bytea_output",
    "standard_conforming_strings",
    "transaction_read_only",
)
READ_ONLY: Final = (
    "the handler made its transaction read-only, and consumerkit writes its claims there; read from a session of "
    "your own"
)
_ROLE: Final = NAMES.index("role")
_MAY_WRITE: Final = NAMES.index("transaction_read_only")
_SEPARATOR: Final = "\x1f"
# Not every server has every setting: `transaction_timeout` is PostgreSQL 17's.
STATE: Final = (
    "concat_ws(chr(31), " + ", ".join(f"coalesce(current_setting('{name}', true), '')" for name in NAMES) + ")"
)


class SessionSettings(NamedTuple):
    """The settings at BEGIN, before and after our own were made, each as one text."""

    before: str
    ours: str


def put_back(connection: Connection, settings: SessionSettings, found: str, *, local: bool) -> None:
    """Set what changed back, for the rest of the transaction and for those that the connection has later.

    Args:
        connection: Of the transaction.
        settings: What was at BEGIN.
        found: What is now.
        local: Whether it was changed by SET LOCAL alone: the session's own value is still there then.

    Raises:
        TransactionMisused: The transaction is read-only by now, which cannot be undone.
    """
    if found == settings.ours:
        return
    before, ours, now = (state.split(_SEPARATOR) for state in (*settings, found))
    if now[_MAY_WRITE] != ours[_MAY_WRITE]:
        raise TransactionMisused(READ_ONLY)
    changed = [at for at in range(len(NAMES)) if now[at] != ours[at]]
    if 0 in changed and _ROLE not in changed:
        changed.insert(1, _ROLE)
    sets: list[tuple[str, str, str]] = []
    for at in changed:
        if not local:
            sets.append((NAMES[at], before[at], "false"))
        if local or before[at] != ours[at]:
            sets.append((NAMES[at], ours[at], "true"))
    calls = ", ".join(f"set_config('{name}', :v{n}, {scope})" for n, (name, _, scope) in enumerate(sets))
    parameters: dict[str, Any] = {f"v{n}": value for n, (_, value, _) in enumerate(sets)}
    connection.execute(text(f"SELECT {calls}"), parameters)
