"""A lane counts its transactions in the database, and notices when the database has another count."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, create_engine

from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.lane_progress import LaneSequence, move_on
from consumerkit.storage.store import Store
from consumerkit.storage.tables import DEFAULT_TABLES

STORE = Store(DEFAULT_TABLES, dialect_for("sqlite", DEFAULT_TABLES), 1)


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    DEFAULT_TABLES.metadata.create_all(engine)
    with engine.begin() as made:
        yield made
    engine.dispose()


@pytest.mark.parametrize("durable", [0, 1, 2])
def test_a_lane_that_knows_less_or_more_than_the_database_does_not_move_on(
    connection: Connection, durable: int
) -> None:
    lane = LaneSequence.new()
    for count in range(durable):
        assert move_on(connection, STORE, LaneSequence(lane.id, count))
    moved = {known: move_on(connection, STORE, LaneSequence(lane.id, known)) for known in (durable - 1, durable + 1)}
    assert not any(moved.values()), moved
    assert move_on(connection, STORE, LaneSequence(lane.id, durable))
