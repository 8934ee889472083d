"""The ledger on SQLite through aiosqlite, in coroutines."""

from collections.abc import Iterator

import pytest

from consumerkit.storage.tables import Tables
from tests.contracts import venues
from tests.contracts.database_client import Venue
from tests.contracts.dialect_contract import client, other, stand
from tests.contracts.file_contract import FileContract

__all__ = ["client", "other", "stand"]


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Venue]:
    yield from venues.sqlite(tmp_path_factory.mktemp("ledger"), coroutines=True)


@pytest.fixture
def elsewhere() -> Tables:
    return Tables(prefix="ck_")


class TestAiosqlite(FileContract):
    pass
