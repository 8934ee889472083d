"""The ledger on SQLite through pysqlite, in threads."""

from collections.abc import Iterator

import pytest

from tests.contracts import venues
from tests.contracts.database_client import Venue
from tests.contracts.dialect_contract import client, other, stand
from tests.contracts.file_contract import FileContract, elsewhere

__all__ = ["client", "elsewhere", "other", "stand"]


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Venue]:
    yield from venues.sqlite(tmp_path_factory.mktemp("ledger"), coroutines=False)


class TestPysqlite(FileContract):
    pass
