"""What the other tables keep, on every database and driver: consumers, dead letters, outbox; and ways into them."""

from collections.abc import Sequence
from concurrent.futures import wait
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy.orm import Session

from consumerkit.errors import StartError
from consumerkit.message import Message
from consumerkit.outcome import Reason
from consumerkit.storage import consumers, headers, outbox
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.dead_letters.selection import Selection
from consumerkit.storage.outbox import OutboxMessage
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.contracts.database_client import DatabaseClient
from tests.contracts.dialect_contract import DialectContract, Stand

HEADERS = (("a", b"1"), ("a", b"\xff\x00"), ("none", None), ("é", "☃".encode()))


def record(offset: int, **parts: Any) -> Message:
    """A record with bytes that no text column takes."""
    given: dict[str, Any] = {
        "key": b"\x00k",
        "value": b"\xff\x00v",
        "headers": HEADERS,
        "timestamp": 7,
        "topic_id": "id-of-t",
    }
    return Message("t", 3, offset, **(given | parts))


def dead(offset: int, reason: Reason = Reason.EXHAUSTED, **parts: Any) -> DeadMessage:
    given: dict[str, Any] = {
        "message": record(offset),
        "digest": bytes(range(16)),
        "message_id": "id",
        "reason": reason,
        "error_type": "ValueError",
        "error": "no",
    }
    return DeadMessage(**(given | parts))


