"""What a handler sets for its transaction or session reaches its own statements, and none of ours."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine

from consumerkit import Context, Handler, Retry, fixed, header
from consumerkit.events import MessageDeadLettered
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, line
from tests.services import PostgresServer

OURS = ("processed_messages", "lane_progress", "outbox_messages", "dead_letters", "parked_messages")
WATCHED = (
    "role",
    "search_path",
    "row_security",
    "session_replication_role",
    "synchronous_commit",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "timezone",
    "datestyle",
    "bytea_output",
    "standard_conforming_strings",
)
AS_JSON = ", ".join(f"'{name}', current_setting('{name}')" for name in WATCHED)


@dataclass
class Tenancy:
    """A database with a tenant's role and schema, and triggers that note the settings of our writes."""

    place: MemoryStage
    role: str
    admin: "psycopg.Connection[tuple[Any, ...]]"

    def seen(self) -> list[tuple[str, dict[str, str]]]:
        """Each of our tables that was written after a handler, with the settings then."""
        return list(self.admin.execute("SELECT what, settings FROM public.seen ORDER BY at").fetchall())

    def settings(self) -> dict[str, str]:
        """The settings of a new session."""
        with psycopg.connect(self.place.url.replace("+psycopg", "").replace("+asyncpg", "")) as fresh:
            found = fresh.execute(f"SELECT json_build_object({AS_JSON})".encode()).fetchone()
        assert found is not None
        return dict(found[0])


@pytest.fixture(params=["psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def tenancy(postgres: PostgresServer, database: str, driver: str) -> AsyncIterator[Tenancy]:
    url = postgres.url(database)
    made = MemoryStage(url)
    await made.create_tables()
    role = f"tenant_{uuid4().hex[:8]}"
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as admin:
        for statement in (
            f"CREATE ROLE {role}",
            f"CREATE SCHEMA tenant AUTHORIZATION {role}",
            f"GRANT SELECT, INSERT ON lines TO {role}; GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
            # Foreign tables under our names, which accept every row.
            *(
                f"CREATE TABLE tenant.consumerkit_{name} (LIKE public.consumerkit_{name} INCLUDING ALL)"
                for name in OURS
            ),
            "CREATE TABLE public.seen (at bigserial, what text, settings json)",
            f"""
            CREATE FUNCTION public.watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO public.seen (what, settings)
                VALUES (TG_TABLE_NAME, json_build_object({AS_JSON}));
                RETURN NULL;
            END $$
            """,
            *(
                f"CREATE TRIGGER watch AFTER INSERT OR UPDATE ON public.consumerkit_{name} EXECUTE FUNCTION watch()"
                for name in OURS[1:]
            ),
            *(f"ALTER TABLE public.consumerkit_{name} ENABLE ALWAYS TRIGGER watch" for name in OURS[1:]),
            """
            CREATE FUNCTION public.set_unseen(name text, value text, local boolean) RETURNS void LANGUAGE plpgsql
            AS $$ BEGIN PERFORM set_config(name, value, local); END $$
            """,
        ):
            admin.execute(statement.encode())
        place = MemoryStage(url.replace("+psycopg", f"+{driver}"))
        yield Tenancy(place, role, admin)
        await place.close()
        await made.close()
        admin.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}".encode())


SETTINGS = {
    "role": "ROLE {role}",
    "path": "search_path TO tenant, public",
    "path without a name of ours": "search_path TO nowhere, public",
    "commit": "synchronous_commit TO off",
    "security": "row_security TO off",
    "replication": "session_replication_role TO replica",
    "lock": "lock_timeout TO '7s'",
    "statement": "statement_timeout TO '7s'",
    "idle": "idle_in_transaction_session_timeout TO '7s'",
    "read-only": "default_transaction_read_only TO on",
    "isolation": "default_transaction_isolation TO serializable",
    "zone": "TIME ZONE 'Asia/Tokyo'",
    "dates": "datestyle TO 'ISO, DMY'",
    "bytes": "bytea_output TO escape",
    "strings": "standard_conforming_strings TO off",
}


@pytest.mark.parametrize("scope", ["SET LOCAL", "SET"])
@pytest.mark.parametrize("what", SETTINGS)
async def test_no_setting_of_a_handler_reaches_us_or_what_comes_later(tenancy: Tenancy, scope: str, what: str) -> None:
    statement = f"{scope} {SETTINGS[what].format(role=tenancy.role)}"
    await check(tenancy, lambda context: [statement])


FUNCTIONS = {
    "search_path": "tenant, public",
    "role": "{role}",
    "synchronous_commit": "off",
    "statement_timeout": "7s",
    "default_transaction_read_only": "on",
}


@pytest.mark.parametrize("local", ["true", "false"])
@pytest.mark.parametrize("call", ["set_config", "set_unseen"])
@pytest.mark.parametrize("name", FUNCTIONS)
async def test_nor_does_what_a_function_sets(tenancy: Tenancy, name: str, call: str, local: str) -> None:
    value = FUNCTIONS[name].format(role=tenancy.role)
    await check(tenancy, lambda context: [f"SELECT {call}('{name}', '{value}', {local})"])


async def test_nor_does_another_user(tenancy: Tenancy) -> None:
    await check(tenancy, lambda context: [f"SET SESSION AUTHORIZATION {tenancy.role}"])


async def check(tenancy: Tenancy, sets: Callable[[Context], list[str]]) -> None:
    """Run three messages, each in a transaction of its own on one of few connections; all begin as a session does."""
    begun: list[dict[str, str]] = []
    place = tenancy.place

    async def before(context: Context) -> None:
        asked = await context.session.scalar(text(f"SELECT json_build_object({AS_JSON})"))
        begun.append(dict(asked))
        for statement in sets(context):
            await context.session.execute(text(statement))

    for number in range(3):
        place.append(number)
    async with place.run(Write(before, batch_size=1, concurrency=1)) as run:
        lines = await place.until_written(run, 3)
    assert [one.message_id for one in lines] == ["0", "1", "2"]
    ours = {
        "role": "none",
        "statement_timeout": "1min",
        "lock_timeout": "30s",
        "idle_in_transaction_session_timeout": "1min",
        "synchronous_commit": "on",
    }
    expected = tenancy.settings() | ours
    if tenancy.place.url.startswith("postgresql+asyncpg"):
        expected["timezone"] = begun[0]["timezone"]
    assert [differences(one, expected) for one in begun] == [{}] * 3
    written = [settings for table, settings in tenancy.seen() if table == "consumerkit_lane_progress"]
    assert [differences(one, expected) for one in written[-3:]] == [{}] * 3
    (hidden,) = tenancy.admin.execute("SELECT count(*) FROM tenant.consumerkit_processed_messages").fetchone() or (0,)
    (known,) = tenancy.admin.execute("SELECT count(*) FROM public.consumerkit_processed_messages").fetchone() or (0,)
    assert (hidden, known) == (0, 3)


def differences(found: dict[str, str], expected: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in found.items() if value != expected[name]}


class Tenant(Handler[bytes]):
    """As the docs recommend it: the tenant is set in `session_setup`."""

    name = "write"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=1, wait=fixed(0))

    def __init__(self, *statements: str) -> None:
        self.statements = statements

    async def session_setup(self, event: bytes, session: Any) -> None:
        for statement in self.statements:
            await session.execute(text(statement))

    async def handle(self, event: bytes, context: Context) -> None:
        context.session.add(line(context))
        context.publish("out", value=b"1")
        if event == b"bad":
            raise ValueError("bad")


