"""Redriven dead letters in the parking lot, and resends that replace them."""

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
# A dead letter's record is copied as its row has it: nothing is decoded, and sealed values stay
# sealed.
COPIED = ("topic", "topic_id", "partition", "offset", "timestamp", "key", "value", "headers", "sealed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comeback:
    """A dead letter to park again.

    Attributes:
        letter: Its ID.
        record: The columns of `COPIED`.
        digest, message_id, fingerprint, fingerprint_version: Its identity from now on; digest None
            if the ID is determined when it runs.
    """

    letter: int
    record: Values
    digest: bytes | None
    message_id: str
    fingerprint: bytes
    fingerprint_version: int | None = None

    @property
    def spot(self) -> Spot:
        """Where it may take the place of a row that holds its key."""
        key = self.record["key"]
        return self.record["topic"], self.record["partition"], None if key is None else bytes(key), self.digest


def standing(lot: ParkingLot, connection: Connection, origins: Sequence[Origin]) -> dict[Origin, Any]:
    """Return the rows in the lot of messages from these places in the log."""
    table = lot.tables.parked_messages
    c = table.c
    here = tuple_(c.topic_id, c.partition, c.offset).in_(origins)
    rows = connection.execute(select(table).where(c.consumer == lot.consumer, here))
    return {(row.topic_id, row.partition, row.offset): row for row in rows}


def bring_back(
    lot: ParkingLot, connection: Connection, letters: Sequence[Comeback], *, ordered: bool, any_key: bool
) -> None:
    """Park dead letters of one partition, in order, under its fence; a letter that holds its key runs in its row.

    So does a letter whose key another letter of its message ID holds: behind that one it would wait
    for ever.

    Args:
        lot: The consumer's lot.
        connection: The caller's, who commits.
        letters: In the order of the log.
        ordered: Whether messages run one after another.
        any_key: Whether that order is the partition's, instead of each key's.
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
    """Park messages as `ParkingLot.park` does, but put a resend of a dead ID into the row that holds its key.

    Such a resend replaces the dead message. Behind that row it would wait for a person's decision,
    and the person would wait for the resend's outcome.

    Returns:
        Their numbers in the lot, in order, and the messages that stand beside another message at
        their place.
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
    """Turn a row that holds its key into a resend; False if another partition's owner has released it."""
    table = lot.tables.parked_messages
    statement = update(table).where(table.c.id == number, table.c.kind == Kind.HELD.value)
    values = {"parked_at": lot.dialect.in_seconds(0.0), **lot.row(resend)}
    return connection.execute(statement.values(**values)).rowcount == 1


def release(lot: ParkingLot, connection: Connection, letters: Sequence[int], *, any_key: bool) -> None:
    """Release the keys that dead letters hold, under the partition's fence.

    The rows stay until the partition's owner takes them out: it blocks their keys in its memory.
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
    """Return the numbers of the rows by which letters of these message IDs hold their keys, by spot."""
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
