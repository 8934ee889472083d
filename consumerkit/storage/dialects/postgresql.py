"""PostgreSQL, with psycopg or asyncpg."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final
from zlib import crc32

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    Text,
    TextClause,
    cast,
    extract,
    func,
    literal_column,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from consumerkit.handlers.message_id import DIGEST_BYTES
from consumerkit.outcome import Outcome
from consumerkit.storage.dialects import settings
from consumerkit.storage.dialects.base import RELAY_IDLE, Claim, ClaimHolder, Kept, Limits, RelayHolder, check_number
from consumerkit.storage.dialects.holder import holder
from consumerkit.storage.dialects.settings import SessionSettings
from consumerkit.storage.faults import sqlstate
from consumerkit.storage.tables import Tables

# The token is a setting local to the transaction: it is gone after any COMMIT or ROLLBACK, and costs no transaction ID.
# synchronous_commit is raised if it would lose acknowledged commits, and kept if it promises more
# than `on`.
_BEGIN = text(f"""
    SELECT set_config('consumerkit.claim', :token, true),
           {settings.STATE},
           set_config('statement_timeout', :statement, true),
           set_config('lock_timeout', :lock, true),
           set_config('idle_in_transaction_session_timeout', :idle, true),
           (SELECT count(pg_advisory_xact_lock_shared(fence)) FROM unnest(CAST(:fences AS bigint[])) AS f (fence)),
           CASE WHEN current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')
                THEN set_config('synchronous_commit', 'on', true) END,
           {settings.STATE}
""")  # noqa: S608 - the names of settings are ours
_LIMIT = text("""
    SELECT set_config('statement_timeout', :statement, true),
           set_config('lock_timeout', :lock, true),
           set_config('idle_in_transaction_session_timeout', :idle, true)
""")
_TRANSACTION_ID = text("SELECT CAST(txid_current() AS text)")
_PROOF: Final = "consumerkit.proof"
_TRANSACTION_IDS = 1 << 32  # a row holds the lower half
# Separates message IDs as text, which are printable. Each column travels as one value that the
# server splits: the drivers write arrays an element at a time, which took a tenth of a message's
# time.
_SEPARATOR = "\n"
_CONSTRAINTS = text("SET CONSTRAINTS ALL IMMEDIATE")
_TOKEN = text("SELECT current_setting('consumerkit.claim', true)")
_END = text(f"SELECT current_setting('consumerkit.claim', true), {settings.STATE}")
_PROBE = text("SELECT 1")
# A lock of the transaction, not of the session: a session's lock would stay with the connection
# behind a pooler. The relay waits for the broker within this transaction, maybe longer than the
# server or role allows for it. But a frozen process must not keep the lock. The second setting
# exists from PostgreSQL 17 on.
_LOCK_RELAY = text("""
    SELECT pg_try_advisory_xact_lock(:space, :relay),
           set_config('idle_in_transaction_session_timeout', :idle, true),
           CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
                THEN set_config('transaction_timeout', '0', true) END
""")
_LOCK_SPACE = 0x636B  # "ck"
_AWAIT_RELAY = text("SELECT pg_advisory_xact_lock(:space, :relay)")
_RELAY_HOLDER = text("""
    SELECT l.pid, host(a.client_addr) AS address, a.application_name AS application,
           extract(epoch FROM clock_timestamp() - a.state_change) AS silent
    FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
      AND l.classid = CAST(:space AS bigint) AND l.objid = CAST(:relay AS bigint)
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")
_PLANS = text("""
    SELECT set_config('enable_' || name, :allowed, true)
    FROM unnest(ARRAY['sort', 'seqscan', 'bitmapscan', 'hashjoin', 'mergejoin', 'material']) AS t (name)
""")
_LOCK_PRUNING = text("SELECT pg_try_advisory_xact_lock(:space, :pruning)")
_TRY_FENCES = text("""
    SELECT fence, pg_try_advisory_xact_lock(fence) FROM unnest(CAST(:fences AS bigint[])) AS f (fence)
""")
_TAKE_FENCE = text("SELECT pg_advisory_xact_lock(:fence)")
_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :lock, true)")
_MOST_CONNECTIONS = text("""
    SELECT CAST(current_setting('max_connections') AS int)
         - CAST(current_setting('superuser_reserved_connections') AS int)
""")