async def test_outbox_and_dead_letters_are_written_as_the_worker(tenancy: Tenancy) -> None:
    place = tenancy.place
    place.append(1)
    place.append(2, value=b"bad")
    place.append(3)
    handler = Tenant(f"SET LOCAL ROLE {tenancy.role}", "SET LOCAL search_path TO tenant, public")
    async with place.run(handler) as run:
        await place.until_written(run, 2)
        await run.until(lambda: bool(run.seen(MessageDeadLettered)), "the dead letter")
    seen = {table: (settings["role"], settings["search_path"]) for table, settings in tenancy.seen()}
    assert seen["consumerkit_outbox_messages"] == seen["consumerkit_dead_letters"] == ("none", '"$user", public')


async def test_the_users_flush_and_deferred_constraints_run_as_the_handler_set(tenancy: Tenancy) -> None:
    place = tenancy.place
    for statement in (
        f"CREATE TABLE done (at bigserial, who text, path text); GRANT INSERT ON done TO {tenancy.role}",
        f"GRANT USAGE ON SEQUENCE done_at_seq TO {tenancy.role}",
        """
        CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO public.done (who, path) VALUES (current_user, current_setting('search_path'));
            RETURN NULL;
        END $$
        """,
        """
        CREATE CONSTRAINT TRIGGER note AFTER INSERT ON lines DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION public.note()
        """,
    ):
        tenancy.admin.execute(statement.encode())
    place.append(1)
    handler = Tenant(f"SET LOCAL ROLE {tenancy.role}", "SET LOCAL search_path TO tenant, public")
    async with place.run(handler) as run:
        await place.until_written(run, 1)
    assert tenancy.admin.execute("SELECT who, path FROM done").fetchall() == [(tenancy.role, "tenant, public")]


async def test_a_role_and_a_path_set_on_connect_stay(tenancy: Tenancy) -> None:
    """RESET would undo them: they are put back to what they were at BEGIN, also where a hook sets them locally."""
    app = tenancy.role.replace("tenant", "app")
    tenancy.admin.execute(f"CREATE ROLE {app}; GRANT {tenancy.role} TO {app}".encode())
    tenancy.admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {app}".encode())
    tenancy.admin.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {app}".encode())
    engine = create_async_engine(tenancy.place.url)

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET ROLE {app}")
        cursor.close()
        connection.commit()

    try:
        for number in range(2):
            tenancy.place.append(number)
        handler = Tenant(f"SET ROLE {tenancy.role}")
        async with tenancy.place.run(handler, database=engine) as run:
            await tenancy.place.until_written(run, 2)
        roles = [settings["role"] for table, settings in tenancy.seen() if table == "consumerkit_outbox_messages"]
        assert set(roles) == {app}
    finally:
        await engine.dispose()
        tenancy.admin.execute(f"DROP OWNED BY {app} CASCADE; DROP ROLE {app}".encode())


async def test_a_transaction_made_read_only_is_that_message_fault(tenancy: Tenancy) -> None:
    place = tenancy.place

    async def before(context: Context) -> None:
        await context.session.flush()
        if context.message_id == "1":
            await context.session.execute(text("SET TRANSACTION READ ONLY"))

    for number in range(3):
        place.append(number)
    async with place.run(Write(before, retry=Retry(attempts=1, wait=fixed(0)))) as run:
        await run.until(lambda: bool(run.seen(MessageDeadLettered)), "the dead letter")
        await place.until_written(run, 2)
    assert [one.message_id for one in run.seen(MessageDeadLettered)] == ["1"]
    letters = tenancy.admin.execute("SELECT error FROM public.consumerkit_dead_letters").fetchall()
    assert "made its transaction read-only" in letters[0][0]
