"""The ledger on PostgreSQL through psycopg, in coroutines."""

from collections.abc import Iterator

import pytest

from consumerkit.storage.tables import Tables
from tests.contracts import venues
from tests.contracts.database_client import Venue
from tests.contracts.dialect_contract import Stand, client, other, stand
from tests.contracts.server_contract import ServerContract, role
from tests.services import PostgresServer

__all__ = ["client", "other", "role", "stand"]


@pytest.fixture(scope="module")
def venue(postgres: PostgresServer) -> Iterator[Venue]:
    yield from venues.postgresql(postgres, "psycopg", coroutines=True)


@pytest.fixture
def elsewhere() -> Tables:
    return venues.ELSEWHERE


@pytest.fixture
def elsewhere_stand(venue: Venue, elsewhere: Tables) -> Stand:
    return Stand(venue, elsewhere)


class TestPsycopgAsync(ServerContract):
    pass
