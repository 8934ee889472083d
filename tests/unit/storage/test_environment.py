"""PostgreSQL's variables and services are read before a driver reads them; what is wrong is named without its value."""

import traceback
from pathlib import Path

import pytest

from consumerkit.errors import ConfigurationError
from consumerkit.redaction.variables import without_variables
from consumerkit.storage import environment
from consumerkit.storage.database import Database

SECRET = "hunter2-correct-horse"
CANARY = f"app:{SECRET}@db/x://y?z="
DRIVERS = ("psycopg", "asyncpg")
GOOD = {
    "PGHOST": "db.example.org,/var/run/postgresql,@abstract,::1",
    "PGHOSTADDR": "127.0.0.1,::1",
    "PGPORT": "5432,5433",
    "PGUSER": "shop@example.org",
    "PGDATABASE": "shop eins",
    "PGOPTIONS": "-c statement_timeout=5s --search_path=shop,public -c geqo=off",
    "PGAPPNAME": "shop worker",
    "PGSSLMODE": "verify-full",
    "PGSSLROOTCERT": "/run/secrets/authority",
    "PGSSLCERT": "~/.postgresql/postgresql.crt",
    "PGPASSFILE": "/home/shop/.pgpass",
    "PGCONNECT_TIMEOUT": "10",
    "PGCLIENTENCODING": "UTF8",
    "PGTARGETSESSIONATTRS": "read-write",
    "PGTZ": "Europe/Berlin",
    "PGDATESTYLE": "ISO, DMY",
    "PGGEQO": "off",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGSSLSNI": "1",
    "PGKRBSRVNAME": "postgres",
}


@pytest.fixture(autouse=True)
def _none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment._VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", sorted(environment._VARIABLES))
def test_a_variable_that_cannot_be_read_is_named_without_its_value(
    name: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, CANARY)
    with pytest.raises(ConfigurationError, match=f"the variable {name} has an invalid value") as caught:
        Database(f"postgresql+{driver}://")
    text = "".join(traceback.format_exception(caught.value))
    assert SECRET not in text
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", GOOD)
def test_what_libpq_reads_is_let_through(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, GOOD[name])
    Database("postgresql+psycopg://")


def test_what_the_url_says_goes_before_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSSLMODE"):
        monkeypatch.setenv(name, CANARY)
    Database("postgresql+psycopg://shop@127.0.0.1:5432/shop?sslmode=disable")


@pytest.mark.parametrize("entry", ["sslmode", "port", "host", "connect_timeout"])
def test_an_entry_of_a_service_that_cannot_be_read_is_named_without_its_value(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "services").write_text(f"[shop]\nhost=localhost\n{entry}={CANARY}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    with pytest.raises(ConfigurationError, match=f"file of services, {entry} has an invalid value") as caught:
        Database("postgresql+psycopg:///?service=shop")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_drivers_words_are_told_without_the_values_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", CANARY)
    monkeypatch.setenv("PGPASSWORD", "plainword")
    words = without_variables(f'could not translate host name "{CANARY}", plainword, localhost')
    assert words == 'could not translate host name "***", ***, localhost'
