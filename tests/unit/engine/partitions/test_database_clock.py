"""The database's clock decides the age of an event, not the worker's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine

from consumerkit.engine.partitions.database_clock import DatabaseClock
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.tables import DEFAULT_TABLES

DAY = 86_400.0


@pytest.mark.parametrize("days", [8, -8])
async def test_a_workers_clock_that_is_days_off_changes_nothing(days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_engine("sqlite://")

    async def run(work: Callable[[Connection], Any]) -> Any:
        with engine.begin() as connection:
            return work(connection)

    clock = DatabaseClock(dialect_for("sqlite", DEFAULT_TABLES), run)
    before = time.time()
    assert clock.now() is None
    await clock.measure()
    monkeypatch.setattr(time, "time", lambda: before + days * DAY)
    now = clock.now()
    engine.dispose()
    assert now is not None
    assert abs(now - before) < DAY, "the worker's clock tells it"
