"""Which SQL ends a transaction, and which only looks like it."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, StaticPool, create_engine, text
from sqlalchemy.orm import Session

from consumerkit.engine.transaction.guard import OPTION, guard
from consumerkit.engine.transaction.statements import ending
from consumerkit.errors import SessionOver, SessionUnfit, TransactionMisused
from consumerkit.storage.database import Database

ENDS = [
    "COMMIT",
    "commit;",
    "  \n\tCOMMIT WORK",
    "COMMIT AND CHAIN",
    "COMMIT PREPARED 'x'",
    "END",
    "END TRANSACTION",
    "ABORT",
    "ROLLBACK",
    "rollback work",
    "ROLLBACK TRANSACTION",
    "ROLLBACK AND CHAIN",
    "ROLLBACK PREPARED 'x'",
    "BEGIN",
    "BEGIN ISOLATION LEVEL SERIALIZABLE",
    "BEGIN IMMEDIATE TRANSACTION",
    "START TRANSACTION",
    "start  \n transaction read only",
    "PREPARE TRANSACTION 'x'",
    "/* now */ COMMIT",
    "/* a * b ** c */COMMIT",
    "/**/COMMIT",
    "-- now\nCOMMIT",
    "-- now\n\n  /* and */ -- then\n END",
    "; COMMIT",
    ";;COMMIT",
    "COMMIT/* */",
    "ROLLBACK/* TO */",
    "ROLLBACK -- TO\n",
    "START/* */TRANSACTION",
    "PREPARE -- x\n TRANSACTION 'x'",
    "UPDATE t SET a = 1; ROLLBACK",
    "UPDATE t SET a = 1;ROLLBACK;",
    "UPDATE t SET a = 'it''s; x' ; commit",
    "SELECT 1; /* then */ -- and\n END",
    "SELECT 1; ROLLBACK; BEGIN",
    "SAVEPOINT a; ROLLBACK TO a; ROLLBACK",
    "SELECT E'a\\'; SELECT '; COMMIT; --'",
    "SELECT e'\\\\'; COMMIT",
    "SELECT U&'a\\'; ABORT",
    "SELECT $$ ; $$; COMMIT",
    "SELECT $a$ $$ $b$ ; $a$; COMMIT",
    'SELECT 1 AS ";"; START TRANSACTION',
    'SELECT 1 AS "a"";"; PREPARE TRANSACTION \'x\'',
    "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); COMMIT",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; END; COMMIT",
    "DO $$ BEGIN END $$; ROLLBACK",
    "SELECT a$b$ FROM t; COMMIT; SELECT a$b$ FROM t",
    "SELECT 'open; COMMIT'; COMMIT; SELECT 'open",
]
PASSES = [
    "SELECT 1",
    "ROLLBACK TO one",
    "ROLLBACK TO SAVEPOINT one",
    "rollback work to savepoint one",
    "ROLLBACK TRANSACTION TO one",
    "ROLLBACK /* only */ TO one",
    "SAVEPOINT one",
    "RELEASE SAVEPOINT one",
    "RELEASE one",
    "DO $$ BEGIN PERFORM 1; END $$",
    "INSERT INTO commits VALUES (1)",
    "SELECT 'COMMIT'",
    "-- COMMIT\nSELECT 1",
    "/* COMMIT */ SELECT 1",
    "PREPARE plan AS SELECT 1",
    "PREPARE transactions AS SELECT 1",
    "ENDPOINT",
    "commit_log",
    "SET TRANSACTION READ ONLY",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "LOCK TABLE x",
    "",
    "SELECT 1; SELECT 'x; COMMIT'",
    "SELECT 1; SELECT E'x\\'; COMMIT'",
    "SELECT 1; -- ; COMMIT\nSELECT 2",
    "SELECT 1; /* ; COMMIT; */ SELECT 2",
    "SELECT $$; COMMIT;$$",
    "SELECT $q$; COMMIT; $$ ; END; $q$",
    'SELECT 1 AS "; COMMIT"',
    "SAVEPOINT a; UPDATE t SET a = 1; ROLLBACK TO a; RELEASE a",
    "SELECT CASE WHEN a THEN 1 END; SELECT 2",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 END; END",
    "CREATE OR REPLACE PROCEDURE p() LANGUAGE sql BEGIN ATOMIC INSERT INTO t VALUES (1); END; SELECT 1",
    "CREATE TRIGGER r AFTER INSERT ON t BEGIN UPDATE t SET a = 1; END; SELECT 1",
    "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)",
    "SELECT 'it is open; COMMIT",
    "SELECT $a$ open; COMMIT",
    "SELECT 1 /* open; COMMIT",
]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """SQLite in memory."""
    made = create_engine("sqlite://", poolclass=StaticPool)
    yield made
    made.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session like the worker's."""
    database = Database(engine)
    assert database.sync_sessions is not None
    made = database.sync_sessions()
    made.connection(execution_options={OPTION: True})
    yield made
    made.close()


