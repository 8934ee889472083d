"""How far a backfill has come: a key in the ledger, whose result is the position as text."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, and_, insert, update

from consumerkit.handlers.message_id import possible_digests
from consumerkit.storage.keys import Key, KeyLedger

CHECKPOINT: Final = "checkpoint"
_DIGEST: Final = possible_digests(CHECKPOINT)[0]


def lock(keys: KeyLedger, connection: Connection, owner: str, first: str) -> str:
    """Return the position, or `first` where there is none yet; others wait until this transaction ends."""
    table = keys.tables.message_results
    c = table.c
    keys.claim(connection, Key(owner, _DIGEST, CHECKPOINT))
    here = {"consumer": keys.number(connection, owner), "digest": _DIGEST}
    mine = and_(*(c[name] == value for name, value in here.items()))
    # An update that changes nothing: it waits, and then reads what the one before has committed.
    found = connection.execute(
        update(table).where(mine).values(result=c.result).returning(c.result)
    ).scalar_one_or_none()
    if found is None:
        connection.execute(insert(table).values(**here, result=first))
        return first
    return str(found)


def move(keys: KeyLedger, connection: Connection, owner: str, position: str) -> None:
    """Write the position, and when it moved; `lock` has been called in this transaction."""
    results, ledger = keys.tables.message_results, keys.tables.processed_messages
    number = keys.number(connection, owner)
    for table, values in ((results, {"result": position}), (ledger, {"processed_at": keys.now()})):
        c = table.c
        connection.execute(update(table).where(c.consumer == number, c.digest == _DIGEST).values(values))
