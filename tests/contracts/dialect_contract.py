"""The contract of every database and driver: the sentences of `Dialect` and of the ledger on it."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from consumerkit.outcome import Outcome
from consumerkit.storage.dialects import Claim, Dialect, Kept, Limits, dialect_for
from consumerkit.storage.ledger import Claimed, Ledger, count_by_outcome
from consumerkit.storage.tables import DEFAULT_TABLES, Tables
from tests.contracts.database_client import DatabaseClient, Venue

TOKEN = "0123456789abcdef0123456789abcdef"
_consumers = itertools.count(1000)


def claim(number: int | str, *, fingerprint: bytes = b"f" * 16, outcome: Outcome = Outcome.PROCESSED) -> Claim:
    """A claim on the message ID called so."""
    return Claim(blake2b(str(number).encode(), digest_size=16).digest(), f"id-{number}", fingerprint, outcome)


def claims(count: int) -> list[Claim]:
    """Claims in no order."""
    return [claim(number) for number in range(count)]


def ageless(found: Claimed) -> Claimed:
    """What was found, without its age."""
    return Claimed(found.won, {digest: kept._replace(age=0.0) for digest, kept in found.kept.items()})


class Stand:
    """What a test of the contract stands on: a consumer of its own in a database that the class shares."""

    def __init__(self, venue: Venue, tables: Tables = DEFAULT_TABLES) -> None:
        self.venue = venue
        self.tables = tables
        self.dialect: Dialect = dialect_for(venue.url.get_backend_name(), tables)
        self.renew()
        self._parties: list[DatabaseClient] = []

    def renew(self, consumer: int | None = None) -> None:
        """Take another consumer, by default one that has no claims."""
        self.consumer = next(_consumers) if consumer is None else consumer
        self.ledger = Ledger(self.tables, self.dialect, self.consumer)

    def client(self) -> DatabaseClient:
        """A client, closed after the test."""
        self._parties.append(self.venue.client())
        return self._parties[-1]

    def begin(self, client: DatabaseClient, limits: Limits | None = None, token: str = TOKEN) -> None:
        """Begin one of our transactions."""
        client.do(lambda session: self.dialect.begin(session.connection(), limits or Limits(), token))

    def claiming(self, wanted: Iterable[Claim]) -> Callable[[Session], Claimed]:
        """The work of claiming in a transaction that is begun with it."""

        def work(session: Session) -> Claimed:
            connection = session.connection()
            self.dialect.begin(connection, Limits(), TOKEN)
            return self.ledger.claim(connection, wanted)

        return work

    def finalise(self, client: DatabaseClient, token: str = TOKEN) -> bool:
        return client.do(lambda session: self.dialect.finalise(session.connection(), token))

    def rows(self, client: DatabaseClient) -> list[bytes]:
        """The digests that the ledger holds for this consumer, in no order."""
        c = self.tables.processed_messages.c
        query = select(c.digest).where(c.consumer == self.consumer)
        return client.do(lambda session: [bytes(digest) for (digest,) in session.execute(query)])

    def close(self) -> None:
        for client in self._parties:
            client.close()


@pytest.fixture
def stand(venue: Venue) -> Iterator[Stand]:
    """A consumer without claims."""
    made = Stand(venue)
    yield made
    made.close()


@pytest.fixture
def client(stand: Stand) -> DatabaseClient:
    return stand.client()


@pytest.fixture
def other(stand: Stand) -> DatabaseClient:
    return stand.client()


class DialectContract:
    """Each driver's test class inherits it; its module has the fixture `venue`."""

    def test_new_ids_are_all_won(self, stand: Stand, client: DatabaseClient) -> None:
        wanted = claims(5)
        answer = client.do(stand.claiming(wanted))
        assert answer == Claimed({one.digest for one in wanted}, {})
        client.commit()
        assert sorted(stand.rows(client)) == sorted(one.digest for one in wanted)

    def test_no_claims_are_no_statement(self, stand: Stand, client: DatabaseClient) -> None:
        assert client.do(stand.claiming([])) == Claimed(set(), {})

    def test_a_row_is_written_in_its_final_state(self, stand: Stand, client: DatabaseClient) -> None:
        client.do(stand.claiming([claim("é\x01☃", fingerprint=bytes(range(16)), outcome=Outcome.DEAD)]))
        client.commit()
        c = stand.tables.processed_messages.c
        query = select(c.message_id, c.fingerprint, c.outcome, c.processed_at).where(c.consumer == stand.consumer)
        row = client.do(lambda session: session.execute(query).one())
        assert (row.message_id, bytes(row.fingerprint), row.outcome) == ("id-é\x01☃", bytes(range(16)), 3)
        assert row.processed_at is not None

    def test_taken_ids_are_told_with_what_the_ledger_holds(
        self, stand: Stand, client: DatabaseClient, other: DatabaseClient
    ) -> None:
        first = [claim(1, fingerprint=b"a" * 16), claim(2, fingerprint=b"b" * 16, outcome=Outcome.DEAD)]
        client.do(stand.claiming(first))
        client.commit()
        answer = other.do(stand.claiming([claim(1), claim(2), claim(3)]))
        assert answer.won == {claim(3).digest}
        assert ageless(answer).kept == {
            claim(1).digest: Kept(b"a" * 16, Outcome.PROCESSED),
            claim(2).digest: Kept(b"b" * 16, Outcome.DEAD),
        }

    def test_a_lost_claim_changes_nothing_about_the_row(self, stand: Stand, client: DatabaseClient) -> None:
        client.do(stand.claiming([claim(1, fingerprint=b"a" * 16)]))
        client.commit()
        client.do(stand.claiming([claim(1, fingerprint=b"b" * 16, outcome=Outcome.DEAD)]))
        client.commit()
        answer = client.do(stand.claiming([claim(1)]))
        assert ageless(answer).kept == {claim(1).digest: Kept(b"a" * 16, Outcome.PROCESSED)}

    def test_each_consumer_has_ids_of_its_own(self, venue: Venue, stand: Stand, client: DatabaseClient) -> None:
        stranger = Stand(venue)
        client.do(stand.claiming([claim(1)]))
        client.commit()
        assert client.do(stranger.claiming([claim(1)])).won == {claim(1).digest}
        assert client.do(lambda session: stranger.dialect.kept(session.connection(), -1, [claim(1).digest])) == {}

    def test_a_concurrent_copy_waits_and_finds_it_taken(
        self, stand: Stand, client: DatabaseClient, other: DatabaseClient
    ) -> None:
        client.do(stand.claiming([claim(1, fingerprint=b"a" * 16)]))
        copy = other.start(stand.claiming([claim(1), claim(2)]))
        time.sleep(0.3)
        assert not copy.done()
        client.commit()
        assert ageless(copy.result(120)) == Claimed(
            {claim(2).digest}, {claim(1).digest: Kept(b"a" * 16, Outcome.PROCESSED)}
        )

    def test_a_concurrent_copy_of_what_is_rolled_back_wins(
        self, stand: Stand, client: DatabaseClient, other: DatabaseClient
    ) -> None:
        client.do(stand.claiming([claim(1), claim(2)]))
        copy = other.start(stand.claiming([claim(2), claim(1)]))
        time.sleep(0.3)
        assert not copy.done()
        client.rollback()
        assert copy.result(120).won == {claim(1).digest, claim(2).digest}

    def test_a_transaction_that_ends_uncommitted_leaves_nothing(self, stand: Stand, client: DatabaseClient) -> None:
        client.do(stand.claiming(claims(3)))
        client.rollback()
        assert stand.rows(client) == []

    def test_many_ids_are_claimed_and_told(self, stand: Stand, client: DatabaseClient) -> None:
        half, whole = claims(3000)[::2], claims(3000)
        assert len(client.do(stand.claiming(half)).won) == 1500
        client.commit()
        answer = client.do(stand.claiming(whole))
        assert answer.won == {one.digest for one in whole[1::2]}
        assert set(answer.kept) == {one.digest for one in half}

    def test_claims_in_opposite_orders_never_deadlock(
        self, stand: Stand, client: DatabaseClient, other: DatabaseClient
    ) -> None:
        rising = sorted(claims(4000))
        for _ in range(6):
            stand.renew()
            racing = [
                client.start(_then_commit(stand.claiming(rising))),
                other.start(_then_commit(stand.claiming(reversed(rising)))),
            ]
            assert sum(len(one.result(120).won) for one in racing) == 4000

    def test_claims_that_are_released_are_free_again(
        self, stand: Stand, client: DatabaseClient, other: DatabaseClient
    ) -> None:
        client.do(stand.claiming(claims(2500)))
        given_back = [one.digest for one in claims(2500)[100:]]
        client.do(lambda session: stand.dialect.release(session.connection(), stand.consumer, given_back))
        assert stand.finalise(client)
        client.commit()
        assert other.do(stand.claiming(claims(2500))).won == set(given_back)

    def test_an_untouched_transaction_is_still_ours(self, stand: Stand, client: DatabaseClient) -> None:
        client.do(stand.claiming([claim(1)]))
        assert stand.finalise(client)
        client.commit()

    def test_a_transaction_with_a_savepoint_rolled_back_is_still_ours(
        self, stand: Stand, client: DatabaseClient
    ) -> None:
        client.do(stand.claiming([claim(1)]))
        client.do(_roll_back_a_savepoint)
        assert stand.finalise(client)
        client.commit()
        assert stand.rows(client) == [claim(1).digest]

    @pytest.mark.parametrize("end", [Session.commit, Session.rollback])
    def test_a_transaction_that_was_ended_is_not_ours(
        self, stand: Stand, client: DatabaseClient, end: Callable[[Session], None]
    ) -> None:
        client.do(stand.claiming([claim(1)]))
        client.do(end)
        assert not stand.finalise(client)

    @pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
    def test_a_transaction_that_was_ended_in_sql_is_not_ours(
        self, stand: Stand, client: DatabaseClient, end: str
    ) -> None:
        client.do(stand.claiming([claim(1)]))
        client.execute(end)
        client.execute("BEGIN")
        assert not stand.finalise(client)

    def test_another_transaction_of_ours_is_not_this_one(self, stand: Stand, client: DatabaseClient) -> None:
        stand.begin(client, token=TOKEN[::-1])
        assert not stand.finalise(client)

    def finish(self, stand: Stand, client: DatabaseClient) -> None:
        assert stand.finalise(client)
        client.commit()

    def test_a_violated_deferred_constraint_commits_nothing(self, stand: Stand, client: DatabaseClient) -> None:
        client.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
        client.execute("CREATE TABLE children (parent INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)")
        client.commit()
        client.do(stand.claiming([claim(1)]))
        client.execute("INSERT INTO children VALUES (1)")
        with pytest.raises(DBAPIError):
            self.finish(stand, client)
        client.rollback()
        assert stand.rows(client) == []
        client.execute("DROP TABLE children")
        client.execute("DROP TABLE parents")
        client.commit()

    def test_a_probe_passes_a_sound_transaction(self, stand: Stand, client: DatabaseClient) -> None:
        stand.begin(client)
        client.do(lambda session: stand.dialect.probe(session.connection()))

    def test_a_dead_id_is_one_that_was_processed(self, stand: Stand, client: DatabaseClient) -> None:
        digests = [claim(1).digest, claim(2).digest, claim(3).digest]
        client.do(stand.claiming([claim(1)]))
        earlier = client.do(lambda session: stand.dialect.proof(session.connection()))
        client.rollback()
        client.do(stand.claiming([claim(1), claim(2, outcome=Outcome.DEAD)]))
        proof = client.do(lambda session: stand.dialect.proof(session.connection()))
        client.commit()
        assert not client.do(lambda session: stand.ledger.kill(session.connection(), digests, earlier))
        killed = client.do(lambda session: stand.ledger.kill(session.connection(), digests, proof))
        client.commit()
        assert killed == {claim(1).digest}
        assert client.do(stand.claiming([claim(1)])).kept[claim(1).digest].outcome is Outcome.DEAD

    def test_results_are_kept_by_id(self, stand: Stand, client: DatabaseClient) -> None:
        results = {claim(1).digest: '{"a":1}', claim(2).digest: "null"}
        client.do(lambda session: stand.ledger.keep_results(session.connection(), results))
        client.do(lambda session: stand.ledger.keep_results(session.connection(), {}))
        client.commit()
        assert client.do(lambda session: stand.ledger.result(session, claim(1).digest)) == '{"a":1}'
        assert client.do(lambda session: stand.ledger.result(session, claim(3).digest)) is None

    def test_outcomes_are_counted_by_handler(self, venue: Venue, stand: Stand, client: DatabaseClient) -> None:
        name = f"counted-{stand.consumer}"
        insert = "INSERT INTO consumerkit_consumers (id, name, group_name, topics) VALUES (:id, :name, 'g', '[]')"
        client.execute(insert, id=stand.consumer, name=name)
        client.do(stand.claiming([claim(1), claim(2), claim(3, outcome=Outcome.DEAD)]))
        client.commit()
        rows = client.do(lambda session: count_by_outcome(session, stand.tables))
        assert [tuple(row[:3]) for row in rows if row[0] == name] == [(name, 1, 2), (name, 3, 1)]

    def test_other_tables_are_another_ledger(
        self, venue: Venue, stand: Stand, client: DatabaseClient, elsewhere: Tables
    ) -> None:
        client.do(stand.claiming([claim(1)]))
        client.commit()
        apart = Stand(venue, elsewhere)
        apart.renew(stand.consumer)
        assert client.do(apart.claiming([claim(1), claim(2)])).won == {claim(1).digest, claim(2).digest}
        client.commit()
        name = elsewhere.processed_messages.fullname
        assert client.scalar(f"SELECT count(*) FROM {name} WHERE consumer = {stand.consumer}") == 2
        assert len(stand.rows(client)) == 1


def _then_commit(work: Callable[[Session], Claimed]) -> Callable[[Session], Claimed]:
    def both(session: Session) -> Claimed:
        answer = work(session)
        session.commit()
        return answer

    return both


def _roll_back_a_savepoint(session: Session) -> None:
    nested = session.begin_nested()
    session.execute(text("SELECT 1"))
    nested.rollback()
