"""The demo's surroundings: its directory, its broker, and plain SQL on its database."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from consumerkit.demo.payments import ACCOUNTS, CLOSED
from consumerkit.demo.shop import Account, Base
from consumerkit.storage import schema
from consumerkit.storage.database import Database


@dataclass(frozen=True)
class DemoScene:
    """A directory and a broker's address."""

    directory: Path
    broker: str

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.directory / "shop.db"

    @property
    def url(self) -> str:
        """The database's URL for consumerkit's commands."""
        return f"sqlite:///{self.database}"

    @property
    def log(self) -> Path:
        """The log of the worker processes."""
        return self.directory / "workers.log"

    @property
    def reports(self) -> Path:
        """The file of their reports; see `consumerkit.demo.reports`."""
        return self.directory / "reports"

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment variables that `consumerkit.demo.shop:worker` needs."""
        return {"DEMO_BROKER": self.broker, "DEMO_DIRECTORY": str(self.directory)}

    async def set_up(self) -> None:
        """Create consumerkit's tables, as `consumerkit db upgrade` does, and the shop's tables with its accounts."""

        def work(session: Session) -> None:
            schema.apply(session)
            Base.metadata.create_all(session.connection())
            session.add_all(Account(id=name, balance=0, closed=False) for name in ACCOUNTS)
            session.add_all(Account(id=name, balance=0, closed=True) for name in CLOSED)

        database = Database(self.url)
        try:
            await database.run(work)
        finally:
            await database.dispose()

    def query(self, sql: str) -> list[Any]:
        """Return rows read with plain SQL, without consumerkit."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(sql).fetchall()

    def number(self, sql: str) -> int:
        """Read one number."""
        return int(self.query(sql)[0][0])

    def is_being_written(self) -> bool:
        """Whether a transaction holds SQLite's write lock now."""
        with closing(sqlite3.connect(self.database, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            connection.execute("ROLLBACK")
            return False