def refused(session: Session, statement: str) -> str | None:
    """Why a statement is refused, or None where it reaches the database."""
    try:
        session.connection().exec_driver_sql(statement)
    except TransactionMisused as error:
        return str(error)
    except Exception:
        return None
    return None


@pytest.mark.parametrize("statement", ENDS)
def test_what_ends_the_transaction_is_refused(session: Session, statement: str) -> None:
    why = refused(session, statement)
    assert why is not None
    assert why.startswith("the handler executed ")
    assert "\n" not in why


@pytest.mark.parametrize("statement", PASSES)
def test_what_does_not_end_it_passes(session: Session, statement: str) -> None:
    assert refused(session, statement) is None


def test_a_statement_of_comments_without_end_is_matched_in_no_time(session: Session) -> None:
    assert refused(session, "/*" + "*" * 50_000 + " SELECT 1") is None
    assert refused(session, "-- x\n" * 20_000 + "SELECT 1") is None
    assert refused(session, "/* x */" * 20_000 + "COMMIT") is not None


@pytest.mark.parametrize(
    "statement, nested, plain",
    [
        ("/* /* */ COMMIT; */ SELECT 1", None, "COMMIT"),
        ("SELECT 1; /* /* */ */ COMMIT", "COMMIT", None),
        ("SELECT [;] ; COMMIT", "COMMIT", "COMMIT"),
        ("SELECT 1 AS [; COMMIT]", "COMMIT", None),
        ("SELECT 1 AS `; COMMIT;`", "COMMIT", None),
    ],
)
def test_comments_nest_on_postgresql_and_sqlite_has_quotes_of_its_own(
    statement: str, nested: str | None, plain: str | None
) -> None:
    assert ending(statement, nested=True) == nested
    if plain is not None or "*/ COMMIT" not in statement:
        assert ending(statement, nested=False) == plain


def test_a_session_that_is_not_ours_may_end_its_transaction(engine: Engine) -> None:
    with Session(engine) as mine:
        assert refused(mine, "COMMIT") is None
        mine.commit()


def test_commit_is_refused_and_remembered(session: Session) -> None:
    watch = guard(session)
    with pytest.raises(TransactionMisused, match="called commit"):
        session.commit()
    with pytest.raises(TransactionMisused, match="called commit"):
        watch.check()


@pytest.mark.parametrize("end", [Session.rollback, Session.close, Session.reset])
def test_rollback_and_close_are_remembered(session: Session, end: Callable[[Session], None]) -> None:
    watch = guard(session)
    session.execute(text("SELECT 1"))
    end(session)
    with pytest.raises(TransactionMisused, match="rolled back or closed"):
        watch.check()


def test_a_savepoint_of_the_handlers_own_is_none_of_our_business(session: Session) -> None:
    watch = guard(session)
    with session.begin_nested():
        session.execute(text("SELECT 1"))
    nested = session.begin_nested()
    session.execute(text("SELECT 1"))
    nested.rollback()
    nested = session.begin_nested()
    nested.commit()
    watch.check()


def test_a_second_transaction_of_the_session_is_refused_and_remembered(engine: Engine) -> None:
    """Also where it writes nothing; the session's class, a mapper or a bind key may have opened it."""
    other = create_engine("sqlite://")
    try:
        with Session(engine) as session:
            watch = guard(session, engine)
            session.execute(text("SELECT 1"))
            with pytest.raises(SessionUnfit, match="began a second transaction"):
                session.execute(text("SELECT 1"), bind_arguments={"bind": other})
            with pytest.raises(SessionUnfit, match="began a second transaction"):
                watch.check()
    finally:
        other.dispose()


def test_a_session_that_is_over_refuses(engine: Engine) -> None:
    with Session(engine) as session:
        watch = guard(session, engine)
        session.execute(text("SELECT 1"))
        watch.end("shop")
        session.rollback()
        with pytest.raises(SessionOver, match="after the transaction was over"):
            session.execute(text("SELECT 1"))


def test_a_guard_that_is_open_no_more_lets_us_commit(session: Session) -> None:
    watch = guard(session)
    watch.open = False
    session.commit()
    session.rollback()
    watch.check()
