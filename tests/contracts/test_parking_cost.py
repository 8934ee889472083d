"""The rows that the parking lot reads, counted in PostgreSQL's plans, which do not depend on the machine's speed."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.orm import Session

from consumerkit.message import Message, TopicPartition
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import ParkedMessage, key_digest
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.services import PostgresServer
from tests.services.tables import make_tables

HERE = TopicPartition("t", 0)
BEHIND = 4000
_FILL = """
INSERT INTO consumerkit_parked_messages (consumer, topic, topic_id, partition, "offset", timestamp, key, key_digest,
  headers, message_id, fingerprint, attempts, due_at, error_type, error, stack)
SELECT 1, 't', 'id', 0, n, 0, CAST(:key AS bytea), CAST(:digest AS bytea), '[]', 'id', '\\x00', 0,
  CASE WHEN n = 0 THEN now() + interval '1 hour' END, '', '', '' FROM generate_series(0, :count - 1) AS n
"""


# As a vacuum leaves them that has seen the table empty, before it fills up again.
_SEEN_EMPTY = """
UPDATE pg_class SET reltuples = 0, relpages = 300, relallvisible = 300 WHERE relname = 'consumerkit_parked_messages'
"""


_ANALYSED = "ANALYZE consumerkit_parked_messages"


@pytest.fixture(params=[_ANALYSED, _SEEN_EMPTY], ids=["fresh", "seen-empty"])
def engine(postgres: PostgresServer, database: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = create_engine(postgres.url(database))
    with Session(made) as session:
        make_tables(session)
        session.execute(text(_FILL), {"key": b"k", "digest": key_digest(b"k"), "count": BEHIND})
        session.commit()
    with made.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(request.param))
    yield made
    made.dispose()


def lot() -> ParkingLot:
    return ParkingLot(DEFAULT_TABLES, dialect_for("postgresql", DEFAULT_TABLES), 1)


def rows_in(plan: dict[str, Any]) -> int:
    """How many rows a plan's node and those below it looked at, the ones that a filter took out included."""
    loops = plan["Actual Loops"]
    seen = plan["Actual Rows"] + sum(plan.get(f"Rows Removed by {what}", 0) for what in ("Filter", "Join Filter"))
    return int(seen * loops) + sum(map(rows_in, plan.get("Plans", ())))


@contextmanager
def counted(connection: Connection) -> Iterator[list[int]]:
    """Count the rows that each statement looks at: it is explained in a savepoint before it is run."""
    counts: list[int] = []

    def explain(_: object, cursor: Any, statement: str, parameters: Any, *more: object) -> None:
        if statement.lstrip().startswith(("SELECT", "UPDATE")):
            with cursor.connection.cursor() as own:
                own.execute("SAVEPOINT explained")
                own.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
                found = own.fetchone()[0]
                own.execute("ROLLBACK TO SAVEPOINT explained")
            plan = found if isinstance(found, list) else json.loads(found)
            counts.append(rows_in(plan[0]["Plan"]))

    event.listen(connection, "before_cursor_execute", explain)
    yield counts
    event.remove(connection, "before_cursor_execute", explain)


def looked_at(engine: Engine, work: Callable[[Connection], object]) -> list[int]:
    with engine.connect() as connection, counted(connection) as counts:
        work(connection)
        connection.rollback()
    assert counts, "nothing was asked"
    return counts


@pytest.mark.parametrize("any_key", [False, True])
def test_a_take_over_reads_what_is_parked_once(engine: Engine, any_key: bool) -> None:
    counts = looked_at(engine, lambda connection: lot().load(connection, [HERE], any_key=any_key))
    assert sum(counts) <= 4 * BEHIND, counts


def test_a_take_over_makes_only_what_stands_first_due(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE consumerkit_parked_messages SET due_at = NULL"))
        found = lot().load(connection, [HERE])[HERE]
        due = connection.execute(
            text('SELECT "offset" FROM consumerkit_parked_messages WHERE due_at IS NOT NULL')
        ).scalars()
        assert list(due) == [0]
    assert {key: len(numbers) for key, numbers in found.items()} == {b"k": BEHIND}


def parked(offset: int) -> ParkedMessage:
    message = Message("t", 0, offset, b"k", b"v", (), 0, "id")
    digest = offset.to_bytes(16, "big")
    return ParkedMessage(message=message, digest=digest, message_id="", fingerprint=b"", wait=None)


@pytest.mark.parametrize("engine", [_ANALYSED], indirect=True, ids=["fresh"])
def test_parking_behind_many_looks_only_for_the_first(engine: Engine) -> None:
    more = [parked(n) for n in range(BEHIND, BEHIND + 20)]
    counts = looked_at(engine, lambda connection: lot().park(connection, more))
    assert sum(counts) <= 20 * len(more), counts
