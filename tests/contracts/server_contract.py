"""What holds where several transactions write at once: PostgreSQL's part of the contract, through each driver."""

import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import URL, create_engine
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from consumerkit.storage.dialects import Limits
from consumerkit.storage.faults import Fault, fault_of, sqlstate
from consumerkit.storage.tables import Tables
from tests.contracts import venues
from tests.contracts.database_client import DatabaseClient, Venue
from tests.contracts.dialect_contract import Stand, claim, claims
from tests.contracts.storage_contract import StorageContract
from tests.services import PostgresServer

Role = Callable[..., URL]


@pytest.fixture
def elsewhere() -> Tables:
    return venues.ELSEWHERE


@pytest.fixture
def elsewhere_stand(venue: Venue, elsewhere: Tables) -> Stand:
    return Stand(venue, elsewhere)


@pytest.fixture
def role(postgres: PostgresServer, venue: Venue) -> Iterator[Role]:
    """Makes roles with settings of their own; returns the way in as one."""
    made: list[str] = []

    def make(**settings: str) -> URL:
        name = f"ck_{uuid4().hex[:12]}"
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN SUPERUSER").format(sql.Identifier(name)))
            for setting, value in settings.items():
                statement = sql.SQL("ALTER ROLE {} SET {} = {}")
                connection.execute(statement.format(sql.Identifier(name), sql.Identifier(setting), sql.Literal(value)))
        made.append(name)
        return venue.url.set(username=name)

    yield make
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
        for name in made:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


