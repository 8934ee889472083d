"""Sets up PostgreSQL connections with either driver: text as we read it, and TLS as the URL says."""

from __future__ import annotations

import configparser
import ipaddress
import logging
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from sqlalchemy import URL, Engine, event

from consumerkit.errors import ConfigurationError
from consumerkit.storage import url_parameters
from consumerkit.storage.environment import check_environment
from consumerkit.storage.url_parameters import effective

_log = logging.getLogger(__name__)
# Parameters of a libpq URL that asyncpg reads from a DSN, but for which it has no keyword that a
# URL could give.
_FROM_DSN: Final = frozenset(
    (
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "sslpassword",
        "sslcrl",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "application_name",
        "options",
        "target_session_attrs",
        "passfile",
    )
)
_LIBPQ: Final = frozenset(
    (
        "channel_binding",
        "client_encoding",
        "fallback_application_name",
        "gssencmode",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "load_balance_hosts",
        "require_auth",
        "gsslib",
        "service",
        "sslcertmode",
        "sslcompression",
        "sslcrldir",
        "sslnegotiation",
        "sslsni",
        "tcp_user_timeout",
    )
)
"""Other names that libpq knows, for error messages."""
_SYSTEM_SINCE: Final = 160_000
_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca")
_ELSEWHERE: Final = "where service= leads"
_SECONDS: Final = "connect_timeout"
# SQLAlchemy's own parameters, or asyncpg's keywords that are text or that it converts.
_KNOWN: Final = frozenset(
    ("host", "port", "user", "password", "ssl", "prepared_statement_cache_size", "prepared_statement_name_func")
)
_warned: Final[set[str]] = set()


def set_up(engine: Engine) -> None:
    """Make dates and text arrive as psycopg reads them, whatever database, role or environment say."""
    if engine.dialect.driver == "psycopg" and not event.contains(engine, "connect", _connected):
        event.listen(engine, "connect", _connected)


def _connected(connection: Any, _record: object) -> None:
    driver = getattr(connection, "driver_connection", connection)
    wanted = []
    # Setting ISO alone keeps the order of day and month in which the server reads dates.
    if not (driver.info.parameter_status("DateStyle") or "ISO").startswith("ISO"):
        wanted.append("SET datestyle TO ISO")
    if (driver.info.parameter_status("client_encoding") or "UTF8") != "UTF8":
        wanted.append("SET client_encoding TO 'UTF8'")
    if wanted:
        cursor = connection.cursor()
        for statement in wanted:
            cursor.execute(statement)
        cursor.close()
        connection.commit()


def for_asyncpg(url: URL, secrets: Mapping[str, str]) -> tuple[URL, dict[str, Any]]:
    """Return a URL without the parameters that only libpq takes, and the arguments that do the same in asyncpg.

    Args:
        url: As for psycopg.
        secrets: Values that were taken out of its query.

    Raises:
        ConfigurationError: It has a parameter that means nothing to asyncpg.
    """
    query: dict[str, Any] = {**url.query, **secrets}
    arguments: dict[str, Any] = {}
    if _trusts_system(url):
        if extra := sorted({"sslcert", "sslkey", "sslcrl", "sslpassword"} & query.keys()):
            raise ConfigurationError(
                f"database: asyncpg does not take {extra[0]} with sslrootcert=system; name a file of certificate "
                "authorities"
            )
        for name in ("sslrootcert", "sslmode"):
            query.pop(name, None)
        arguments["ssl"] = ssl.create_default_context()
    if _SECONDS in query:
        arguments["timeout"] = _number(query.pop(_SECONDS))
    if dsn := {name: str(query.pop(name)) for name in list(query) if name in _FROM_DSN}:
        # Host, user and database come as keywords, which take precedence over the DSN.
        arguments["dsn"] = f"postgresql:///?{urlencode(dsn)}"
    if unknown := sorted(set(query) - _KNOWN):
        # Any other word may be part of an unescaped password.
        named = next((f"no {name!r} in a URL" for name in unknown if name in _LIBPQ), "not every parameter of the URL")
        raise ConfigurationError(f"database: asyncpg knows {named}; leave it out, or use postgresql+psycopg")
    return url.set(query=query), arguments


def _number(value: object) -> float:
    try:
        return max(2.0, float(str(value)))
    except ValueError:
        raise ConfigurationError(f"database: {_SECONDS} in the URL is no number of seconds") from None


def for_psycopg(url: URL) -> None:
    """Check psycopg's parameters.

    Raises:
        ConfigurationError: libpq knows no such parameter, or is too old for it.
    """
    url_parameters.refuse_unknown(url)
    if not _trusts_system(url):
        return
    from psycopg import pq

    if pq.version() < _SYSTEM_SINCE:
        raise ConfigurationError(
            "database: sslrootcert=system needs libpq 16, and psycopg uses an older one; name a file of certificate "
            "authorities"
        )


def check_surroundings(url: URL) -> None:
    """Check what PostgreSQL's variables and service file add to a URL, and the result of all of them.

    Warns once for each server if a network connection would not notice another server in its place.

    Raises:
        ConfigurationError: A variable, or an entry of the service, cannot be read.
    """
    if url.get_backend_name() != "postgresql":
        return
    name = effective(url, "service", "PGSERVICE")
    service = _service(name) if name else {}
    check_environment(url, service)
    _warn_of_network(url, name, service)


def _warn_of_network(url: URL, name: str | None, service: Mapping[str, str]) -> None:
    hosts = url.query.get("hostaddr") or url.query.get("host") or url.host
    hosts = hosts or service.get("hostaddr") or service.get("host")
    hosts = hosts or os.environ.get("PGHOSTADDR") or os.environ.get("PGHOST") or ""
    if name and not service and not hosts:
        hosts = _ELSEWHERE
    mode = str(url.query.get("ssl") or effective(url, "sslmode", "PGSSLMODE", service) or "prefer")
    if mode == "verify-full" or effective(url, "sslrootcert", "PGSSLROOTCERT", service) == "system":
        return
    for host in [hosts] if isinstance(hosts, str) else hosts:
        for one in host.split(","):
            name = one.rpartition(":")[0] or one if one.count(":") == 1 else one
            if _is_local(name) or name in _warned:
                continue
            _warned.add(name)
            _log.warning(
                "database: the connection to %s has sslmode=%s, which does not verify the server; use "
                "sslmode=verify-full, and sslrootcert for a certificate authority of your own",
                name,
                mode if mode in _MODES else "another",
            )


def _service(name: str) -> Mapping[str, str]:
    """Return the entries of one service in libpq's service file; empty if there is no such service."""
    given = os.environ.get("PGSERVICEFILE")
    directory = Path(os.environ.get("PGSYSCONFDIR", "/etc/postgresql-common"))
    for path in (Path(given) if given else Path("~/.pg_service.conf"), directory / "pg_service.conf"):
        parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
        try:
            if parser.read(path.expanduser()) and parser.has_section(name):
                return dict(parser[name])
        except (configparser.Error, OSError, ValueError, RuntimeError):
            continue
    return {}


def _trusts_system(url: URL) -> bool:
    """Return whether to trust the system's authorities; libpq then requires full verification.

    Raises:
        ConfigurationError: The URL asks for less than full verification.
    """
    if effective(url, "sslrootcert", "PGSSLROOTCERT") != "system":
        return False
    if (effective(url, "sslmode", "PGSSLMODE") or "verify-full") != "verify-full":
        raise ConfigurationError(
            "database: sslrootcert=system needs sslmode=verify-full; leave sslmode out, or name a file"
        )
    return True


def _is_local(host: str) -> bool:
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
