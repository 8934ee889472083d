"""Dead letters on their way back through the parking lot, and out of it; and resends, which come in their stead."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, tuple_, update

from consumerkit.outcome import Reason
from consumerkit.storage.origins import Clash, Origin, origin
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import Kind, ParkedMessage, key_digest, plain
from consumerkit.storage.parking.places import places

Values = Mapping[str, Any]
# Where letters of a message ID hold their key: topic, partition, key, digest.
Spot = tuple[str, int, bytes | None, bytes | None]
# A dead letter's record goes back as it stands in its row: nothing is decoded, and what is sealed stays so.
COPIED = ("topic", "topic_id", "partition", "offset", "timestamp", "key", "value", "headers", "sealed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comeback:
    """A dead letter to park again.

    Attributes:
        letter: Its ID.
        record: The columns of `COPIED`.
        digest, message_id, fingerprint, fingerprint_version: What it is known by from now on; digest None where that is
            found out when it runs.
    """

    letter: int
    record: Values
    digest: bytes | None
    message_id: str
    fingerprint: bytes
    fingerprint_version: int | None = None

    @property
    def spot(self) -> Spot:
        """Where it may stand in for another one."""
        key = self.record["key"]
        return self.record["topic"], self.record["partition"], None if key is None else bytes(key), self.digest


def standing(lot: ParkingLot, connection: Connection, origins: Sequence[Origin]) -> dict[Origin, Any]:
    """Return the rows of messages from these places in the log that are in the lot."""
    table = lot.tables.parked_messages
    c = table.c
    here = tuple_(c.topic_id, c.partition, c.offset).in_(origins)
    rows = connection.execute(select(table).where(c.consumer == lot.consumer, here))
    return {(row.topic_id, row.partition, row.offset): row for row in rows}


def bring_back(
    lot: ParkingLot, connection: Connection, letters: Sequence[Comeback], *, ordered: bool, any_key: bool
) -> None:
    """Park dead letters of one partition, in order, under its fence; one that holds its key runs in its place.

    So does one whose key is held by another letter of its message ID: behind that it would wait for ever.

    Args:
        lot: Their consumer's.
        connection: The caller's; it commits.
        letters: In the order of the log.
        ordered: Whether those of one key run one after another, or, with
        any_key: those of the partition.
    """
    table = lot.tables.parked_messages
    now = lot.dialect.in_seconds(0.0)
    held = _holding(lot, connection, [one.letter for one in letters])
    spots = _spots(lot, connection, {one.digest for one in letters if one.letter not in held and one.digest})
    held |= {one.letter: spots[spot] for one in letters if one.letter not in held and (spot := one.spot) in spots}
    numbers = [held[one.letter] for one in letters if one.letter in held]
    for one in letters:
        if one.letter in held:
            statement = update(table).where(table.c.id == held[one.letter])
            connection.execute(statement.values(**_row(one), parked_at=now))
    new = [{"consumer": lot.consumer, "due_at": None, **_row(one)} for one in letters if one.letter not in held]
    if new:
        numbers += connection.execute(insert(table).returning(table.c.id), new).scalars()
    if ordered:
        lot.wake_heads(connection, numbers, any_key=any_key)
    else:
        connection.execute(update(table).where(table.c.id.in_(numbers)).values(due_at=now))


def park(
    lot: ParkingLot, connection: Connection, parked: Sequence[ParkedMessage], *, any_key: bool
) -> tuple[list[int], list[Clash]]:
    """Park messages as `ParkingLot.park` does, but resends of a dead ID in the place where that one holds their key.

    Such a resend has come instead of the dead message. Behind it, it would wait for a person, who in turn would have to
    wait for the resend's outcome.

    Returns:
        Their numbers in the lot, in order, and which of them stand beside another message at their place.
    """
    rows, found, clashes = places(lot, connection, parked)
    fresh = [one for one in rows if origin(one.message) not in found]
    resends = [one for one in fresh if one.dead_letter is not None and one.kind is Kind.MESSAGE and one.wait is None]
    spots = _spots(lot, connection, {one.digest for one in resends if one.digest is not None})
    stood_in = {}
    for one in resends:
        number = spots.pop((one.message.topic, one.message.partition, one.message.key, one.digest), None)
        if number is not None and _stand_in(lot, connection, number, one):
            stood_in[origin(one.message)] = number
    lot.wake_heads(connection, list(stood_in.values()), any_key=any_key)
    return lot.add(connection, rows, found | stood_in, any_key=any_key), clashes


def _stand_in(lot: ParkingLot, connection: Connection, number: int, resend: ParkedMessage) -> bool:
    """Turn a row that holds its key into a resend; False where another partition's owner has released it."""
    table = lot.tables.parked_messages
    statement = update(table).where(table.c.id == number, table.c.kind == Kind.HELD.value)
    values = {"parked_at": lot.dialect.in_seconds(0.0), **lot.row(resend)}
    return connection.execute(statement.values(**values)).rowcount == 1


def release(lot: ParkingLot, connection: Connection, letters: Sequence[int], *, any_key: bool) -> None:
    """Release the keys that dead letters hold, under the partition's fence.

    The rows stay until the partition's owner takes them out: it has their keys blocked in its memory.
    """
    table = lot.tables.parked_messages
    numbers = list(_holding(lot, connection, letters).values())
    connection.execute(update(table).where(table.c.id.in_(numbers)).values(kind=Kind.RELEASED.value))
    lot.wake_heads(connection, numbers, any_key=any_key)


def _holding(lot: ParkingLot, connection: Connection, letters: Sequence[int]) -> dict[int, int]:
    """Return the numbers of the rows by which letters hold their keys, by letter."""
    c = lot.tables.parked_messages.c
    held = (c.consumer == lot.consumer, c.dead_letter.in_(letters), c.kind == Kind.HELD.value)
    return {row.dead_letter: row.id for row in connection.execute(select(c.dead_letter, c.id).where(*held))}


def _spots(lot: ParkingLot, connection: Connection, digests: Collection[bytes]) -> dict[Spot, int]:
    """Return the numbers of the rows by which letters of these message IDs hold their keys, by where that is."""
    if not digests:
        return {}
    row, letter = lot.tables.parked_messages.c, lot.tables.dead_letters.c
    rows = connection.execute(
        select(row.id, row.topic, row.partition, row.key, letter.digest)
        .join_from(lot.tables.parked_messages, lot.tables.dead_letters, row.dead_letter == letter.id)
        .where(row.consumer == lot.consumer, row.kind == Kind.HELD.value)
        .where(letter.digest.in_(digests), letter.reason != Reason.CONFLICT.value)
    )
    return {(one.topic, one.partition, plain(one.key), plain(one.digest)): one.id for one in rows}


def _row(one: Comeback) -> dict[str, Any]:
    return {
        **one.record,
        "key_digest": key_digest(None if one.record["key"] is None else bytes(one.record["key"])),
        "digest": one.digest,
        "message_id": one.message_id,
        "fingerprint": one.fingerprint,
        "fingerprint_version": one.fingerprint_version,
        "attempts": 0,
        "deliveries": 0,
        "first_failed_at": None,
        "error_type": "",
        "error": "",
        "stack": "",
        "kind": Kind.MESSAGE.value,
        "dead_letter": one.letter,
    }
