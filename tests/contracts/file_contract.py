"""What holds where a database is a file with one writer at a time: SQLite's part of the contract."""

import time
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from consumerkit.storage.dialects import Limits
from consumerkit.storage.tables import Tables
from tests.contracts.database_client import DatabaseClient
from tests.contracts.dialect_contract import Stand, claim
from tests.contracts.storage_contract import StorageContract


@pytest.fixture
def elsewhere() -> Tables:
    return Tables(prefix="ck_")


class FileContract(StorageContract):
    def test_only_one_transaction_is_open_at_a_time(
        self, stand: Stand, client: DatabaseClient, other: DatabaseClient
    ) -> None:
        assert stand.dialect.single_writer
        stand.begin(client)
        waiting = other.start(lambda session: stand.dialect.begin(session.connection(), Limits(), "t"))
        time.sleep(0.3)
        assert not waiting.done()
        client.commit()
        waiting.result(120)

    def test_commits_are_durable_and_constraints_are_checked(self, client: DatabaseClient) -> None:
        assert client.scalar("PRAGMA journal_mode") == "wal"
        assert client.scalar("PRAGMA synchronous") == 2
        assert client.scalar("PRAGMA foreign_keys") == 1
        assert client.scalar("PRAGMA busy_timeout") == 30_000

    def test_a_statement_that_ends_the_transaction_is_found_out(self, stand: Stand, client: DatabaseClient) -> None:
        """`OR ROLLBACK` ends the transaction with the error, and what follows would be committed without claims."""
        client.execute("CREATE TABLE once (n INTEGER PRIMARY KEY)")
        client.commit()
        client.do(stand.claiming([claim(1)]))
        client.execute("INSERT INTO once VALUES (1)")
        with pytest.raises(DBAPIError):
            client.execute("INSERT OR ROLLBACK INTO once VALUES (1)")
        assert not stand.finalise(client)
        client.rollback()
        assert stand.rows(client) == []
        client.execute("DROP TABLE once")
        client.commit()

    def test_a_savepoint_survives_no_rollback(self, stand: Stand, client: DatabaseClient) -> None:
        """The driver's own transaction control would let its row survive; ours is SQLAlchemy's recipe."""
        client.execute("CREATE TABLE rows (n INTEGER)")
        client.commit()
        client.execute("SAVEPOINT one")
        client.execute("INSERT INTO rows VALUES (1)")
        client.execute("RELEASE one")
        client.rollback()
        assert client.scalar("SELECT count(*) FROM rows") == 0
        client.commit()
        client.execute("DROP TABLE rows")
        client.commit()

    def test_one_relay_at_a_time_has_its_turn(self, stand: Stand, tmp_path: Path) -> None:
        file = str(tmp_path / "outbox.sqlite")
        with stand.dialect.relay_guard(file) as first:
            with stand.dialect.relay_guard(file) as second:
                assert (first, second) == (True, False)
            with stand.dialect.relay_guard(file) as third:
                assert not third
        with stand.dialect.relay_guard(file) as next_one:
            assert next_one

    def test_a_database_in_memory_has_no_other_relays(self, stand: Stand) -> None:
        with stand.dialect.relay_guard(":memory:") as one, stand.dialect.relay_guard("") as other:
            assert (one, other) == (True, True)

    def test_there_is_no_limit_of_connections_and_one_isolation(self, stand: Stand, client: DatabaseClient) -> None:
        assert client.do(lambda session: stand.dialect.most_connections(session.connection())) is None
        assert stand.dialect.isolation() is None
        assert client.do(stand.dialect.lock_relay)
