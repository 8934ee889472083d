"""`consumerkit grants`: the statements that give roles the rights which they need."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

import typer

from consumerkit.cli.database import Place, PrefixOption, SchemaOption, UrlOption, opened, place
from consumerkit.cli.output import say
from consumerkit.cli.target import TargetArgument
from consumerkit.errors import ConfigurationError
from consumerkit.observability.printable import is_printable
from consumerkit.storage import server
from consumerkit.storage.tables import DEFAULT_PREFIX

_LONGEST_ROLE: Final = 63
"""Bytes that PostgreSQL keeps of a name."""


def grants(
    target: TargetArgument = None,
    database: UrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
    schema: SchemaOption = None,
    worker: Annotated[str, typer.Option(metavar="ROLE", help="Runs workers, and changes things.")] = "consumerkit",
    reader: Annotated[str, typer.Option(metavar="ROLE", help="Only looks.")] = "consumerkit_reader",
    migrator: Annotated[str, typer.Option(metavar="ROLE", help="Runs `db upgrade`.")] = "consumerkit_migrator",
) -> None:
    """Print the rights that worker, reader and migrator need.

    For PostgreSQL; the owner of the tables executes them, and again after an upgrade. Nothing is changed. No role may
    alter or remove what is recorded in operator_actions.
    """
    for option, role in (("--worker", worker), ("--reader", reader), ("--migrator", migrator)):
        if not 0 < len(role.encode()) <= _LONGEST_ROLE or "://" in role or not is_printable(role):
            raise ConfigurationError(f"{option}: what stands there is not a role's name, of 63 bytes at most")
    where = place(target, database, prefix, schema)
    for statement in asyncio.run(_printed(where, worker, reader, migrator)):
        say(statement)


async def _printed(where: Place, worker: str, reader: str, migrator: str) -> list[str]:
    async with opened(where) as found:
        if found.database.dialect_name != "postgresql":
            raise ConfigurationError("grants: SQLite has no roles; who may write the file may do everything")
        return server.grants(found.tables, worker=worker, reader=reader, migrator=migrator)
