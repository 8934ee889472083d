"""Which messages are already in the parking lot, and which other messages have their places."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, select, tuple_, update

from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.origins import (
    MARK,
    Clash,
    MessageIdentity,
    Origin,
    clash,
    home,
    identity,
    identity_of,
    moved,
    origin,
)
from consumerkit.storage.parking.parked import IDENTITY, Kind, ParkedMessage, row_of

if TYPE_CHECKING:
    from consumerkit.storage.parking.lot import ParkingLot

_WITHOUT_CONTENT = frozenset({Kind.HELD, Kind.RELEASED})


class ParkedPlaces(NamedTuple):
    """Where messages are to be parked.

    Attributes:
        rows: The messages in the same order; those whose place another message has get an origin of
            their own.
        found: The numbers of the messages that are in the lot already, by origin.
        clashes: The new messages that stand beside another one.
    """

    rows: list[ParkedMessage]
    found: dict[Origin, int]
    clashes: list[Clash]


def places(lot: ParkingLot, connection: Connection, parked: Sequence[ParkedMessage]) -> ParkedPlaces:
    """Look for messages in the lot: for a message without an ID, no claim shows that it was delivered again.

    A message that has an ID by now, and so a claim, gets it in its row too. A row of another
    message at the same place stays unchanged: neither message may run with the other's payload
    under its own ID.
    """
    if not parked:
        return ParkedPlaces([], {}, [])
    asked = {origin(one.message) for one in parked} | {_beside(one) for one in parked if one.digest is None}
    there = _rows(lot, connection, asked)
    if not there:
        return ParkedPlaces(list(parked), {}, [])
    taken = [one for one in parked if _is_anothers(lot, connection, there.get(origin(one.message)), one)]
    there |= _rows(lot, connection, {_beside(one) for one in taken} - asked)
    rows, clashes = list(parked), []
    for at, one in enumerate(parked):
        free = there.get(origin(one.message)) is None
        if one in taken or (free and one.digest is None and _beside(one) in there):
            rows[at] = replace(one, message=moved(one.message, _beside(one)[0]))
            if one in taken and _beside(one) not in there:
                row = there[origin(one.message)]
                clashes.append(clash(one.message, one.message_id, "parked_messages", row.id))
    found = {origin(one.message): there[origin(one.message)].id for one in rows if origin(one.message) in there}
    _identify(lot, connection, rows, found)
    return ParkedPlaces(rows, found, clashes)


def stands_for(lot: ParkingLot, connection: Connection, row: Any) -> MessageIdentity:
    """Return the identity of a row's message; if the row only holds a key, its dead letter identifies it."""
    if Kind(row.kind) in _WITHOUT_CONTENT:
        c = lot.tables.dead_letters.c
        at = (c.consumer == row.consumer, c.topic_id == row.topic_id, c.partition == row.partition)
        which = (*at, c.offset == row.offset) if row.dead_letter is None else (c.id == row.dead_letter,)
        letter = connection.execute(select(lot.tables.dead_letters).where(*which)).one_or_none()
        if letter is not None:
            return dead_letters.known(letter, lot.tables)
    return identity_of(row, lot.tables.sealer, size=_size(row))


def _size(row: Any) -> int:
    return len(row.key or b"") + len(row.value or b"")


def _is_anothers(lot: ParkingLot, connection: Connection, row: Any | None, one: ParkedMessage) -> bool:
    if row is None:
        return False
    if one.kind in _WITHOUT_CONTENT and one.dead_letter is not None and one.dead_letter == row.dead_letter:
        return False
    return not stands_for(lot, connection, row).agrees(_own(lot, connection, one))


def _own(lot: ParkingLot, connection: Connection, one: ParkedMessage) -> MessageIdentity:
    if one.kind in _WITHOUT_CONTENT and one.dead_letter is not None:
        table = lot.tables.dead_letters
        letter = connection.execute(select(table).where(table.c.id == one.dead_letter)).one_or_none()
        if letter is not None:
            return dead_letters.known(letter, lot.tables)
    return _of(one)


def _of(one: ParkedMessage) -> MessageIdentity:
    return identity(one.message, one.digest, one.fingerprint, one.fingerprint_version)


def _beside(one: ParkedMessage) -> Origin:
    topic_id, partition, offset = origin(one.message)
    if one.kind in _WITHOUT_CONTENT:
        return f"{home(topic_id)}{MARK}{one.dead_letter}", partition, offset
    return (
        home(topic_id) + identity(one.message, one.digest, one.fingerprint, one.fingerprint_version).mark,
        partition,
        offset,
    )


def _rows(lot: ParkingLot, connection: Connection, origins: Collection[Origin]) -> dict[Origin, Any]:
    if not origins:
        return {}
    table = lot.tables.parked_messages
    c = table.c
    here = tuple_(c.topic_id, c.partition, c.offset).in_(list(origins))
    rows = connection.execute(select(table).where(c.consumer == lot.consumer, here))
    return {(row.topic_id, row.partition, row.offset): row for row in rows}


def _identify(
    lot: ParkingLot, connection: Connection, rows: Sequence[ParkedMessage], found: Mapping[Origin, int]
) -> None:
    table = lot.tables.parked_messages
    for one in rows:
        number = found.get(origin(one.message))
        if number is not None and one.digest is not None:
            values = {name: value for name, value in row_of(one).items() if name in IDENTITY}
            connection.execute(update(table).where(table.c.id == number).values(**values))
