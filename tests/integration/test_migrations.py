"""Our tables' migrations, and a user's own Alembic beside them, on real databases."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect, text

from consumerkit.errors import ConfigurationError, StartError
from consumerkit.storage import schema
from consumerkit.storage.autogenerate import alembic_filter
from consumerkit.storage.database import Database
from consumerkit.storage.tables import DEFAULT_TABLES, Tables
from tests.integration.fresh_url import fresh_url
from tests.services import PostgresServer
from tests.services.tables import make_tables

pytestmark = pytest.mark.every_variant

REVISIONS = ["0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010", "0011"]

ELSEWHERE = Tables(prefix="ck_", schema="ledger")


@pytest.fixture(params=["postgresql", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database."""
    return fresh_url(request, tmp_path)


@pytest.fixture
def postgres_url(postgres: PostgresServer, database: str) -> str:
    return postgres.url(database)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = create_engine(url)
    yield made
    made.dispose()


Open = Callable[..., Database]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens databases, and closes their connections after the test."""
    known: list[Database] = []

    def open_(given: str | Engine) -> Database:
        known.append(Database(given))
        return known[-1]

    yield open_
    for database in known:
        asyncio.run(database.dispose())


def _drift(engine: Engine, tables: Tables) -> list[object]:
    ours = {table.name for table in tables.metadata.tables.values()}
    options = {
        "include_name": lambda name, type_, _parents: type_ != "table" or name in ours,
        "include_schemas": tables.schema is not None,
        "compare_type": True,
        "compare_server_default": True,
    }
    with engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata))


def test_the_migrated_tables_are_those_of_the_definitions(url: str, engine: Engine, opened: Open) -> None:
    assert schema.upgrade(opened(url)) == REVISIONS

    assert _drift(engine, DEFAULT_TABLES) == []


def test_prefix_and_schema_are_honoured(postgres_url: str, opened: Open) -> None:
    database = opened(postgres_url)

    schema.upgrade(database, ELSEWHERE)

    engine = create_engine(postgres_url)
    assert _drift(engine, ELSEWHERE) == []
    assert inspect(engine).get_table_names() == []
    assert set(inspect(engine).get_table_names("ledger")) == {
        "ck_alembic_version",
        *(table.name for table in ELSEWHERE.metadata.tables.values()),
    }
    database.run_blocking(lambda session: schema.check(session, ELSEWHERE))
    engine.dispose()


def test_sqlite_has_the_storage_the_definitions_ask_for(tmp_path: Path, opened: Open) -> None:
    migrated, defined = f"sqlite:///{tmp_path}/migrated.sqlite", create_engine(f"sqlite:///{tmp_path}/defined.sqlite")
    schema.upgrade(opened(migrated))
    DEFAULT_TABLES.metadata.create_all(defined)

    assert _storage(create_engine(migrated)) == _storage(defined)


def _storage(engine: Engine) -> set[tuple[str, bool, bool]]:
    """Alembic's comparison does not see these."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'table'")).all()
    engine.dispose()
    ours = {table.name for table in DEFAULT_TABLES.metadata.tables.values()}
    return {(name, "WITHOUT ROWID" in sql, "AUTOINCREMENT" in sql) for name, sql in rows if name in ours}


def test_a_second_upgrade_finds_nothing_to_do(url: str, opened: Open) -> None:
    database = opened(url)
    assert schema.upgrade(database) == REVISIONS
    assert schema.upgrade(database) == []


def test_an_asyncpg_url_is_upgraded_too(postgres_url: str, opened: Open) -> None:
    database = opened(postgres_url.replace("+psycopg", "+asyncpg"))
    assert schema.upgrade(database) == REVISIONS
    asyncio.run(_checked(database))


async def _checked(database: Database) -> None:
    await database.run(schema.check)
    await database.dispose()


UPGRADE = """
import sys
from consumerkit.storage import schema
from consumerkit.storage.database import Database
from consumerkit.storage.tables import Tables
tables = Tables(schema=sys.argv[2] or None)
sys.stdin.read(1)
print(schema.upgrade(Database(sys.argv[1]), tables))
"""


def test_of_several_processes_that_upgrade_at_once_one_does(url: str) -> None:
    _upgrade_at_once(url, "")


@pytest.mark.variant
def test_of_several_processes_that_upgrade_a_schema_at_once_one_does(postgres_url: str) -> None:
    _upgrade_at_once(postgres_url, "ledger")


