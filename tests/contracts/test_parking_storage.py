"""The statements of the parking lot and the fence, as the engine relies on them, on every database and driver."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from consumerkit.message import Message, TopicPartition
from consumerkit.storage import fence, progress
from consumerkit.storage.dialects import Limits
from consumerkit.storage.parking.lot import ParkedPlace, ParkingLot
from consumerkit.storage.parking.parked import Kind, ParkedMessage
from consumerkit.storage.progress import OWNER_BYTES
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.contracts import venues
from tests.contracts.database_client import DatabaseClient, Venue
from tests.contracts.dialect_contract import TOKEN, Stand, client, other, stand
from tests.services import PostgresServer

__all__ = ["client", "other", "stand"]
DRIVERS = ("psycopg", "psycopg-async", "asyncpg", "pysqlite", "aiosqlite")
HERE, THERE = TopicPartition("t", 3), TopicPartition("t", 4)
T = TypeVar("T")


@pytest.fixture(scope="module", params=DRIVERS)
def venue(
    request: pytest.FixtureRequest, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Venue]:
    driver: str = request.param
    if driver.endswith("sqlite"):
        yield from venues.sqlite(tmp_path_factory.mktemp("lot"), coroutines=driver == "aiosqlite")
    else:
        name, _, in_coroutines = driver.partition("-")
        yield from venues.postgresql(postgres, name, coroutines=bool(in_coroutines) or name == "asyncpg")


@pytest.fixture
def lot(stand: Stand) -> ParkingLot:
    return ParkingLot(DEFAULT_TABLES, stand.dialect, stand.consumer)


def record(
    offset: int, key: bytes | None = b"k", partition: int = HERE.partition, topic: str = "t", topic_id: str = ""
) -> Message:
    headers = (("h", b"\xff"), ("h", None))
    return Message(topic, partition, offset, key, b"\xff\x00v", headers, 7, topic_id or f"id-of-{topic}")


def parts(message: Message) -> tuple[object, ...]:
    """All that a message is."""
    place = (message.topic, message.topic_id, message.partition, message.offset)
    return (*place, message.key, message.value, message.headers, message.timestamp)


def digest(offset: int) -> bytes:
    return offset.to_bytes(16, "big")


def parked(offset: int, *, wait: float | None = 0.0, key: bytes | None = b"k", **given: Any) -> ParkedMessage:
    """A message to park: due at once; with `wait` None behind another."""
    where = {name: given.pop(name) for name in ("partition", "topic", "topic_id") if name in given}
    usual: dict[str, Any] = {"digest": digest(offset), "message_id": f"id-{offset}", "fingerprint": b"f" * 16}
    return ParkedMessage(message=record(offset, key, **where), wait=wait, **(usual | given))


def committed(client: DatabaseClient, work: Callable[[Connection], T]) -> T:
    """Do some work in a transaction of its own."""

    def whole(session: Session) -> T:
        found = work(session.connection())
        session.commit()
        return found

    return client.do(whole)


def park(client: DatabaseClient, lot: ParkingLot, *wanted: ParkedMessage, any_key: bool = False) -> list[int]:
    """Park messages; return their numbers, in the order given."""
    found = committed(client, lambda connection: lot.park(connection, wanted, any_key=any_key))
    return [found[one.message.topic_id, one.message.partition, one.message.offset] for one in wanted]


def every(client: DatabaseClient, lot: ParkingLot, partition: TopicPartition = HERE) -> list[ParkedMessage]:
    """What is parked of a partition, in order."""
    return committed(client, lambda connection: lot.heads(connection, partition, None, 1000, any_key=True))


def due(
    client: DatabaseClient, lot: ParkingLot, *partitions: TopicPartition, limit: int = 100, without: Sequence[int] = ()
) -> list[int]:
    """The offsets of what is due."""
    found = committed(client, lambda connection: lot.due(connection, partitions or (HERE,), limit, without=without))
    return [one.message.offset for one in found]


# Parking.


def test_a_parked_message_comes_back_whole(client: DatabaseClient, lot: ParkingLot) -> None:
    since = datetime(2024, 5, 1, 12, tzinfo=UTC)
    odd = parked(
        1, wait=50, key=b"\x00\xffk", attempts=3, first_failed_at=since, error_type="E", error="nul \x00", stack="at 1"
    )
    bare = parked(2, key=None, wait=60, digest=None, message_id="", fingerprint=b"")
    one, two = park(client, lot, odd, bare)
    first, second = every(client, lot)
    assert (first.id, second.id) == (one, two)
    assert [parts(first.message), parts(second.message)] == [parts(odd.message), parts(bare.message)]
    assert (first.digest, first.message_id, first.fingerprint) == (digest(1), "id-1", b"f" * 16)
    assert (second.digest, second.message_id, second.fingerprint) == (None, "", b"")
    assert (first.attempts, first.deliveries, first.error_type, first.stack) == (3, 0, "E", "at 1")
    assert first.error == "nul \\x00"
    assert first.first_failed_at is not None
    assert first.first_failed_at.replace(tzinfo=UTC) == since
    assert first.failing_for == pytest.approx(time.time() - since.timestamp(), abs=5)
    assert (second.first_failed_at, second.failing_for) == (None, 0.0)
    assert first.wait is not None
    assert 48 < first.wait <= 50
    assert not first.due_or_waiting


def test_no_messages_are_no_numbers(client: DatabaseClient, lot: ParkingLot) -> None:
    assert committed(client, lambda connection: lot.park(connection, [])) == {}


def test_numbers_rise_in_the_order_given(client: DatabaseClient, lot: ParkingLot) -> None:
    numbers = park(client, lot, *(parked(n, wait=None if n % 3 else 9.0) for n in range(12)))
    assert numbers == sorted(set(numbers))
    assert [one.message.offset for one in every(client, lot)] == list(range(12))


def test_a_message_is_parked_once_for_its_place_in_the_log(client: DatabaseClient, lot: ParkingLot) -> None:
    first = park(client, lot, parked(1, attempts=2, wait=50), parked(2, wait=None))
    again = park(client, lot, parked(1, attempts=1), parked(2), parked(3))
    assert again[:2] == first
    assert [(one.attempts, one.message.offset) for one in every(client, lot)] == [(2, 1), (0, 2), (0, 3)]
    assert due(client, lot) == [3]
    assert park(client, lot, parked(1, topic_id="id-of-a-new-t"))[0] not in first


def test_one_that_was_parked_without_an_id_gets_it(client: DatabaseClient, lot: ParkingLot) -> None:
    [number] = park(client, lot, parked(1, digest=None, message_id="", fingerprint=b"", attempts=2))
    assert park(client, lot, parked(1)) == [number]
    [found] = every(client, lot)
    assert (found.digest, found.message_id, found.fingerprint) == (digest(1), "id-1", b"f" * 16)
    assert found.attempts == 2
    park(client, lot, parked(1, digest=None, message_id="", fingerprint=b""))
    assert every(client, lot)[0].digest == digest(1)


def test_one_that_waits_behind_another_is_not_due(client: DatabaseClient, lot: ParkingLot) -> None:
    park(client, lot, parked(1, wait=50), parked(2, wait=None), parked(3, wait=None, key=b"\x00"))
    assert due(client, lot) == [3], "nothing of its key stood before it"
    park(client, lot, parked(4, wait=None), parked(5, wait=None, key=None))
    assert due(client, lot) == [3, 5], "without a key there is no order"
    assert [one.wait is None for one in every(client, lot)] == [False, True, False, True, False]


def test_one_that_waits_behind_what_is_gone_is_due_at_once(client: DatabaseClient, lot: ParkingLot) -> None:
    [head] = park(client, lot, parked(1, wait=50))
    committed(client, lambda connection: lot.remove(connection, [head]))
    park(client, lot, parked(2, wait=None), parked(3, wait=None))
    assert due(client, lot) == [2]


def test_what_stands_elsewhere_is_not_ahead(
    venue: Venue, client: DatabaseClient, lot: ParkingLot, stand: Stand
) -> None:
    stranger = replace(lot, consumer=Stand(venue).consumer)
    park(client, stranger, parked(1, wait=50))
    park(client, lot, parked(2, wait=50, partition=THERE.partition), parked(3, wait=50, topic="u"))
    park(client, lot, parked(4, wait=None))
    assert due(client, lot) == [4]


def test_with_any_key_one_waits_behind_whatever_is_parked_of_its_partition(
    client: DatabaseClient, lot: ParkingLot
) -> None:
    park(client, lot, parked(1, wait=50, key=b"a"), any_key=True)
    park(client, lot, parked(2, wait=None, key=b"b"), parked(3, wait=None, key=None), any_key=True)
    park(client, lot, parked(4, wait=None, key=b"a", partition=THERE.partition), any_key=True)
    assert due(client, lot, HERE, THERE) == [4]


# Looking.


def test_what_is_due_comes_longest_overdue_first(client: DatabaseClient, lot: ParkingLot) -> None:
    park(client, lot, parked(1, wait=-1), parked(2, wait=-3), parked(3, wait=5), parked(4, wait=None), parked(5))
    park(client, lot, parked(6, wait=-9, partition=THERE.partition), parked(7, wait=-9, topic="u"))
    numbers = {one.message.offset: one.id for one in every(client, lot)}
    assert due(client, lot) == [2, 1, 5]
    assert due(client, lot, HERE, THERE) == [6, 2, 1, 5]
    assert due(client, lot, limit=2) == [2, 1]
    assert due(client, lot, without=[numbers[2], numbers[5]]) == [1]
    assert due(client, lot, TopicPartition("nowhere", 0)) == []


def test_what_is_due_waits_for_the_databases_clock(client: DatabaseClient, lot: ParkingLot) -> None:
    park(client, lot, parked(1, wait=0.4))
    assert due(client, lot) == []
    time.sleep(0.45)
    assert due(client, lot) == [1]


def test_when_the_next_is_due_is_told(client: DatabaseClient, lot: ParkingLot) -> None:
    def next_due(*partitions: TopicPartition, without: Sequence[int] = ()) -> float | None:
        return committed(client, lambda connection: lot.next_due(connection, partitions, without=without))

    assert next_due(HERE) is None
    first, _ = park(client, lot, parked(1, wait=5), parked(2, wait=None))
    park(client, lot, parked(3, wait=-2, partition=THERE.partition), parked(4, wait=9, key=b"l"))
    assert next_due(HERE) == pytest.approx(5, abs=1)
    assert next_due(HERE, without=[first]) == pytest.approx(9, abs=1)
    assert next_due(HERE, THERE) == pytest.approx(-2, abs=1)
    assert next_due(TopicPartition("nowhere", 0)) is None


def test_the_heads_of_a_key_come_in_order(client: DatabaseClient, lot: ParkingLot) -> None:
    park(client, lot, parked(1, wait=9), parked(2, wait=None), parked(3, wait=0, key=b"a"), parked(4, wait=None))
    park(client, lot, parked(5, wait=None, partition=THERE.partition), parked(6, wait=0, key=None))

    def heads(key: bytes | None, limit: int = 9, *, any_key: bool = False) -> list[int]:
        found = committed(client, lambda connection: lot.heads(connection, HERE, key, limit, any_key=any_key))
        return [one.message.offset for one in found]

    assert heads(b"k") == [1, 2, 4]
    assert heads(b"k", 2) == [1, 2]
    assert heads(b"a") == [3]
    assert heads(b"k", any_key=True) == [1, 2, 3, 4, 6]
    assert [one.due_or_waiting for one in every(client, lot)] == [False, True, True, True, True]


def test_keys_and_places_are_told(venue: Venue, client: DatabaseClient, lot: ParkingLot) -> None:
    one, two, three = park(
        client, lot, parked(1, key=b"\x00a"), parked(2, wait=None, key=b"\x00a"), parked(3, key=None)
    )
    [four] = park(client, lot, parked(4, key=b"b", partition=THERE.partition))
    park(client, replace(lot, consumer=Stand(venue).consumer), parked(1), parked(5))
    assert committed(client, lambda connection: lot.load(connection, [HERE])[HERE]) == {
        b"\x00a": {one, two},
        None: {three},
    }
    assert committed(client, lambda connection: lot.load(connection, [THERE])[THERE]) == {b"b": {four}}
    assert committed(client, lambda connection: lot.load(connection, [TopicPartition("u", 3)])) == {("u", 3): {}}
    wanted = [digest(n) for n in (1, 3, 4, 5)]
    places = committed(client, lambda connection: lot.places(connection, wanted))
    assert set(places) == {
        ParkedPlace(HERE, b"\x00a", one),
        ParkedPlace(HERE, None, three),
        ParkedPlace(THERE, b"b", four),
    }


# An attempt.


def locked(client: DatabaseClient, lot: ParkingLot, one: ParkedMessage) -> bool | None:
    """Lock a message; the transaction stays open."""
    return client.do(lambda session: lot.lock(session.connection(), one))


def test_a_message_is_locked_that_is_as_it_was_read(client: DatabaseClient, lot: ParkingLot) -> None:
    park(client, lot, parked(1), parked(2, wait=None), parked(3, wait=50, key=b"l"))
    now, waiting, later = every(client, lot)
    assert locked(client, lot, now) is True
    assert locked(client, lot, waiting) is True
    assert locked(client, lot, later) is False, "not due yet"
    assert locked(client, lot, replace(now, attempts=1)) is False
    assert locked(client, lot, replace(now, digest=None)) is False
    assert locked(client, lot, replace(waiting, wait=0.0)) is False, "it was not promoted"
    assert locked(client, lot, replace(now, wait=None)) is False, "it was postponed, or promoted, since"
    assert locked(client, lot, replace(now, id=-1)) is None
    client.rollback()


def test_who_locks_it_second_waits_and_finds_it_gone(
    client: DatabaseClient, other: DatabaseClient, lot: ParkingLot
) -> None:
    [number] = park(client, lot, parked(1))
    [one] = every(client, lot)
    assert locked(client, lot, one) is True
    second = other.start(lambda session: lot.lock(session.connection(), one))
    time.sleep(0.3)
    assert not second.done()
    client.do(lambda session: lot.remove(session.connection(), [number]))
    client.commit()
    assert second.result(120) is None
    other.rollback()


def test_who_locks_it_second_waits_and_finds_it_postponed(
    client: DatabaseClient, other: DatabaseClient, lot: ParkingLot
) -> None:
    park(client, lot, parked(1))
    [one] = every(client, lot)
    assert locked(client, lot, one) is True
    second = other.start(lambda session: lot.lock(session.connection(), one))
    time.sleep(0.3)
    assert not second.done()
    client.do(lambda session: lot.postpone(session.connection(), one, replace(one, attempts=1, wait=-1.0)))
    client.commit()
    assert second.result(120) is False
    other.rollback()


def test_an_attempt_is_written_down_with_its_next_due_time(client: DatabaseClient, lot: ParkingLot) -> None:
    park(client, lot, parked(1), parked(2, wait=None))
    one = every(client, lot)[0]
    committed(client, lambda connection: lot.deliver(connection, one, begins=True))
    since = datetime(2024, 5, 1, 12, tzinfo=UTC)
    failed = replace(one, attempts=1, wait=30.0, first_failed_at=since, error_type="E", error="\udc80", stack="s")
    assert committed(client, lambda connection: lot.postpone(connection, one, failed))
    found, behind = every(client, lot)
    assert (found.id, found.attempts, found.deliveries, found.error_type) == (one.id, 1, 0, "E")
    assert (found.error, found.stack) == ("\\udc80", "s")
    assert parts(found.message) == parts(one.message)
    assert found.wait == pytest.approx(30, abs=2)
    assert found.failing_for > 0
    assert behind.attempts == 0
    assert committed(client, lambda connection: lot.postpone(connection, behind, replace(behind, attempts=3)))
    assert [(one.attempts, one.wait is None) for one in every(client, lot)] == [(1, False), (3, True)]


def test_an_attempt_does_not_overwrite_what_was_written_since_it_was_read(
    client: DatabaseClient, lot: ParkingLot
) -> None:
    park(client, lot, parked(1), parked(2, wait=None), parked(3, wait=50))
    now, waiting, later = every(client, lot)
    for read in (
        later,
        replace(now, attempts=1),
        replace(now, digest=None),
        replace(now, wait=None),
        replace(now, kind=Kind.REPEAT),
        replace(waiting, wait=0.0),
        replace(now, id=-1),
    ):
        assert not committed(client, partial(lot.postpone, read=read, parked=replace(read, attempts=9, wait=9.0)))
    assert [one.attempts for one in every(client, lot)] == [0, 0, 0]


def test_who_writes_an_attempt_down_second_waits_and_overwrites_nothing(
    client: DatabaseClient, other: DatabaseClient, lot: ParkingLot
) -> None:
    park(client, lot, parked(1))
    [one] = every(client, lot)
    failed = replace(one, attempts=1, wait=-1.0)
    assert client.do(lambda session: lot.postpone(session.connection(), one, failed))
    second = other.start(lambda session: lot.postpone(session.connection(), one, replace(failed, error="second")))
    time.sleep(0.3)
    assert not second.done()
    client.commit()
    assert second.result(120) is False
    other.rollback()
    assert [(found.attempts, found.error) for found in every(client, lot)] == [(1, one.error)]


def test_runs_are_counted_of_a_message_that_is_as_it_was_read(client: DatabaseClient, lot: ParkingLot) -> None:
    park(client, lot, parked(1), parked(2, key=b"l"))
    one = every(client, lot)[0]

    def deliver(what: ParkedMessage, *, begins: bool) -> list[int]:
        committed(client, lambda connection: lot.deliver(connection, what, begins=begins))
        return [found.deliveries for found in every(client, lot)]

    assert deliver(one, begins=True) == [1, 0]
    assert deliver(one, begins=True) == [2, 0]
    assert deliver(one, begins=False) == [1, 0]
    assert deliver(replace(one, attempts=5), begins=True) == [1, 0]
    assert deliver(replace(one, id=-1), begins=True) == [1, 0]
    committed(client, lambda connection: lot.postpone(connection, one, replace(one, attempts=1, wait=50.0)))
    assert deliver(replace(one, attempts=1), begins=True) == [0, 0], "it is not due: nothing runs"


# Leaving.


def test_what_is_removed_is_gone(client: DatabaseClient, lot: ParkingLot) -> None:
    numbers = park(client, lot, *(parked(n) for n in range(5)))
    committed(client, lambda connection: lot.remove(connection, [numbers[0], numbers[3], -1]))
    assert [one.message.offset for one in every(client, lot)] == [1, 2, 4]


def promote(client: DatabaseClient, lot: ParkingLot, gone: ParkedMessage, *, any_key: bool = False) -> None:
    """Take a message out and make the next one due."""

    def work(connection: Connection) -> None:
        lot.remove(connection, [gone.id])
        lot.promote(connection, gone, any_key=any_key)

    committed(client, work)


def test_the_next_of_the_key_is_due_when_its_predecessor_has_left(client: DatabaseClient, lot: ParkingLot) -> None:
    park(client, lot, parked(1, wait=50), parked(2, wait=None), parked(3, wait=None))
    park(client, lot, parked(4, wait=50, key=b"l"), parked(5, wait=None, key=b"l"))
    for offset in (2, 3):
        promote(client, lot, every(client, lot)[0])
        assert due(client, lot) == [offset]
    promote(client, lot, every(client, lot)[0])
    assert due(client, lot) == []


def test_a_next_one_that_failed_before_keeps_its_due_time(client: DatabaseClient, lot: ParkingLot) -> None:
    park(client, lot, parked(1), parked(2, wait=50, attempts=1), parked(3, wait=None))
    promote(client, lot, every(client, lot)[0])
    assert due(client, lot) == []
    assert every(client, lot)[0].wait == pytest.approx(50, abs=2)


def test_with_any_key_the_next_of_the_partition_is_due(client: DatabaseClient, lot: ParkingLot) -> None:
    park(client, lot, parked(1, wait=50, key=None), any_key=True)
    park(client, lot, parked(2, wait=None, key=b"b"), parked(3, wait=None, key=b"a"), any_key=True)
    promote(client, lot, every(client, lot)[0], any_key=True)
    assert due(client, lot) == [2]
    promote(client, lot, every(client, lot)[0], any_key=True)
    assert due(client, lot) == [3]


def test_one_without_a_key_makes_nothing_due(client: DatabaseClient, lot: ParkingLot) -> None:
    park(client, lot, parked(1, wait=50, key=b"a"), parked(2, wait=None, key=b"a"), parked(3, key=None))
    promote(client, lot, every(client, lot)[2])
    assert due(client, lot) == []


# The fence.


class Owner:
    """One worker's side of the fence of a partition."""

    def __init__(self, stand: Stand, client: DatabaseClient) -> None:
        self.stand = stand
        self.client = client
        self.token: bytes | None = None

    def taking(self, *, wait: float = 0.0) -> Callable[[Session], fence.Taken | None]:
        def work(session: Session) -> fence.Taken | None:
            stand = self.stand
            taken = fence.acquire(session.connection(), stand.ledger, HERE, wait=wait, own=self.token)
            session.commit() if taken is not None else session.rollback()
            return taken

        return work

    def acquire(self, *, wait: float = 0.0) -> fence.Taken:
        taken = self.client.do(self.taking(wait=wait))
        assert taken is not None
        self.token = taken.owner
        return taken

    def owned(self, *others: TopicPartition) -> int:
        assert self.token is not None
        owners = dict.fromkeys((HERE, *others), self.token)
        return committed(self.client, lambda at: fence.count_owned(at, self.stand.ledger, owners))

    def write(self, what: Callable[..., None], *parts: Any) -> None:
        committed(self.client, lambda at: what(at, self.stand.ledger, *parts))

    def release(self) -> None:
        self.write(fence.release, {HERE: self.token})

    def clear_crashes(self) -> None:
        self.write(fence.clear_crashes, HERE, self.token)

    def suspect(self, **suspects: int) -> None:
        self.write(fence.suspect, HERE, self.token, {int(name[1:]): times for name, times in suspects.items()})

    def working(self) -> Callable[[Session], None]:
        """The beginning of a transaction that handles messages of the partition."""
        fences = fence.numbers(DEFAULT_TABLES, self.stand.consumer, [HERE])
        dialect = self.stand.dialect

        def begin(session: Session) -> None:
            dialect.begin(session.connection(), Limits(), TOKEN, fences)

        return begin


