"""Which tables our statements use: found once, and named with their schema from then on.

A search path, a translate map or a temporary table can change which table an unqualified name
means. Two statements of one transaction could then use two sets of tables, and a message could be
claimed in one set and settled in the other. So the schema is looked up while a connection is still
as its owner configured it.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from consumerkit.errors import ConfigurationError
from consumerkit.storage.tables import Tables

_KEY: Final = "consumerkit.tables"
_MAIN: Final = "main"
# `current_schemas` leaves out schemas that are implicit (as of temporary tables), do not exist, or
# are forbidden to the role. A path without our tables is returned too: new tables go where it says.
_FIND: Final = text("""
    SELECT CAST(path.nspname AS text) AS schema, CAST(ours.relname AS text) AS name
    FROM unnest(current_schemas(false)) WITH ORDINALITY AS path (nspname, place)
    JOIN pg_catalog.pg_namespace AS known ON known.nspname = path.nspname
    LEFT JOIN pg_catalog.pg_class AS ours
           ON ours.relnamespace = known.oid AND ours.relkind IN ('r', 'p', 'v', 'f')
          AND ours.relname = ANY(CAST(:names AS text[]))
    WHERE left(path.nspname, 8) <> 'pg_temp_'
    ORDER BY path.place, ours.relname
""")


def located(connection: Connection, tables: Tables, *, must_exist: bool = False) -> Tables:
    """Return the tables under the schema in which this connection finds them, or would make them.

    Args:
        connection: A transaction's; queried once on PostgreSQL if no schema is configured, else not
            at all.
        tables: As configured.
        must_exist: Whether to refuse a search path without the tables.

    Raises:
        ConfigurationError: The search path names no schema, or finds the tables in several; or a schema_translate_map
            would send our statements elsewhere.
    """
    if tables.configured is not None:
        found = tables
    elif tables.schema is not None:
        found = tables.within(tables.schema)
    elif connection.dialect.name == "postgresql":
        found = tables.within(_schema(connection, tables, must_exist=must_exist))
    else:
        found = tables.within(_MAIN)
    refuse_translation(connection, found)
    return found


def located_for(session: Session, tables: Tables) -> Tables:
    """Return the tables for a call from any session: in a worker's session the worker's own, else `located`."""
    known: Tables | None = session.info.get(_KEY)
    if known is not None and known.schema is not None and tables in (known.configured, known):
        refuse_translation(session.connection(), known)
        return tables if tables == known else tables.within(known.schema)
    return located(session.connection(), tables, must_exist=True)


def remember(session: Session, tables: Tables) -> None:
    """Make `located_for` return the worker's tables in the worker's sessions, whatever a handler sets there."""
    session.info[_KEY] = tables


def is_a_workers(session: Session) -> bool:
    """Return whether a worker gave this session to a handler."""
    return _KEY in session.info


def _schema(connection: Connection, tables: Tables, *, must_exist: bool) -> str:
    rows = connection.execute(_FIND, {"names": [*_names(tables), tables.version_table]}).all()
    if not rows:
        raise ConfigurationError(
            f"database: the search_path of this connection ({_search_path(connection)}) names no schema that exists "
            "and may be used; correct it, or give Tables(schema=...)"
        )
    first: dict[str, str] = {}
    for schema, name in rows:
        if name is not None:
            first.setdefault(name, schema)
    schemas = list(dict.fromkeys(first.values()))
    if len(schemas) > 1:
        parts = "; ".join(f"in {schema!r}: {_some(first, schema)}" for schema in schemas)
        raise ConfigurationError(
            f"database: the search_path of this connection finds consumerkit's tables in several schemas ({parts}); "
            "name the one that is meant, by Tables(schema=...)"
        )
    if must_exist and not schemas:
        raise ConfigurationError(
            f"database: the search_path of this connection ({_search_path(connection)}) finds none of consumerkit's "
            f"tables ({tables.prefix}*); name their schema, by Tables(schema=...), or run consumerkit db upgrade"
        )
    return schemas[0] if schemas else str(rows[0].schema)


def refuse_translation(connection: Connection, tables: Tables) -> None:
    """Refuse a schema_translate_map that would send our statements elsewhere.

    Raises:
        ConfigurationError: The connection has one.
    """
    given: Any = connection.get_execution_options().get("schema_translate_map") or {}
    configured = None if tables.configured is None else tables.configured.schema
    for name in (configured, tables.schema):
        if name in given and given[name] != name:
            way_out = "leave that schema out of the map" if name else "name their schema, by Tables(schema=...)"
            raise ConfigurationError(
                f"database: schema_translate_map={{{name!r}: {given[name]!r}}} would send consumerkit's statements to "
                f"other tables than those it started with; {way_out}"
            )


def untranslated(connection: Connection, tables: Tables) -> None:
    """Remove a handler's mapping of our schema from the connection's schema_translate_map."""
    given: Any = connection.get_execution_options().get("schema_translate_map") or {}
    if tables.schema in given:
        others = {name: target for name, target in given.items() if name != tables.schema}
        connection.execution_options(schema_translate_map=others)


def _names(tables: Tables) -> list[str]:
    return [table.name for table in tables.metadata.tables.values()]


def _some(first: dict[str, str], schema: str) -> str:
    names = sorted(name for name, found in first.items() if found == schema)
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _search_path(connection: Connection) -> str:
    return str(connection.scalar(text("SELECT current_setting('search_path')")))