class StorageContract(DialectContract):
    def bind(self, client: DatabaseClient, name: str, **parts: Any) -> int:
        given = {"group": f"g-{name}", "topics": ["b", "a"]} | parts
        number = client.do(lambda session: consumers.bind(session, DEFAULT_TABLES, name=name, **given))
        client.commit()
        return number

    def add(self, client: DatabaseClient, consumer: int, letters: Sequence[DeadMessage]) -> set[Any]:
        entered = client.do(lambda session: dead_letters.add(session.connection(), DEFAULT_TABLES, consumer, letters))
        client.commit()
        return set(entered)

    # Consumers.

    def test_a_name_keeps_its_number(self, stand: Stand, client: DatabaseClient) -> None:
        one, two = f"one-{stand.consumer}", f"two-{stand.consumer}"
        first = self.bind(client, one)
        assert self.bind(client, two) != first
        assert self.bind(client, one, topics=["a", "b"]) == first

    def test_processes_that_start_at_once_get_one_number(
        self, stand: Stand, client: DatabaseClient, other: DatabaseClient
    ) -> None:
        for turn in range(5):
            name = f"race-{stand.consumer}-{turn}"

            def work(session: Session, name: str = name) -> int:
                number = consumers.bind(session, DEFAULT_TABLES, name=name, group=name, topics=["a"])
                session.commit()
                return number

            racing = [client.start(work), other.start(work)]
            wait(racing, 20)
            assert racing[0].result() == racing[1].result()

    def test_a_name_bound_elsewhere_is_refused(self, stand: Stand, client: DatabaseClient) -> None:
        name = f"bound-{stand.consumer}"
        self.bind(client, name)
        with pytest.raises(StartError) as caught:
            self.bind(client, name, group=f"h-{name}", topics=["c"])
        assert str(caught.value) == (
            f"handler {name!r}: this name is bound to group 'g-{name}' and topics a, b, not to group 'h-{name}' and "
            f"topics c; rename the handler, or start once with --adopt {name} if the change is meant"
        )

    def test_a_name_is_adopted_where_that_is_meant(self, stand: Stand, client: DatabaseClient) -> None:
        name = f"adopted-{stand.consumer}"
        number = self.bind(client, name)
        assert self.bind(client, name, group=f"h-{name}", topics=["c"], adopt=True) == number
        assert self.bind(client, name, group=f"h-{name}", topics=["c"]) == number
        with pytest.raises(StartError):
            self.bind(client, name)

    def test_a_group_stays_with_one_name_until_another_adopts_it(self, stand: Stand, client: DatabaseClient) -> None:
        one, two, group = (f"{word}-{stand.consumer}" for word in ("old", "new", "shared"))
        self.bind(client, one, group=group)
        with pytest.raises(StartError) as caught:
            self.bind(client, two, group=group, topics=["c"])
        assert str(caught.value) == (
            f"handler {two!r}: group {group!r} belongs to handler {one!r} on this database, and each would get a "
            f"part of the messages; give {two!r} a group of its own, or start once with --adopt {two} if {one!r} "
            "never runs again"
        )
        client.rollback()
        number = self.bind(client, two, group=group, topics=["c"], adopt=True)
        assert self.bind(client, two, group=group, topics=["c"]) == number
        with pytest.raises(StartError, match=f"group {group!r} belongs to handler {two!r}"):
            self.bind(client, one, group=group)
        client.rollback()
        with pytest.raises(StartError, match="is bound to no group, because another handler adopted it, and"):
            self.bind(client, one, group=f"other-{group}")
        client.rollback()
        assert self.bind(client, one, group=f"other-{group}", adopt=True) != number

    # Dead letters.

    def test_a_dead_letter_is_entered_once_for_its_place_in_the_log(self, stand: Stand, client: DatabaseClient) -> None:
        here = ("id-of-t", 3, 1)
        assert self.add(client, stand.consumer, []) == set()
        assert self.add(client, stand.consumer, [dead(1)]) == {here}
        assert self.add(client, stand.consumer, [dead(1, Reason.REJECTED), dead(2)]) == {("id-of-t", 3, 2)}
        assert self.add(client, stand.consumer + 1_000_000, [dead(1)]) == {here}
        again = dead(1, message=record(1, topic_id="id-of-a-new-t"))
        assert self.add(client, stand.consumer, [again]) == {("id-of-a-new-t", 3, 1)}

    def test_a_dead_letter_holds_the_whole_message(self, stand: Stand, client: DatabaseClient) -> None:
        name = f"whole-{stand.consumer}"
        number = self.bind(client, name)
        failed = datetime(2024, 5, 1, 12, tzinfo=UTC)
        self.add(client, number, [dead(1, stack="at line 1", attempts=5, first_failed_at=failed)])
        [listed] = client.do(lambda session: dead_letters.listed(session, DEFAULT_TABLES, Selection(handler=name)))
        row = client.do(lambda session: dead_letters.shown(session, DEFAULT_TABLES, listed.id))
        assert row is not None
        kept = (row.handler, row.topic, row.topic_id, row.partition, row.offset, row.timestamp, row.attempts, row.stack)
        assert kept == (name, "t", "id-of-t", 3, 1, 7, 5, "at line 1")
        assert (bytes(row.key), bytes(row.value), bytes(row.digest)) == (b"\x00k", b"\xff\x00v", bytes(range(16)))
        assert headers.load(row.headers) == HEADERS
        assert (row.message_id, row.reason, row.error_type, row.error) == ("id", "exhausted", "ValueError", "no")
        assert row.size == record(1).size
        assert row.first_failed_at.replace(tzinfo=UTC) == failed
        assert row.dead_at is not None
        assert client.do(lambda session: dead_letters.shown(session, DEFAULT_TABLES, -1)) is None

    def test_an_oversized_one_is_kept_by_reference(self, stand: Stand, client: DatabaseClient) -> None:
        name = f"large-{stand.consumer}"
        number = self.bind(client, name)
        self.add(client, number, [dead(1, Reason.OVERSIZED, keep_value=False, digest=None, message_id=None)])
        [listed] = client.do(lambda session: dead_letters.listed(session, DEFAULT_TABLES, Selection(handler=name)))
        row = client.do(lambda session: dead_letters.shown(session, DEFAULT_TABLES, listed.id))
        assert row is not None
        assert (row.key, row.value, row.headers, row.digest, row.message_id) == (None, None, "[]", None, None)
        assert row.size == record(1).size

    def test_texts_that_no_column_takes_are_escaped(self, stand: Stand, client: DatabaseClient) -> None:
        name = f"odd-{stand.consumer}"
        number = self.bind(client, name)
        self.add(client, number, [dead(1, error="nul \x00", error_type="lone \udc80", stack="\x00")])
        [listed] = client.do(lambda session: dead_letters.listed(session, DEFAULT_TABLES, Selection(handler=name)))
        assert (listed.error, listed.error_type) == ("nul \\x00", "lone \\udc80")

    def test_the_newest_are_listed_first_a_page_at_a_time(self, stand: Stand, client: DatabaseClient) -> None:
        name = f"listed-{stand.consumer}"
        number = self.bind(client, name)
        letters = [dead(n, Reason.CONFLICT if n % 2 else Reason.REJECTED) for n in range(6)]
        self.add(client, number, letters)

        def listed(reason: str | None = None, **options: Any) -> list[int]:
            selection = Selection(handler=name, reason=reason)
            rows = client.do(lambda session: dead_letters.listed(session, DEFAULT_TABLES, selection, **options))
            assert all(not hasattr(row, "value") and row.handler == name for row in rows)
            return [row.offset for row in rows]

        assert listed() == [5, 4, 3, 2, 1, 0]
        assert listed(reason="conflict") == [5, 3, 1]
        assert listed(limit=2) == [5, 4]
        newest = client.do(
            lambda session: dead_letters.listed(session, DEFAULT_TABLES, Selection(handler=name), limit=2)
        )
        assert listed(limit=2, before=newest[-1].id) == [3, 2]
        counted = client.do(lambda session: dead_letters.count_by_reason(session, DEFAULT_TABLES))
        assert [tuple(row)[:3] for row in counted if row[0] == name] == [(name, "conflict", 3), (name, "rejected", 3)]

    # The outbox.

    def test_the_outbox_is_read_in_order_and_emptied_by_number(self, client: DatabaseClient) -> None:
        topics = ["a", "b", "a", "c", "a"]
        sent = [
            OutboxMessage(topic, b"\x00%d" % n, None if n == 3 else b"\xff", HEADERS) for n, topic in enumerate(topics)
        ]
        tables = DEFAULT_TABLES

        def oldest(limit: int = 10, most_bytes: int = 1 << 30) -> list[outbox.Pending]:
            return client.do(lambda session: outbox.page(session.connection(), tables, limit, most_bytes))

        client.do(lambda session: outbox.append(session.connection(), tables, []))
        client.do(lambda session: outbox.append(session.connection(), tables, sent))
        client.commit()
        pending = oldest()
        assert [one.message for one in pending] == sent
        numbers = [one.sequence for one in pending]
        assert numbers == sorted(set(numbers))
        assert oldest(2) == pending[:2]
        assert oldest(most_bytes=1) == pending[:1]
        assert oldest(most_bytes=2 * (3 + len(headers.dump(HEADERS)))) == pending[:2]
        assert client.do(lambda session: outbox.count(session.connection(), tables)) == {"a": 3, "b": 1, "c": 1}
        client.rollback()
        client.do(lambda session: outbox.remove(session.connection(), tables, []))
        identities = [one.identity for one in pending]
        client.do(lambda session: outbox.remove(session.connection(), tables, identities[:4]))
        client.commit()
        assert oldest() == pending[4:]
        client.do(lambda session: outbox.remove(session.connection(), tables, identities))
        client.commit()
        assert oldest() == []

    @pytest.mark.parametrize("other", ["created_at = '2001-01-01 00:00:00'", "headers = '[]'"])
    def test_a_row_that_has_anothers_number_stays_in_the_outbox(self, client: DatabaseClient, other: str) -> None:
        """A database that has lost commits gives the numbers again."""
        tables, count = DEFAULT_TABLES, 450
        rows = [OutboxMessage("t", None, b"%d" % n, HEADERS) for n in range(count)]
        client.do(lambda session: outbox.append(session.connection(), tables, rows))
        client.commit()
        sent = client.do(lambda session: outbox.page(session.connection(), tables, count, 1 << 30))
        number = sent[-1].sequence
        client.execute(f"UPDATE consumerkit_outbox_messages SET {other} WHERE sequence = {number}")
        client.do(lambda session: outbox.remove(session.connection(), tables, [one.identity for one in sent]))
        client.commit()
        left = client.do(lambda session: outbox.page(session.connection(), tables, count, 1 << 30))
        assert [one.sequence for one in left] == [number]
        client.do(lambda session: outbox.remove(session.connection(), tables, [one.identity for one in left]))
        client.commit()

    def test_what_is_rolled_back_was_never_in_the_outbox(self, client: DatabaseClient) -> None:
        client.do(lambda s: outbox.append(s.connection(), DEFAULT_TABLES, [OutboxMessage("t", None, None, ())]))
        client.rollback()
        assert client.do(lambda session: outbox.page(session.connection(), DEFAULT_TABLES, 10, 1000)) == []