@pytest.fixture
def one(stand: Stand, client: DatabaseClient) -> Owner:
    return Owner(stand, client)


@pytest.fixture
def two(stand: Stand, other: DatabaseClient) -> Owner:
    return Owner(stand, other)


def test_who_takes_a_partition_owns_it_until_another_does(one: Owner, two: Owner) -> None:
    assert one.acquire()[1:3] == (0, {})
    assert one.owned() == 1
    assert one.owned(THERE) == 1
    two.acquire()
    assert (one.owned(), two.owned()) == (0, 1)


def test_tokens_are_never_the_same(one: Owner) -> None:
    tokens = {one.acquire().owner for _ in range(5)}
    assert len(tokens) == 5
    assert all(len(token) == OWNER_BYTES for token in tokens)


def test_owners_of_which_nothing_more_was_heard_are_counted(one: Owner, two: Owner) -> None:
    one.acquire()
    assert two.acquire().crashes == 1
    assert one.acquire().crashes == 2
    assert one.acquire().crashes == 2, "from oneself"
    one.clear_crashes()
    assert two.acquire().crashes == 1
    two.release()
    assert one.acquire().crashes == 0


def test_suspects_are_handed_on_until_an_owner_got_further(one: Owner, two: Owner) -> None:
    one.acquire()
    one.suspect(o7=1, o9=2)
    assert two.acquire().suspect_offsets == {7: 1, 9: 2}
    one.suspect(o7=3)
    one.clear_crashes()
    one.release()
    assert two.acquire()[1:3] == (1, {7: 1, 9: 2}), "one had lost it, and its word counts no more"
    two.clear_crashes()
    assert one.acquire()[1:3] == (1, {})


