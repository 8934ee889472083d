"""What a worker needs from the server and its role: checked at its start, and printed as grants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, Table, text

from consumerkit.errors import StartError
from consumerkit.storage.tables import Tables

_ALL: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
# Records of people's actions are never changed.
_APPEND: Final = ("SELECT", "INSERT")
_ENCODING: Final = text("SELECT current_setting('server_encoding')")
_MISSING: Final = text("""
    SELECT current_user, "right" || ' on ' || name
    FROM unnest(CAST(:names AS text[]), CAST(:rights AS text[])) AS wanted (name, "right")
    WHERE NOT has_table_privilege(name, "right")
    UNION ALL
    SELECT current_user, 'USAGE on sequence ' || pg_get_serial_sequence(name, "column")
    FROM unnest(CAST(:numbered AS text[]), CAST(:columns AS text[])) AS wanted (name, "column")
    WHERE NOT has_sequence_privilege(pg_get_serial_sequence(name, "column"), 'USAGE')
""")


def check(connection: Connection, tables: Tables) -> None:
    """Check the database's encoding and the role's rights on our tables, which must exist.

    Raises:
        StartError: The encoding is not UTF8, or a right is missing.
    """
    if connection.dialect.name != "postgresql":
        return
    encoding = connection.scalar(_ENCODING)
    if encoding != "UTF8":
        raise StartError(
            f"database: its encoding is {encoding}, which cannot hold every message ID, key and error text; create "
            "the database with ENCODING 'UTF8'"
        )
    wanted = [(quoted(table), right) for table in _tables(tables) for right in _rights(tables, table)]
    numbered = list(_numbered(tables))
    missing = connection.execute(
        _MISSING,
        {
            "names": [name for name, _ in wanted],
            "rights": [right for _, right in wanted],
            "numbered": [quoted(table) for table, _ in numbered],
            "columns": [column for _, column in numbered],
        },
    ).all()
    if missing:
        role, first = missing[0][0], missing[0][1].replace('"', "")
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise StartError(
            f"database: the role {role} lacks {first}{more}; `consumerkit grants` prints what the owner of the tables "
            "must execute"
        )


def grants(tables: Tables, *, worker: str, reader: str, migrator: str) -> list[str]:
    """Return the statements that give three roles the rights they need; the tables' owner executes them.

    Args:
        tables: The tables, under the schema in which they were found.
        worker: Runs workers, and the commands that change something.
        reader: Runs the commands that only read.
        migrator: Runs `consumerkit db upgrade`; if the tables exist already, it must own them too.
    """
    schema = _name(tables.schema or "public")
    version = f"{schema}.{tables.version_table}"
    names = [quoted(table) for table in _tables(tables)]
    sequences = [f"{schema}.{table.name}_{column}_seq" for table, column in _numbered(tables)]
    return [
        f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {_name(migrator)};",
        f"GRANT USAGE ON SCHEMA {schema} TO {_name(worker)}, {_name(reader)};",
        *(
            f"GRANT {', '.join(_rights(tables, table))} ON {quoted(table)} TO {_name(worker)};"
            for table in _tables(tables)
        ),
        f"GRANT USAGE ON SEQUENCE {', '.join(sequences)} TO {_name(worker)};",
        f"GRANT SELECT ON {version} TO {_name(worker)};",
        f"GRANT SELECT ON {', '.join([*names, version])} TO {_name(reader)};",
    ]


def quoted(table: Table) -> str:
    """Return a table's name as it stands in a statement."""
    return table.name if table.schema is None else f"{_name(table.schema)}.{table.name}"


def _tables(tables: Tables) -> list[Table]:
    return list(tables.metadata.tables.values())


def _rights(tables: Tables, table: Table) -> tuple[str, ...]:
    return _APPEND if table is tables.operator_actions else _ALL


def _numbered(tables: Tables) -> Iterator[tuple[Table, str]]:
    for table in _tables(tables):
        if (column := table.autoincrement_column) is not None:
            yield table, column.name


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
