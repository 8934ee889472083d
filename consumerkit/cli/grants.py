"""`consumerkit grants`: prints the commands that give database roles or a Kafka principal their rights."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from consumerkit.cli import kafka_rules
from consumerkit.cli.database import PrefixOption, SchemaOption, TablesPlace, UrlOption, opened, place
from consumerkit.cli.output import say
from consumerkit.cli.target import TargetArgument, given
from consumerkit.cli.target import opened as opened_target
from consumerkit.errors import ConfigurationError
from consumerkit.observability.printable import is_printable
from consumerkit.storage import server
from consumerkit.storage.tables import DEFAULT_PREFIX

_LONGEST_ROLE: Final = 63
"""The most bytes of a name that PostgreSQL keeps."""


def grants(
    target: TargetArgument = None,
    database: UrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
    schema: SchemaOption = None,
    worker: Annotated[
        str, typer.Option(metavar="ROLE", help="Runs workers and the commands that change something.")
    ] = "consumerkit",
    reader: Annotated[str, typer.Option(metavar="ROLE", help="Reads only.")] = "consumerkit_reader",
    migrator: Annotated[str, typer.Option(metavar="ROLE", help="Runs `db upgrade`.")] = "consumerkit_migrator",
    kafka: Annotated[
        str | None,
        typer.Option(
            metavar="PRINCIPAL",
            help="Print Kafka's access rules for this principal instead, such as User:shop. Needs a target.",
            show_default=False,
        ),
    ] = None,
    writes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOPIC",
            help="With --kafka: one more topic that handlers write to, missing in their publishes; can be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the rights that worker, reader and migrator need.

    For PostgreSQL: the owner of the tables executes them, and again after an upgrade. The command changes nothing. No
    role may
    alter or remove what is recorded in operator_actions. With --kafka: commands of Kafka's own tool, for the topics
    that the handlers read or declare in publishes, their groups, their dead-letter topics, and those of --writes.
    """
    if kafka is not None:
        for command in asyncio.run(_commands(given(target), _principal(kafka), writes or ())):
            say(command)
        return
    if writes:
        raise ConfigurationError("--writes goes with --kafka PRINCIPAL, such as --kafka User:shop")
    for option, role in (("--worker", worker), ("--reader", reader), ("--migrator", migrator)):
        if not 0 < len(role.encode()) <= _LONGEST_ROLE or "://" in role or not is_printable(role):
            raise ConfigurationError(f"{option}: the value is not a role's name; give one of at most 63 bytes")
    where = place(target, database, prefix, schema)
    for statement in asyncio.run(_printed(where, worker, reader, migrator)):
        say(statement)


def _principal(text: str) -> str:
    kind, colon, name = text.partition(":")
    if not colon or not kind.isalpha() or not name or not is_printable(text):
        raise ConfigurationError("--kafka: the value is not a principal; write KIND:NAME, such as User:shop")
    return text


async def _commands(target: str, principal: str, written: Sequence[str]) -> list[str]:
    async with opened_target(target) as worker:
        try:
            return kafka_rules.commands(kafka_rules.rules(worker.declarations, written), principal)
        finally:
            await worker.database.dispose()


async def _printed(where: TablesPlace, worker: str, reader: str, migrator: str) -> list[str]:
    async with opened(where) as found:
        if found.database.dialect_name != "postgresql":
            raise ConfigurationError("grants: SQLite has no roles; who may write the file may do everything")
        return server.grants(found.tables, worker=worker, reader=reader, migrator=migrator)