def test_a_take_over_waits_for_the_transactions_of_the_owner_before(one: Owner, two: Owner) -> None:
    one.acquire()
    one.client.do(one.working())
    began = time.monotonic()
    if not one.stand.dialect.single_writer:
        assert two.client.do(two.taking(wait=0)) is None
        assert two.client.do(two.taking(wait=0.4)) is None
        assert time.monotonic() - began > 0.35
    taking = two.client.start(two.taking(wait=20))
    time.sleep(0.3)
    assert not taking.done()
    one.client.commit()
    assert taking.result(120) is not None
    assert one.owned() == 0


def test_partitions_are_taken_together_but_for_those_that_others_use(one: Owner, two: Owner, lot: ParkingLot) -> None:
    """One is in a transaction of its owner; of another the owner is about to write the mark."""
    stand = one.stand
    used, marked, free, new = (TopicPartition("t", number) for number in (3, 5, 6, 7))
    before = {at: committed(one.client, taking_of(stand, at)) for at in (used, marked, free)}
    tokens = {at: taken.owner for at, taken in before.items() if taken is not None}
    park(one.client, lot, parked(1))
    if not stand.dialect.single_writer:
        one.client.do(one.working())
        owners = {marked: tokens[marked]}
        one.client.do(lambda session: fence.release(session.connection(), stand.ledger, owners))

    def together(connection: Connection) -> dict[TopicPartition, fence.Taken]:
        everything = [used, marked, free, new]
        held = fence.hold(connection, stand.ledger, everything, wait=0)
        found = fence.look(connection, stand.ledger, held, {free: tokens[free]}, wait=False)
        fence.write(connection, stand.ledger, found)
        assert lot.load(connection, list(found)).keys() == found.keys()
        return found

    found = committed(two.client, together)
    one.client.do(lambda session: session.rollback())
    if not stand.dialect.single_writer:
        assert found.keys() == {free, new}
    assert (found[new].new, found[free].new) == (True, False)
    assert (found[free].ours, found[free].crashes) == (True, 0)
    owned = {**tokens, **{at: taken.owner for at, taken in found.items()}}
    assert committed(one.client, lambda at: fence.count_owned(at, stand.ledger, owned)) == 4
    assert len(set(owned.values())) == 4


