"""Lets a test read the database and the group while workers run, over connections that are kept."""

import threading
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.rows import DictRow, dict_row

from tests.services.offsets import CommittedOffsets

OURS = "tests"  # by which the server tells the tests' own sessions from the worker's


class Inspector:
    """Looks at one database and one broker; a context manager, for any thread."""

    def __init__(self, dsn: str, bootstrap: str) -> None:
        self._dsn = dsn
        self._bootstrap = bootstrap
        self._connection: psycopg.Connection[DictRow] | None = None
        self._offsets: dict[tuple[str, str], CommittedOffsets] = {}
        self._open = ExitStack()
        self._lock = threading.Lock()

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Ask the database; over a new connection where the kept one was ended."""
        with self._lock:
            if self._connection is not None:
                try:
                    return self._connection.execute(query.encode()).fetchall()
                except psycopg.OperationalError:
                    self._connection.close()
            self._connection = psycopg.connect(
                self._dsn, row_factory=dict_row, autocommit=True, connect_timeout=30, application_name=OURS
            )
            return self._connection.execute(query.encode()).fetchall()

    def committed(self, group: str, topic: str, partitions: int) -> dict[int, int]:
        """The group's committed offsets by partition."""
        with self._lock:
            if (group, topic) not in self._offsets:
                offsets = CommittedOffsets({"bootstrap.servers": self._bootstrap}, group, topic)
                self._offsets[group, topic] = self._open.enter_context(offsets)
            return self._offsets[group, topic].read(range(partitions))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        if self._connection is not None:
            self._connection.close()