class PostgreSQL:
    """The dialect for PostgreSQL 12 and newer."""

    single_writer = False

    def __init__(self, tables: Tables) -> None:
        self._ledger = tables.processed_messages
        ledger, consumers = quoted(tables.processed_messages), quoted(tables.consumers)
        self._relay = crc32(tables.identity(tables.outbox_messages).encode()) & 0x7FFFFFFF
        self._pruning = crc32(f"{tables.identity(self._ledger)} pruning".encode()) & 0x7FFFFFFF
        self._claim = text(f"""
            WITH won AS (
                INSERT INTO {ledger} (consumer, digest, message_id, fingerprint, outcome, fingerprint_version)
                SELECT :consumer,
                       substring(CAST(:digests AS bytea) FROM n * {DIGEST_BYTES} + 1 FOR {DIGEST_BYTES}),
                       message_id,
                       substring(CAST(:fingerprints AS bytea) FROM n * {DIGEST_BYTES} + 1 FOR {DIGEST_BYTES}),
                       get_byte(CAST(:outcomes AS bytea), n),
                       NULLIF(get_byte(CAST(:versions AS bytea), n), 0)
                FROM (SELECT message_id, CAST(ordinality - 1 AS int) AS n
                      FROM unnest(string_to_array(CAST(:message_ids AS text), chr({ord(_SEPARATOR)})))
                      WITH ORDINALITY AS given (message_id, ordinality)) AS claims
                ON CONFLICT (consumer, digest) DO NOTHING
                RETURNING digest
            )
            SELECT string_agg(digest, CAST('' AS bytea)), (SELECT id FROM {consumers} WHERE name = CAST(:name AS text)),
                   CASE WHEN count(*) > 0 THEN CAST(txid_current() AS text) END
            FROM won
        """)  # noqa: S608 - the tables' names are quoted
        self._kept = text(
            "SELECT digest, fingerprint, outcome, fingerprint_version, "  # noqa: S608
            f"CAST(EXTRACT(epoch FROM clock_timestamp() - processed_at) AS float) FROM {ledger} "
            "WHERE consumer = :consumer AND digest = ANY(CAST(:digests AS bytea[]))"
        )
        self._release = text(
            f"DELETE FROM {ledger} "  # noqa: S608
            "WHERE consumer = :consumer AND digest = ANY(CAST(:digests AS bytea[]))"
        )

    def begin(self, connection: Connection, limits: Limits, token: str, fences: Sequence[int] = ()) -> SessionSettings:
        """See `Dialect.begin`."""
        connection.info.pop(_PROOF, None)
        told = connection.execute(
            _BEGIN,
            {
                "token": token,
                "fences": list(fences),
                **_limits(limits),
            },
        ).one()
        return SessionSettings(told[1], told[-1])

    def limit(self, connection: Connection, limits: Limits) -> None:
        """See `Dialect.limit`."""
        connection.execute(_LIMIT, _limits(limits))

    def is_open(self, connection: Connection) -> bool:
        """See `Dialect.is_open`."""
        driver: Any = connection.connection.driver_connection
        if hasattr(driver, "is_in_transaction"):
            return bool(driver.is_in_transaction())
        return bool(driver.info.transaction_status)

    def proof(self, connection: Connection) -> str:
        """See `Dialect.proof`: the transaction's ID, which the claim returned if it inserted anything."""
        return str(connection.info.get(_PROOF) or connection.execute(_TRANSACTION_ID).scalar_one())

    def written_by(self, proof: str) -> ColumnElement[bool]:
        """See `Dialect.written_by`: no other transaction has its ID."""
        return cast(literal_column("xmin"), Text) == str(int(proof) % _TRANSACTION_IDS)

    def claimed_at(self, connection: Connection) -> Any:
        """See `Dialect.claimed_at`."""
        return func.now()

    def take_over(self, connection: Connection, fence: int, *, wait: float) -> bool:
        """See `Dialect.take_over`; lock requests queue fairly, so later shared requests wait behind it."""
        if wait <= 0:
            return bool(self.take_free(connection, [fence]))
        return _in_time(connection, wait, _TAKE_FENCE, {"fence": fence})

    def take_free(self, connection: Connection, fences: Sequence[int]) -> list[int]:
        """See `Dialect.take_free`."""
        return [fence for fence, free in connection.execute(_TRY_FENCES, {"fences": list(fences)}) if free]

    def in_seconds(self, seconds: float) -> ColumnElement[Any]:
        """See `Dialect.in_seconds`; not `now()`, which is constant within a transaction."""
        return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)

    def seconds_since(self, moment: ColumnElement[Any]) -> ColumnElement[Any]:
        """See `Dialect.seconds_since`."""
        return extract("epoch", func.clock_timestamp() - moment)

    def claim(
        self, connection: Connection, consumer: int, claims: Sequence[Claim], *, name: str | None = None
    ) -> set[bytes]:
        """See `Dialect.claim`."""
        digests, message_ids, fingerprints, outcomes, versions = zip(*claims, strict=True)
        names = _SEPARATOR.join(message_ids)
        assert names, "a message ID as text is empty"
        assert names.count(_SEPARATOR) == len(claims) - 1, "a message ID as text is not printable"
        parameters = {
            "consumer": consumer,
            "name": name,
            "digests": b"".join(digests),
            "message_ids": names,
            "fingerprints": b"".join(fingerprints),
            "outcomes": bytes(outcomes),
            "versions": bytes(version or 0 for version in versions),
        }
        answer, number, transaction = connection.execute(self._claim, parameters).one()
        check_number(consumer, name, number)
        won = bytes(answer or b"")
        if transaction is not None:
            connection.info[_PROOF] = transaction
        return {won[at : at + DIGEST_BYTES] for at in range(0, len(won), DIGEST_BYTES)}

    def kept(self, connection: Connection, consumer: int, digests: Sequence[bytes]) -> dict[bytes, Kept]:
        """See `Dialect.kept`."""
        rows = connection.execute(self._kept, {"consumer": consumer, "digests": list(digests)})
        return {
            bytes(digest): Kept(bytes(found), Outcome(outcome), version, max(0.0, age))
            for digest, found, outcome, version, age in rows
        }

    def holder(self, connection: Connection, consumer: int, digest: bytes) -> ClaimHolder:
        """See `Dialect.holder`."""
        return holder(connection, self._ledger, consumer, digest)

    def release(self, connection: Connection, consumer: int, digests: Sequence[bytes]) -> None:
        """See `Dialect.release`."""
        connection.execute(self._release, {"consumer": consumer, "digests": list(digests)})

    def finalise(
        self, connection: Connection, token: str, begun: SessionSettings | None = None, *, local: bool = False
    ) -> bool:
        """See `Dialect.finalise`."""
        connection.execute(_CONSTRAINTS)
        found, state = connection.execute(_END).one()
        if found != token:
            return False
        if begun is not None:
            settings.put_back(connection, begun, state, local=local)
        return True

    def holds(self, connection: Connection, token: str) -> bool:
        """See `Dialect.holds`."""
        return bool(connection.execute(_TOKEN).scalar_one() == token)

    def probe(self, connection: Connection) -> None:
        """See `Dialect.probe`."""
        connection.execute(_PROBE)

    def relay_guard(self, location: str) -> AbstractContextManager[bool]:
        """See `Dialect.relay_guard`."""
        return nullcontext(True)

    def lock_relay(self, session: Session, *, wait: float = 0.0) -> bool:
        """See `Dialect.lock_relay`; one that waits is next, while one that only polls may never get the turn."""
        # Not with an engine's autocommit, which would release the lock at once.
        connection = session.connection(execution_options={"isolation_level": self.isolation()})
        place = {"space": _LOCK_SPACE, "relay": self._relay}
        if wait > 0 and not _in_time(connection, wait, _AWAIT_RELAY, place):
            return False
        return bool(connection.scalar(_LOCK_RELAY, {**place, "idle": _milliseconds(RELAY_IDLE)}))

    def relay_lives(self, location: str) -> None:
        """See `Dialect.relay_lives`: each statement is a sign of life."""

    def relay_holder(self, connection: Connection, location: str) -> RelayHolder | None:
        """See `Dialect.relay_holder`; whether another role's session is alive cannot be seen."""
        row = connection.execute(_RELAY_HOLDER, {"space": _LOCK_SPACE, "relay": self._relay}).first()
        if row is None:
            return None
        name = f"the server's process {row.pid} (client {row.address or 'unknown'}, {row.application or 'no name'})"
        return RelayHolder(name, None if row.silent is None else float(row.silent))

    @contextmanager
    def by_index(self, connection: Connection) -> Iterator[None]:
        """See `Dialect.by_index`.

        A plan that sorts, or that scans another index, reads everything before it returns the first
        row. With statistics from when the table was short, such a plan looks cheap.
        """
        connection.execute(_PLANS, {"allowed": "off"})
        yield
        connection.execute(_PLANS, {"allowed": "on"})

    def lock_pruning(self, connection: Connection) -> bool:
        """See `Dialect.lock_pruning`."""
        return bool(connection.execute(_LOCK_PRUNING, {"space": _LOCK_SPACE, "pruning": self._pruning}).scalar_one())

    def isolation(self) -> str | None:
        """See `Dialect.isolation`."""
        return "READ COMMITTED"

    def most_connections(self, connection: Connection) -> int | None:
        """See `Dialect.most_connections`."""
        return int(connection.execute(_MOST_CONNECTIONS).scalar_one())


def _in_time(connection: Connection, wait: float, statement: TextClause, place: Mapping[str, int]) -> bool:
    """Take a lock; return False if that took too long, which ends the transaction."""
    try:
        connection.execute(_LOCK_TIMEOUT, {"lock": _milliseconds(wait)})
        connection.execute(statement, place)
    except DBAPIError as error:
        if sqlstate(error) == "55P03":
            return False
        raise
    return True


def quoted(table: Table) -> str:
    """Return a table's name for `text`."""
    # A schema found in the database may have any name; `text` would read a colon as a parameter.
    schema = "" if table.schema is None else '"' + table.schema.replace('"', '""').replace(":", "\\:") + '".'
    return f"{schema}{table.name}"


def _limits(limits: Limits) -> dict[str, str]:
    return {
        "statement": _milliseconds(limits.statement),
        "lock": _milliseconds(limits.lock),
        "idle": _milliseconds(limits.idle),
    }


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))
