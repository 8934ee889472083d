"""The ledger on PostgreSQL through psycopg, in threads."""

from collections.abc import Iterator

import pytest

from tests.contracts import venues
from tests.contracts.database_client import Venue
from tests.contracts.dialect_contract import client, other, stand
from tests.contracts.server_contract import ServerContract, elsewhere, elsewhere_stand, role
from tests.services import PostgresServer

__all__ = ["client", "elsewhere", "elsewhere_stand", "other", "role", "stand"]


@pytest.fixture(scope="module")
def venue(postgres: PostgresServer) -> Iterator[Venue]:
    yield from venues.postgresql(postgres, "psycopg", coroutines=False)


class TestPsycopg(ServerContract):
    pass
