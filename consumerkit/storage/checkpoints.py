"""How far a backfill is: the position is stored as text, as the result of a key in the ledger."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, and_, insert, update

from consumerkit.handlers.message_id import possible_digests
from consumerkit.storage.keys import Key, KeyLedger

CHECKPOINT: Final = "checkpoint"
_DIGEST: Final = possible_digests(CHECKPOINT)[0]


def lock(keys: KeyLedger, connection: Connection, owner: str, first: str) -> str:
    """Return the position, or `first` if there is none yet; other callers wait until this transaction ends."""
    table = keys.tables.message_results
    c = table.c
    keys.claim(connection, Key(owner, _DIGEST, CHECKPOINT))
    here = {"consumer": keys.number(connection, owner), "digest": _DIGEST}
    mine = and_(*(c[name] == value for name, value in here.items()))
    # This update changes nothing. It waits for the lock and then reads what the previous holder
    # committed.
    found = connection.execute(
        update(table).where(mine).values(result=c.result).returning(c.result)
    ).scalar_one_or_none()
    if found is None:
        connection.execute(insert(table).values(**here, result=first))
        return first
    return str(found)


def move(keys: KeyLedger, connection: Connection, owner: str, position: str) -> None:
    """Write the position and the time of the move; the caller has called `lock` in this transaction."""
    results, ledger = keys.tables.message_results, keys.tables.processed_messages
    number = keys.number(connection, owner)
    for table, values in ((results, {"result": position}), (ledger, {"processed_at": keys.now()})):
        c = table.c
        connection.execute(update(table).where(c.consumer == number, c.digest == _DIGEST).values(values))
