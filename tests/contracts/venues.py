"""Databases with our tables, for each driver."""

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.orm import Session

from consumerkit.storage.tables import Tables
from tests.contracts.database_client import Venue
from tests.services import PostgresServer
from tests.services.tables import make_tables

ELSEWHERE = Tables(prefix="ck_", schema="ledger")


def postgresql(server: PostgresServer, driver: str, *, coroutines: bool) -> Iterator[Venue]:
    """A database of its own on the real server, with our tables twice: under other names in another schema too."""
    name = server.create_database()
    try:
        venue = Venue(make_url(server.url(name, driver)), coroutines=coroutines)
        with venue.client() as client:
            client.do(make_tables)
            client.commit()
            client.do(lambda session: make_tables(session, ELSEWHERE))
            client.commit()
        yield venue
    finally:
        server.drop_database(name)


def sqlite(directory: Path, *, coroutines: bool) -> Iterator[Venue]:
    """A file of its own; a second set of tables has another prefix, since there are no schemas."""
    venue = Venue(make_url(f"sqlite:///{directory}/ledger.sqlite"), coroutines=coroutines)
    with venue.client() as client:
        client.do(make_tables)
        client.commit()
        client.do(_apply_elsewhere)
        client.commit()
    yield venue


def _apply_elsewhere(session: Session) -> None:
    make_tables(session, Tables(prefix="ck_"))
