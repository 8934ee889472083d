"""Letters of very many places: each place is asked about its own letters alone."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert
from sqlalchemy.orm import Session

from consumerkit.redrive import Selection, redrive
from consumerkit.storage import schema
from consumerkit.storage.database import Database
from consumerkit.storage.tables import DEFAULT_TABLES as TABLES

PLACES = 40


def _fill(session: Session) -> None:
    connection = session.connection()
    consumer = {"id": 1, "name": "h", "group_name": "g", "topics": '["t"]', "ordering": "key"}
    connection.execute(insert(TABLES.consumers).values(consumer))
    letter: dict[str, Any] = {
        "consumer": 1,
        "topic": "t",
        "partition": 0,
        "offset": 7,
        "timestamp": 1,
        "headers": "[]",
        "size": 1,
        "reason": "exhausted",
        "error_type": "E",
        "error": "e",
        "stack": "",
        "attempts": 1,
        "value": b"x",
        "fingerprint": b"f" * 16,
        "fingerprint_version": 1,
        "state": "dead",
    }
    own = [
        {"topic_id": f"id#{number}", "digest": number.to_bytes(16), "message_id": str(number)}
        for number in range(PLACES)
    ]
    connection.execute(insert(TABLES.dead_letters), [letter | one for one in own])


@pytest.mark.parametrize("dry_run", [True, False])
async def test_no_place_is_asked_about_the_letters_of_others(tmp_path: Path, *, dry_run: bool) -> None:
    database = Database(f"sqlite:///{tmp_path}/places.sqlite")
    schema.upgrade(database)
    database.run_blocking(_fill)
    asked: list[int] = []
    assert database._plain_async is not None
    engine = database._plain_async.kw["bind"].sync_engine

    @event.listens_for(engine, "before_cursor_execute")
    def _count(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT") and " LIMIT " in statement:
            asked.append(len(parameters))

    report = await redrive(database, Selection(ids=range(1, PLACES + 1)), dry_run=dry_run)
    await database.dispose()

    assert len(report.letters) == PLACES
    assert len(asked) >= PLACES
    assert max(asked) < PLACES / 2