class ServerContract(StorageContract):
    def test_rows_are_written_in_the_order_of_their_digests(self, stand: Stand, client: DatabaseClient) -> None:
        client.do(stand.claiming(claims(500)))
        found = client.do(
            lambda session: [
                bytes(row[0])
                for row in session.connection().exec_driver_sql(
                    f"SELECT digest FROM consumerkit_processed_messages WHERE consumer = {stand.consumer} ORDER BY ctid"
                )
            ]
        )
        assert found == sorted(one.digest for one in claims(500))

    def test_one_row_version_is_written_for_each_message(self, stand: Stand, client: DatabaseClient) -> None:
        client.do(stand.claiming(claims(200)))
        assert stand.finalise(client)
        written = (
            "SELECT n_tup_ins || ' ' || n_tup_upd || ' ' || n_tup_del FROM pg_stat_xact_user_tables "
            "WHERE relname = 'consumerkit_processed_messages' AND schemaname = 'public'"
        )
        assert client.scalar(written) == "200 0 0"
        client.commit()

    def test_copies_alone_burn_no_transaction_id(self, stand: Stand, client: DatabaseClient) -> None:
        client.do(stand.claiming(claims(50)))
        assigned = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL"
        assert client.scalar(assigned) is True
        client.commit()
        assert len(client.do(stand.claiming(claims(50))).kept) == 50
        assert stand.finalise(client)
        assert client.scalar(assigned) is False
        client.commit()

    def test_unsorted_claims_do_deadlock(self, stand: Stand, client: DatabaseClient, other: DatabaseClient) -> None:
        """Why `Ledger.claim` sorts: the same claims, straight to the dialect in two orders."""
        rising = sorted(claims(4000))

        def unsorted(wanted: list[tuple[int, bytes]]) -> Callable[[Session], object]:
            by_digest = {one.digest: one for one in rising}

            def work(session: Session) -> object:
                connection = session.connection()
                stand.dialect.begin(connection, Limits(), "t")
                try:
                    won = stand.dialect.claim(connection, stand.consumer, [by_digest[d] for _, d in wanted])
                    session.commit()
                    return won
                except BaseException:
                    session.rollback()
                    raise

            return work

        forth = [(n, one.digest) for n, one in enumerate(rising)]
        errors: list[BaseException] = []
        for _ in range(25):
            stand.renew()
            racing = [client.start(unsorted(forth)), other.start(unsorted(forth[::-1]))]
            errors = [error for one in racing if (error := one.exception(30)) is not None]
            if errors:
                break
        assert [isinstance(error, DBAPIError) and sqlstate(error) for error in errors] == ["40P01"]
        assert fault_of(errors[0], in_handler=False) is Fault.CONFLICT

    # Isolation and durability.

    @pytest.mark.parametrize("level", ["serializable", "repeatable read"])
    def test_read_committed_is_forced_for_our_transaction_alone(
        self, stand: Stand, client: DatabaseClient, venue: Venue, role: Role, level: str
    ) -> None:
        with venue.client(role(default_transaction_isolation=level)) as strict:
            shown = "SHOW transaction_isolation"
            assert strict.scalar(shown) == level
            strict.commit()
            client.do(stand.claiming([claim(1)]))
            self.force(stand, strict)
            assert strict.scalar(shown) == "read committed"
            copy = strict.start(stand.claiming([claim(1), claim(2)]))
            time.sleep(0.2)
            client.commit()
            answer = copy.result(120)
            assert (answer.won, set(answer.kept)) == ({claim(2).digest}, {claim(1).digest})
            strict.commit()
            assert strict.scalar(shown) == level

    def test_an_engines_own_level_is_overridden(self, venue: Venue, stand: Stand) -> None:
        make = create_async_engine if venue.coroutines else create_engine
        engine = make(venue.url, isolation_level="SERIALIZABLE")
        strict = DatabaseClient(engine, coroutines=venue.coroutines)
        try:
            assert strict.scalar("SHOW transaction_isolation") == "serializable"
            strict.commit()
            self.force(stand, strict)
            assert strict.scalar("SHOW transaction_isolation") == "read committed"
            strict.commit()
            assert strict.scalar("SHOW transaction_isolation") == "serializable"
        finally:
            strict.close(engine)

    def force(self, stand: Stand, client: DatabaseClient) -> None:
        level = stand.dialect.isolation()
        assert level is not None
        client.do(lambda session: session.connection(execution_options={"isolation_level": level}))

    @pytest.mark.parametrize(
        "configured, ours",
        [
            ("off", "on"),
            ("local", "on"),
            ("remote_write", "on"),
            ("on", "on"),
            ("remote_apply", "remote_apply"),
        ],
    )
    def test_a_commit_of_ours_is_durable(
        self, stand: Stand, venue: Venue, role: Role, configured: str, ours: str
    ) -> None:
        with venue.client(role(synchronous_commit=configured)) as lax:
            stand.begin(lax)
            assert lax.scalar("SHOW synchronous_commit") == ours
            lax.commit()
            assert lax.scalar("SHOW synchronous_commit") == configured

    # Limits.

    def failure(self, client: DatabaseClient, statement: str) -> DBAPIError:
        with pytest.raises(DBAPIError) as caught:
            client.execute(statement)
        return caught.value

    def test_a_statement_ends_at_its_limit(self, stand: Stand, client: DatabaseClient) -> None:
        stand.begin(client, Limits(statement=0.1))
        error = self.failure(client, "SELECT pg_sleep(20)")
        assert sqlstate(error) == "57014"
        assert fault_of(error, in_handler=True) is Fault.CAPACITY

    def test_waiting_for_a_lock_ends_at_its_limit(
        self, stand: Stand, client: DatabaseClient, other: DatabaseClient
    ) -> None:
        client.do(stand.claiming([claim(1)]))
        stand.begin(other, Limits(lock=0.1))
        with pytest.raises(DBAPIError) as caught:
            other.do(lambda session: stand.ledger.claim(session.connection(), [claim(1)]))
        assert sqlstate(caught.value) == "55P03"
        assert fault_of(caught.value, in_handler=False) is Fault.CONFLICT

    def test_an_idle_transaction_ends_at_its_limit(
        self, stand: Stand, client: DatabaseClient, other: DatabaseClient
    ) -> None:
        stand.begin(client, Limits(idle=1.0))
        client.do(lambda session: stand.ledger.claim(session.connection(), [claim(1)]))
        # The next owner waits no longer than that.
        assert other.start(stand.claiming([claim(1)])).result(120).won == {claim(1).digest}
        assert fault_of(self.failure(client, "SELECT 1"), in_handler=True) is Fault.CONNECTION

    def test_limits_shorter_than_a_millisecond_are_not_no_limits(self, stand: Stand, client: DatabaseClient) -> None:
        stand.begin(client, Limits(statement=0.0001))
        assert sqlstate(self.failure(client, "SELECT pg_sleep(20)")) == "57014"

    @pytest.mark.parametrize("end", [Session.commit, Session.rollback])
    def test_limits_are_gone_with_their_transaction(
        self, stand: Stand, client: DatabaseClient, end: Callable[[Session], None]
    ) -> None:
        settings = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "consumerkit.claim")
        pid = client.pid()
        usual = [client.scalar(f"SELECT current_setting('{name}', true)") for name in settings]
        client.commit()
        stand.begin(client, Limits(statement=7, lock=8, idle=9))
        limited = [client.scalar(f"SELECT current_setting('{name}', true)") for name in settings]
        assert limited[:3] == ["7s", "8s", "9s"]
        client.do(end)
        assert client.pid() == pid
        after = [client.scalar(f"SELECT current_setting('{name}', true)") or None for name in settings]
        assert after == usual

    # The end of a transaction.

    def test_an_aborted_transaction_does_not_finalise(self, stand: Stand, client: DatabaseClient) -> None:
        client.do(stand.claiming([claim(1)]))
        self.failure(client, "SELECT 1/0")
        with pytest.raises(DBAPIError) as caught:
            client.do(lambda session: stand.dialect.probe(session.connection()))
        assert sqlstate(caught.value) == "25P02"
        with pytest.raises(DBAPIError) as caught:
            stand.finalise(client)
        assert sqlstate(caught.value) == "25P02"
        assert fault_of(caught.value, in_handler=False) is Fault.HANDLER

    def test_a_deferred_constraint_is_checked_before_the_commit(self, stand: Stand, client: DatabaseClient) -> None:
        client.execute("CREATE TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        client.commit()
        client.do(stand.claiming([claim(1)]))
        client.execute("INSERT INTO once VALUES (1), (1)")
        with pytest.raises(IntegrityError) as caught:
            stand.finalise(client)
        assert sqlstate(caught.value) == "23505"
        client.rollback()
        client.execute("DROP TABLE once")
        client.commit()

    # The relay's turn.

    def test_one_relay_at_a_time_has_its_turn(
        self, stand: Stand, client: DatabaseClient, other: DatabaseClient
    ) -> None:
        assert client.do(stand.dialect.lock_relay)
        assert not other.do(stand.dialect.lock_relay)
        other.commit()
        client.commit()
        assert other.do(stand.dialect.lock_relay)
        other.rollback()
        assert client.do(stand.dialect.lock_relay)

    def test_relays_of_other_tables_are_not_kept_out(
        self, venue: Venue, stand: Stand, elsewhere_stand: Stand, client: DatabaseClient, other: DatabaseClient
    ) -> None:
        assert client.do(stand.dialect.lock_relay)
        assert other.do(elsewhere_stand.dialect.lock_relay)

    def test_the_server_tells_how_many_connections_it_allows(self, stand: Stand, client: DatabaseClient) -> None:
        allowed = client.scalar("SELECT current_setting('max_connections')::int")
        reserved = client.scalar("SELECT current_setting('superuser_reserved_connections')::int")
        assert isinstance(allowed, int)
        assert isinstance(reserved, int)
        most = client.do(lambda session: stand.dialect.most_connections(session.connection()))
        assert most == allowed - reserved