def _upgrade_at_once(url: str, schema_name: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, url, schema_name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("g")
        process.stdin.flush()
    answers = [process.communicate(timeout=120) for process in processes]

    assert sorted(answer[0].strip() for answer in answers) == [str(REVISIONS), "[]", "[]", "[]", "[]"], answers


def test_an_engine_with_another_isolation_level_may_upgrade_at_once(postgres_url: str, opened: Open) -> None:
    engine = create_engine(postgres_url, isolation_level="REPEATABLE READ")
    database = opened(engine)
    with opened(postgres_url).sync_sessions.begin() as first:  # type: ignore[union-attr]
        schema.apply(first)

        async def second() -> list[str]:
            waiting = asyncio.create_task(asyncio.to_thread(schema.upgrade, database))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            await asyncio.to_thread(first.commit)
            return await waiting

        assert asyncio.run(second()) == []
    engine.dispose()


def test_check_names_what_is_missing_and_the_way_out(url: str, engine: Engine, opened: Open) -> None:
    database = opened(url)
    with pytest.raises(StartError, match=r"\(consumerkit_\*\) are missing; run consumerkit db upgrade$"):
        database.run_blocking(schema.check)

    schema.upgrade(database)
    database.run_blocking(schema.check)

    with engine.begin() as connection:
        connection.execute(text("DROP TABLE consumerkit_message_results"))
    with pytest.raises(StartError, match="consumerkit_message_results is missing"):
        database.run_blocking(schema.check)


def test_a_files_name_begins_with_its_revision() -> None:
    scripts = ScriptDirectory(str(Path(schema.__file__).with_name("migrations")))
    assert schema._known() == [script.revision for script in scripts.walk_revisions()][::-1]
    assert schema._wanted() == set(scripts.get_heads())


def test_a_check_of_the_tables_does_not_import_alembic(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    database = Database(url)
    schema.upgrade(database)
    program = (
        "import sys\n"
        "from consumerkit.storage import schema\n"
        "from consumerkit.storage.database import Database\n"
        f"Database({url!r}).run_blocking(schema.check)\n"
        "print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_tables_of_a_newer_consumerkit_are_refused_and_left(url: str, engine: Engine, opened: Open) -> None:
    database = opened(url)
    schema.upgrade(database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE consumerkit_alembic_version SET version_num = '9999'"))

    for work in (schema.check, schema.apply):
        with pytest.raises(StartError, match=r"at revision 9999, which this version of consumerkit does not know"):
            database.run_blocking(work)


def test_a_failed_upgrade_leaves_nothing_behind(url: str, engine: Engine, opened: Open) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE consumerkit_outbox_messages (mine integer)"))

    with pytest.raises(Exception, match="already exists"):
        schema.upgrade(opened(url))

    assert inspect(engine).get_table_names() == ["consumerkit_outbox_messages"]


def test_the_sql_does_what_the_upgrade_does(url: str, engine: Engine, opened: Open) -> None:
    script = schema.upgrade_sql(engine.dialect.name)
    assert script.startswith("BEGIN;")
    assert script.rstrip().endswith("COMMIT;")

    statements = re.sub(r"^(BEGIN|COMMIT);$|--.*$", "", script, flags=re.MULTILINE).split(";")
    with engine.begin() as connection:
        for statement in filter(str.strip, statements):
            connection.execute(text(statement))

    assert _drift(engine, DEFAULT_TABLES) == []
    assert schema.upgrade(opened(url)) == []


@pytest.mark.parametrize("tables", [DEFAULT_TABLES, ELSEWHERE], ids=["default", "elsewhere"])
def test_the_quick_way_of_the_tests_makes_the_same_tables(
    url: str, opened: Open, engine: Engine, tables: Tables
) -> None:
    if url.startswith("sqlite"):
        tables = Tables(prefix=tables.prefix)
    opened(url).run_blocking(lambda session: make_tables(session, tables))

    assert _drift(engine, tables) == []
    assert schema.upgrade(opened(url), tables) == []
    opened(url).run_blocking(lambda session: schema.check(session, tables))


def test_the_sql_makes_the_schema(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    script = schema.upgrade_sql("postgresql", ELSEWHERE)
    with engine.connect() as connection:
        connection.exec_driver_sql(re.sub(r"--.*$", "", script, flags=re.MULTILINE))
    assert _drift(engine, ELSEWHERE) == []
    engine.dispose()


ENV = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, NullPool, Table, create_engine
from consumerkit.storage.autogenerate import alembic_filter
from consumerkit.storage.tables import Tables

metadata = MetaData()
Table("accounts", metadata, Column("id", Integer, primary_key=True))
tables = Tables(schema=context.config.get_main_option("their_schema") or None)
# Without a pool, a migration that fails leaves no connection behind.
engine = create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=NullPool)
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_schemas=tables.schema is not None,
        {filter}
    )
    with context.begin_transaction():
        context.run_migrations()
"""
SCRIPT = """
from alembic import op
import sqlalchemy as sa
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}

def upgrade():
    ${upgrades if upgrades else "pass"}

def downgrade():
    ${downgrades if downgrades else "pass"}
"""


def _user_project(directory: Path, url: str, *, filtered: bool = True, their_schema: str = "") -> Config:
    (directory / "versions").mkdir(parents=True)
    filter_ = "include_name=alembic_filter(tables)," if filtered else ""
    (directory / "env.py").write_text(ENV.replace("{filter}", filter_))
    (directory / "script.py.mako").write_text(SCRIPT)
    config = Config()
    config.set_main_option("script_location", str(directory))
    config.set_main_option("sqlalchemy.url", url)
    config.set_main_option("their_schema", their_schema)
    config.set_main_option("path_separator", "newline")
    return config


def _autogenerated(config: Config, directory: Path) -> str:
    command.revision(config, "next", autogenerate=True)
    (written,) = (directory / "versions").glob("*_next.py")
    return written.read_text()


@pytest.mark.parametrize("their_schema", ["", "ledger"])
def test_a_users_autogenerate_leaves_our_tables_alone(
    url: str, tmp_path: Path, their_schema: str, opened: Open
) -> None:
    if url.startswith("sqlite"):
        their_schema = ""
    schema.upgrade(opened(url), Tables(schema=their_schema or None))

    project = tmp_path / "migrations"
    config = _user_project(project, url, their_schema=their_schema)
    text_ = _autogenerated(config, project)

    assert "create_table('accounts'" in text_
    assert "consumerkit" not in text_
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    opened(url).run_blocking(lambda session: schema.check(session, Tables(schema=their_schema or None)))


def test_without_the_filter_it_would_drop_them(url: str, tmp_path: Path, opened: Open) -> None:
    """What the filter is for; if this fails one day, the filter may go."""
    schema.upgrade(opened(url))
    project = tmp_path / "migrations"

    text_ = _autogenerated(_user_project(project, url, filtered=False), project)

    assert "drop_table('consumerkit_consumers')" in text_


def test_our_upgrade_leaves_a_users_version_table_alone(url: str, engine: Engine, tmp_path: Path, opened: Open) -> None:
    project = tmp_path / "migrations"
    config = _user_project(project, url)
    _autogenerated(config, project)
    command.upgrade(config, "head")

    assert schema.upgrade(opened(url)) == REVISIONS

    assert {"accounts", "alembic_version", "consumerkit_alembic_version"} <= set(inspect(engine).get_table_names())


def test_the_filter_sees_a_users_table_of_the_same_name_in_another_schema() -> None:
    include_name = alembic_filter(ELSEWHERE)
    assert not include_name("ck_consumers", "table", {"schema_name": "ledger"})
    assert include_name("ck_consumers", "table", {"schema_name": "mine"})
    assert include_name("ck_consumers", "index", {"schema_name": "ledger"})


OWN = """
from alembic import op
from alembic import context
import sqlalchemy as sa
from sqlalchemy.orm import Session
from consumerkit.storage import schema
from consumerkit.storage.database import Database
revision, down_revision = "aaaa", None

def upgrade():
    op.create_table("accounts", sa.Column("id", sa.Integer, primary_key=True))
    {work}
    assert context.config.get_main_option("sqlalchemy.url")
    op.create_table("later", sa.Column("id", sa.Integer, primary_key=True))
    {end}

def downgrade():
    op.drop_table("accounts")
"""
APPLY = "schema.apply(Session(op.get_bind()))"
UPGRADE_IN_IT = "schema.upgrade(Database(context.config.get_main_option('sqlalchemy.url')))"


def _own_migration(directory: Path, url: str, work: str, end: str = "") -> Config:
    config = _user_project(directory, url)
    (directory / "versions" / "aaaa_own.py").write_text(OWN.replace("{work}", work).replace("{end}", end or "pass"))
    return config


def test_our_tables_can_be_made_in_a_migration_of_the_users(
    url: str, engine: Engine, tmp_path: Path, opened: Open
) -> None:
    command.upgrade(_own_migration(tmp_path / "migrations", url, APPLY), "head")

    assert {"accounts", "later", "consumerkit_consumers", "alembic_version"} <= set(inspect(engine).get_table_names())
    assert schema.upgrade(opened(url)) == []
    # And where they are there already.
    config = _own_migration(tmp_path / "again", url, APPLY)
    with engine.begin() as connection:
        for table in ("accounts", "later", "alembic_version"):
            connection.execute(text(f"DROP TABLE {table}"))
    command.upgrade(config, "head")


def test_ours_go_with_the_users_migration_when_it_fails(postgres_url: str, tmp_path: Path) -> None:
    config = _own_migration(tmp_path / "migrations", postgres_url, APPLY, "raise RuntimeError('no')")

    with pytest.raises(RuntimeError, match="no"):
        command.upgrade(config, "head")

    engine = create_engine(postgres_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_an_upgrade_of_its_own_is_refused_in_a_migration(url: str, engine: Engine, tmp_path: Path) -> None:
    config = _own_migration(tmp_path / "migrations", url, UPGRADE_IN_IT)

    with pytest.raises(ConfigurationError, match=r"write schema\.apply\(Session\(op\.get_bind\(\)\)\)"):
        command.upgrade(config, "head")

    assert not {name for name in inspect(engine).get_table_names() if name.startswith("consumerkit_")}
