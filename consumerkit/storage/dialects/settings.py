"""The settings that a handler may change on PostgreSQL, and how they are set back before our statements.

Statements that run anyway, at BEGIN and after the handler, read the settings. That shows every kind
of change: SET, set_config, a function's own SET, a driver's. Each setting gets its value from BEGIN
back. The default would be wrong for a role, or for a search path set on connect.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, text

from consumerkit.errors import TransactionMisused

# In the order in which they are set back: another user resets the role, and the role decides what
# may be set.
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
    """The settings at BEGIN, before and after our own changes, each as one text."""

    before: str
    ours: str


def put_back(connection: Connection, settings: SessionSettings, found: str, *, local: bool) -> None:
    """Set changed settings back, for the rest of the transaction and for the connection's later ones.

    Args:
        connection: The transaction's.
        settings: The settings at BEGIN.
        found: The settings now.
        local: Whether only SET LOCAL changed them: the session's own values are still there.

    Raises:
        TransactionMisused: The transaction has become read-only, which cannot be undone.
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
