"""Names of tables and database arguments that cannot work are one line each, before anything is tried."""

from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from consumerkit.errors import ConfigurationError
from consumerkit.redaction.plain_words import shown_word
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.tables import DEFAULT_TABLES, Tables

SECRET = "s3cret"
DRIVERS = (
    "postgresql",
    "postgresql+asyncpg",
    "postgresql+psycopg",
    "postgresql+psycopg_async",
    "sqlite",
    "sqlite+aiosqlite",
    "sqlite+pysqlite",
)


def test_each_table_is_named_with_prefix_and_schema() -> None:
    tables = Tables(prefix="ck_", schema="ledger")
    assert sorted(tables.metadata.tables) == [
        "ledger.ck_consumers",
        "ledger.ck_dead_letters",
        "ledger.ck_first_runs",
        "ledger.ck_lane_progress",
        "ledger.ck_message_results",
        "ledger.ck_message_steps",
        "ledger.ck_operator_actions",
        "ledger.ck_outbox_messages",
        "ledger.ck_parked_messages",
        "ledger.ck_partition_progress",
        "ledger.ck_processed_messages",
    ]
    assert tables.processed_messages.fullname == "ledger.ck_processed_messages"
    assert tables.version_table == "ck_alembic_version"
    assert DEFAULT_TABLES.consumers.fullname == "consumerkit_consumers"


def test_indexes_and_constraints_are_named_with_the_prefix() -> None:
    names = [index.name for table in Tables(prefix="ck_").metadata.tables.values() for index in table.indexes]
    assert names
    assert all(str(name).startswith("ck_") for name in names)


def test_two_definitions_alike_are_equal_and_apart_from_others() -> None:
    assert Tables(prefix="ck_") == Tables(prefix="ck_") != Tables(prefix="ck_", schema="ledger")


def test_a_prefix_is_not_empty() -> None:
    with pytest.raises(ConfigurationError):
        Tables(prefix="")


@pytest.mark.parametrize(
    "name", ["Ledger", "1st", "a-b", "a b", 'a"b', "a;--", "ä", "a" * 32, "a.b", "x\n", "%s", ":x"]
)
@pytest.mark.parametrize("what", ["prefix", "schema"])
def test_a_name_that_would_need_quotes_is_refused(what: str, name: str) -> None:
    given: dict[str, Any] = {what: name}
    with pytest.raises(ConfigurationError) as caught:
        Tables(**given)
    assert str(caught.value) == (
        f"Tables({what}={shown_word(name)}): use up to 31 lower-case letters, digits and underscores, "
        "the first of them not a digit"
    )


@pytest.mark.parametrize(
    "url, line",
    [
        (
            f"postgres:user:{SECRET}@host",
            "database: cannot read the URL; write it like postgresql+psycopg://user:password@host:5432/name",
        ),
        (
            f"mysql://u:{SECRET}@host/x",
            "database: 'mysql' is not supported; use one of " + ", ".join(DRIVERS),
        ),
    ],
)
def test_a_url_that_leads_nowhere_is_named_without_its_password(url: str, line: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Database(url)
    assert str(caught.value) == line
    assert caught.value.__cause__ is None


def test_what_is_no_way_in_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^database=int: give a URL, an Engine, an AsyncEngine"):
        Database(7)  # type: ignore[arg-type]


def test_a_sessionmaker_without_an_engine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the sessionmaker is bound to no engine; give it bind=engine"):
        Database(sessionmaker())


@pytest.mark.parametrize("argument", [{"binds": {object: None}}, {"twophase": True}, {"autobegin": False}])
def test_a_sessionmaker_without_one_transaction_for_all_is_refused(argument: dict[str, Any]) -> None:
    (name,) = argument
    with pytest.raises(ConfigurationError, match=f"without {name}="):
        Database(sessionmaker(create_engine("sqlite://"), **argument))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{SECRET}@h/x",
        f"postgresql+psycopg://u@h/x?password={SECRET}",
        f"postgresql+asyncpg://u:{SECRET}@h/x?password={SECRET}&ssl=require",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    assert SECRET not in repr(Database(url))


@pytest.mark.parametrize(
    "url, coroutines, threads",
    [
        ("postgresql://h/x", "postgresql+psycopg", "postgresql+psycopg"),
        ("postgresql+psycopg_async://h/x", "postgresql+psycopg", "postgresql+psycopg"),
        ("postgresql+asyncpg://h/x", "postgresql+asyncpg", None),
        ("sqlite:///x", "sqlite+aiosqlite", "sqlite+pysqlite"),
    ],
)
def test_a_url_opens_a_way_for_each_kind_of_handler(url: str, coroutines: str, threads: str | None) -> None:
    database = Database(url)
    assert database.async_sessions is not None
    assert database.async_sessions.kw["bind"].url.drivername == coroutines
    found = None if database.sync_sessions is None else database.sync_sessions.kw["bind"].url.drivername
    assert found == threads


def test_our_engines_keep_parameters_out_of_logs() -> None:
    for url in ("postgresql://h/x", "postgresql+asyncpg://h/x", "sqlite:///x"):
        database = Database(url)
        assert database.async_sessions is not None
        assert database.async_sessions.kw["bind"].sync_engine.hide_parameters


def test_an_engine_that_is_given_stays_its_owners() -> None:
    engine = create_engine("sqlite://")
    database = Database(engine)
    assert database.async_sessions is None
    assert database.dialect_name == "sqlite"
    assert database.location in ("", ":memory:")
    engine.dispose()


def test_a_dialect_that_we_do_not_speak_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^database: 'oracle' is not supported; use PostgreSQL or SQLite$"):
        dialect_for("oracle", DEFAULT_TABLES)