def test_marks_that_are_written_together_are_each_ones_own(one: Owner, two: Owner) -> None:
    stand = one.stand
    mine, another, lost = (TopicPartition("t", number) for number in (3, 5, 6))
    owners = {}
    for at in (mine, another, lost):
        taken = committed(one.client, taking_of(stand, at))
        assert taken is not None
        owners[at] = taken.owner
    begun = {at: progress.Begun("id", mark=10, start=0, end=12) for at in owners}
    committed(one.client, lambda at: progress.begin(at, stand.ledger, begun, ago=0))
    committed(two.client, taking_of(stand, another))
    marks = {at: progress.Mark(owner, 15, 12 if at == lost else 10, 20) for at, owner in owners.items()}
    gone = committed(one.client, lambda at: progress.advance(at, stand.ledger, marks))
    assert gone == {another, lost}
    found = committed(one.client, lambda at: progress.marks(at, stand.ledger))
    assert found == {("t", "id"): {3: 15, 5: 10, 6: 10}}
    committed(one.client, lambda at: fence.release(at, stand.ledger, owners))
    again = {at: committed(one.client, taking_of(stand, at)) for at in owners}
    assert [taken and taken.crashes for taken in again.values()] == [0, 2, 0]


def taking_of(stand: Stand, partition: TopicPartition) -> Callable[[Connection], fence.Taken | None]:
    return lambda at: fence.acquire(at, stand.ledger, partition, wait=0)


