"""A database's URL is read, or one line says that it cannot be, without any part of it."""

import ssl
import traceback
from typing import Any

import pytest
from sqlalchemy import make_url

from consumerkit.errors import ConfigurationError
from consumerkit.storage import url_parameters
from consumerkit.storage.database import Database
from consumerkit.storage.postgresql_engine import for_asyncpg
from consumerkit.storage.urls import address

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


DRIVERS = ("postgresql+psycopg", "postgresql+asyncpg")
NUMBER = "987654321"
# Texts that mean something only to people and the server.
FREE = {"application_name", "fallback_application_name", "options", "dbname", "user", "krbsrvname", "service", "host"}
FREE |= {"requirepeer", "oauth_client_id", "oauth_issuer", "oauth_scope"}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    "rest",
    [
        f"app:{NUMBER}/db",
        f"app:{NUMBER}/db?host=h",
        f"u@h:0/db?application_name={NUMBER}",
        f"u@/db?host=127.0.0.1:{NUMBER}",
        f"u@/db?host=127.0.0.1:{SECRET}",
        f"u@/db?host=h&host=127.0.0.1:{SECRET}",
        f"u@/db?host=h&port={NUMBER}",
        f"u@/db?host=a,b,c&port=1,{NUMBER}",
        f"u@/db?host=a%20{SECRET}",
        f"u@/db?hostaddr={SECRET}",
        f"u@/db?port={SECRET}",
        f"u@h/db?sslmode=require&sslmode={SECRET}",
        f"u@h/db?sslkey=-----BEGIN PRIVATE KEY-----%0A{SECRET}",
        f"u@h/db?{SECRET}=1",
        f"u@h/db?require_auth=md5,{SECRET}",
        *(f"u@h/db?{name}={SECRET}" for name in sorted(url_parameters.KNOWN - FREE)),
    ],
)
def test_what_cannot_be_read_behind_the_name_is_told_without_it(driver: str, rest: str) -> None:
    with pytest.raises(ConfigurationError, match="database: ") as caught:
        Database(f"{driver}://{rest}")
    text = "".join(traceback.format_exception(caught.value))
    assert SECRET not in text
    assert NUMBER not in text
    assert "\n" not in str(caught.value)


def arguments(url: str) -> dict[str, Any]:
    """The arguments of the driver."""
    engine = Database(url)._engine()
    _, told = engine.dialect.create_connect_args(engine.url)
    return dict(told)


@pytest.mark.parametrize(
    "rest, hosts, ports",
    [
        ("u@/db?host=a,b&port=1,2", ["a", "b"], [1, 2]),
        ("u@/db?host=a:1&host=b:2", ["a", "b"], [1, 2]),
        ("u@/db?host=a&host=b", ["a", "b"], [5432, 5432]),
        ("u@/db?host=a,b", ["a", "b"], [5432, 5432]),
        ("u@/db?host=a,b&port=7", ["a", "b"], [7, 7]),
        ("u@x:9/db?host=a,b", ["a", "b"], [9, 9]),
        ("u@/db?host=a,::1&port=1,", ["a", "::1"], [1, 5432]),
        ("u@/db?host=/run/postgresql,a", ["/run/postgresql", "a"], [5432, 5432]),
        ("u@/db?host=a:7", ["a"], [7]),
        ("u@/db?host=::1", ["::1"], [None]),
        ("u@x:7/db", ["x"], [7]),
    ],
)
def test_several_hosts_mean_the_same_with_both_drivers(
    rest: str, hosts: list[str], ports: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPORT", raising=False)
    libpq, asyncpg = (arguments(f"{driver}://{rest}") for driver in DRIVERS)
    assert str(libpq["host"]).split(",") == hosts
    assert [int(port) if port else None for port in str(libpq.get("port", "")).split(",")] == ports
    found, numbers = asyncpg["host"], asyncpg.get("port")
    assert (found if isinstance(found, list) else [found]) == hosts
    assert [
        None if port is None else int(port) for port in (numbers if isinstance(numbers, list) else [numbers])
    ] == ports


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_systems_authorities_are_trusted_with_whole_verification_alone(driver: str) -> None:
    for mode in ("", "&sslmode=verify-full"):
        Database(f"{driver}://u@h/db?sslrootcert=system{mode}")
    with pytest.raises(ConfigurationError, match="needs sslmode=verify-full"):
        Database(f"{driver}://u@h/db?sslrootcert=system&sslmode=require")


def test_asyncpg_trusts_the_systems_authorities_and_no_file_of_that_name() -> None:
    url, told = for_asyncpg(make_url("postgresql+asyncpg://u@h/db?sslrootcert=system&application_name=x"), {})
    assert told["ssl"].verify_mode is ssl.CERT_REQUIRED
    assert told["ssl"].check_hostname
    assert told["dsn"] == "postgresql:///?application_name=x"
    assert "sslrootcert" not in url.query
    with pytest.raises(ConfigurationError, match="does not take sslcert with sslrootcert=system"):
        for_asyncpg(make_url("postgresql+asyncpg://u@h/db?sslrootcert=system&sslcert=c.pem"), {})


@pytest.mark.parametrize("name", ["scram_client_key", "oauth_client_secret", "password"])
def test_every_parameter_that_is_a_secret_is_kept_out_of_engines(name: str) -> None:
    for engine in Database(f"postgresql+psycopg://app@h/db?{name}={SECRET}")._engines():
        assert SECRET not in repr(engine) + repr(engine.url)


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


def test_a_number_that_may_be_a_password_is_not_shown() -> None:
    database = Database("postgresql+psycopg://app:54321/shop")
    assert repr(database) == "Database(postgresql+psycopg://app/shop)"
    assert database.told('server at "app", port 54321 failed') == 'server at "app", port *** failed'
    for shown in ("postgresql+psycopg://app@db:54321/shop", "postgresql+psycopg://db:5432/shop"):
        assert repr(Database(shown)) == f"Database({shown})"
        assert Database(shown).told("port 54321") == "port 54321"


def test_an_address_shows_no_secret() -> None:
    found = address(f"postgresql+psycopg://app:{SECRET}@db/shop?sslpassword={SECRET}&sslmode=require", DRIVERS)
    assert repr(found) == "ParsedUrl(postgresql+psycopg://app:***@db/shop, secrets=['sslpassword'])"
