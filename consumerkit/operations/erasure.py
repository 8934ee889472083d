"""Erases the stored data of one key: the payloads of a person who asked to be forgotten."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from consumerkit.errors import ConfigurationError
from consumerkit.storage import audit, consumers
from consumerkit.storage.database import Database, Given, Run
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.maintenance.erasure import EraseStatements
from consumerkit.storage.tables import DEFAULT_TABLES, Tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """What was erased for one handler, or would be.

    Attributes:
        handler: Its name; empty for the outbox, which belongs to no handler.
        dead_letters: Dead letters that lost their payload.
        parked: Messages that were removed from the parking lot for good.
        outbox: Messages that were removed from the outbox unsent.
        busy: Partitions whose owner had a transaction open; erase again.
    """

    handler: str
    dead_letters: int = 0
    parked: int = 0
    outbox: int = 0
    busy: tuple[str, ...] = ()


async def erase(
    database: Given,
    key: str | bytes,
    *,
    handlers: Collection[str] | None = None,
    tables: Tables = DEFAULT_TABLES,
    by: str | None = None,
    dry_run: bool = False,
) -> list[Erased]:
    """Erase the database's data of messages with one key; workers may run at the same time.

    Dead letters lose key, value, headers, message ID and the text of their errors, and are discarded unless they are
    resolved. Their results and ID texts in the ledger are erased, too. Parked messages can no longer be handled: each
    leaves a discarded dead letter without a payload. Messages in the outbox are removed unsent. Kafka's own records
    stay.

    Args:
        database: As for `Worker(database=...)`.
        key: The record key; text is taken as UTF-8.
        handlers: Erase only these handlers' data, and not the outbox, which belongs to no handler.
        tables: The table definitions.
        by: Who erases, for the record; None records the operating system's user. The key itself is not recorded.
        dry_run: Whether to count and change nothing.

    Raises:
        ConfigurationError: There is no handler of such a name.

    Example:
        >>> import asyncio
        >>> from consumerkit.storage import schema
        >>> from consumerkit.storage.database import Database
        >>> from tempfile import mkdtemp
        >>> url = f"sqlite:///{mkdtemp()}/shop.sqlite"
        >>> _ = schema.upgrade(Database(url))
        >>> asyncio.run(erase(url, "alice"))
        [Erased(handler='', dead_letters=0, parked=0, outbox=0, busy=())]
    """
    opened = Database(database)
    try:
        tables = await opened.locate(tables)
        return await erase_in(
            opened.run,
            EraseStatements(tables, dialect_for(opened.dialect_name, tables)),
            key.encode() if isinstance(key, str) else key,
            handlers,
            by=by or audit.current_user(),
            dry_run=dry_run,
        )
    finally:
        await opened.dispose()


async def erase_in(
    run: Run, erasing: EraseStatements, key: bytes, handlers: Collection[str] | None, *, by: str, dry_run: bool
) -> list[Erased]:
    """Do the same as `erase` on an open database."""
    known: list[tuple[str, int]] = await run(partial(erasing.handlers, names=handlers))
    for name in handlers or ():
        if name not in dict(known):
            everyone = dict(await run(partial(erasing.handlers, names=None)))
            raise ConfigurationError(consumers.unknown(name, everyone))
    told = []
    for name, number in known:
        if dry_run:
            parked = await run(partial(erasing.count_parked, consumer=number, key=key))
            letters = await run(partial(erasing.count_letters, consumer=number, key=key))
            told.append(Erased(handler=name, dead_letters=letters, parked=parked))
        else:
            told.append(await _erase_of(run, erasing, name, number, key, by))
    if handlers is None:
        count = erasing.count_outbox if dry_run else partial(erasing.outbox, by=by)
        told.append(Erased(handler="", outbox=await run(partial(count, key=key))))
    return told


async def _erase_of(run: Run, erasing: EraseStatements, name: str, number: int, key: bytes, by: str) -> Erased:
    parked, busy = 0, []
    for partition in await run(partial(erasing.partitions, consumer=number, key=key)):
        work = partial(erasing.parked, consumer=number, partition=partition, key=key, by=by)
        gone = await run(work)
        if gone is None:
            busy.append(str(partition))
        parked += gone or 0
    letters = await run(partial(erasing.letters, consumer=number, key=key, by=by))
    return Erased(handler=name, dead_letters=letters, parked=parked, busy=tuple(busy))