def test_a_transaction_that_begins_during_a_take_over_waits_and_finds_the_token_changed(
    venue: Venue, one: Owner, two: Owner
) -> None:
    one.acquire()
    one.client.do(one.working())
    taking = two.client.start(two.taking(wait=20))
    time.sleep(0.3)
    with venue.client() as third:
        late = third.start(one.working())
        time.sleep(0.3)
        assert not late.done(), "it went past the one that waits: overlapping ones would starve it"
        one.client.commit()
        late.result(120)
        third.commit()
    assert taking.result(120) is not None
    assert one.owned() == 0


def test_what_the_owner_before_parked_late_is_seen_by_the_next(one: Owner, two: Owner, lot: ParkingLot) -> None:
    one.acquire()
    one.client.do(one.working())
    one.client.do(lambda session: lot.park(session.connection(), [parked(1)]))

    def take_and_load(session: Session) -> dict[bytes | None, set[int]]:
        connection = session.connection()
        fence.acquire(connection, two.stand.ledger, HERE, wait=20)
        keys = lot.load(connection, [HERE])[HERE]
        session.commit()
        return keys

    loading = two.client.start(take_and_load)
    time.sleep(0.3)
    assert not loading.done()
    one.client.commit()
    assert [len(numbers) for numbers in loading.result(120).values()] == [1]


def test_other_partitions_consumers_and_tables_have_other_fences(stand: Stand) -> None:
    elsewhere = fence.number(venues.ELSEWHERE, stand.consumer, HERE)
    numbers = fence.numbers(DEFAULT_TABLES, stand.consumer, [HERE, THERE, TopicPartition("t", 34)])
    numbers += fence.numbers(DEFAULT_TABLES, stand.consumer + 1, [HERE])
    assert len({*numbers, elsewhere}) == 5
    assert numbers[:3] == sorted(numbers[:3])
