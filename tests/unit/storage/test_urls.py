"""A database's URL is read, or one line says that it cannot be, without any part of it."""

import traceback

import pytest
from sqlalchemy import make_url

from consumerkit.errors import ConfigurationError
from consumerkit.storage.engines import Database

SECRET = "hunter2-correct-horse"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://app:{SECRET}/db",
        f"postgresql+psycopg://app@db:{SECRET}/name",
        f"postgresql+psycopg://app:{SECRET}@[::1/db",
        f"postgresql+psycopg://u/x:{SECRET}@h/db",
        f"postgresql://app:pw@{SECRET}/x@h/db",
        f"app:{SECRET}:5432/db",
        f"u/x:{SECRET}@h/db",
        f"{SECRET}://h/db",
        f"postgresql+{SECRET}://h/db",
        f"mysql://app:{SECRET}@h/db",
        f"//app:{SECRET}@h/db",
        f"http:{SECRET}",
        f"postgresql+psycopg://app:p@{SECRET}?x=1@db/shop",
        f"sqlite:///x?timeout={SECRET}",
        f"sqlite://{SECRET}/x",
        f"postgresql+psycopg://app@/db?host=h&port={SECRET}",
        f"postgresql+asyncpg://app@h/db?prepared_statement_cache_size={SECRET}",
        SECRET,
        "",
    ],
)
def test_a_malformed_url_is_told_in_one_line_without_any_part_of_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="database: ") as caught:
        Database(url)
    text = "".join(traceback.format_exception(caught.value))
    assert SECRET not in text
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+asyncpg"])
async def test_a_password_in_the_query_is_shown_nowhere_and_used(driver: str) -> None:
    database = Database(f"{driver}://app@h/db?password={SECRET}")
    (engine, *_) = database._engines()
    assert SECRET not in repr(database) + repr(engine) + repr(engine.url)
    assert engine.url.password == SECRET
    await database.dispose()


async def test_a_keys_password_goes_to_the_driver_alone() -> None:
    database = Database(f"postgresql+psycopg://app@h/db?sslpassword={SECRET}&sslmode=require")
    for engine in database._engines():
        assert SECRET not in repr(engine) + repr(engine.url)
        _, arguments = engine.dialect.create_connect_args(engine.url)
        assert arguments["sslmode"] == "require"
    await database.dispose()


async def test_what_is_escaped_is_taken_as_meant() -> None:
    database = Database(make_url("postgresql+psycopg://u%2Fx:p%40w@h/db"))
    assert (database._engine().url.username, database._engine().url.password) == ("u/x", "p@w")
    await database.dispose()
