"""What PostgreSQL needs of a connection, with either driver: text as we read it, and TLS as the URL says."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from sqlalchemy import URL, Engine, event

from consumerkit.errors import ConfigurationError

_log = logging.getLogger(__name__)
# What a libpq URL may say and asyncpg reads from a DSN, but takes by no keyword that a URL could give.
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
        "service",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    )
)
"""Others that libpq knows, by whose names alone it can be told what is wrong."""
_SECONDS: Final = "connect_timeout"
# SQLAlchemy's own, or keywords of asyncpg that it converts or that are text.
_KNOWN: Final = frozenset(
    ("host", "port", "user", "password", "ssl", "prepared_statement_cache_size", "prepared_statement_name_func")
)
_warned: Final[set[str]] = set()


def set_up(engine: Engine) -> None:
    """Have dates and text come as psycopg reads them, whatever database, role or environment say."""
    if engine.dialect.driver == "psycopg" and not event.contains(engine, "connect", _connected):
        event.listen(engine, "connect", _connected)


def _connected(connection: Any, _record: object) -> None:
    driver = getattr(connection, "driver_connection", connection)
    wanted = []
    # ISO alone keeps the order of day and month in which dates are read.
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
    """Return a URL without what only libpq takes in it, and the arguments by which asyncpg does the same.

    Args:
        url: As for psycopg.
        secrets: What was taken out of its query.

    Raises:
        ConfigurationError: It has a parameter that means nothing with asyncpg.
    """
    query: dict[str, Any] = {**url.query, **secrets}
    arguments: dict[str, Any] = {}
    if _SECONDS in query:
        arguments["timeout"] = _number(query.pop(_SECONDS))
    if dsn := {name: str(query.pop(name)) for name in list(query) if name in _FROM_DSN}:
        # Who, where and which database come as keywords, which go before what is in the DSN.
        arguments["dsn"] = f"postgresql:///?{urlencode(dsn)}"
    if unknown := sorted(set(query) - _KNOWN):
        # Any other word may be part of a password that was not escaped.
        named = next((f"no {name!r} in a URL" for name in unknown if name in _LIBPQ), "not every parameter of the URL")
        raise ConfigurationError(f"database: asyncpg knows {named}; leave it out, or use postgresql+psycopg")
    return url.set(query=query), arguments


def _number(value: object) -> float:
    try:
        return max(2.0, float(str(value)))
    except ValueError:
        raise ConfigurationError(f"database: {_SECONDS} in the URL is no number of seconds") from None


def warn_of_network(url: URL) -> None:
    """Warn, once for each server, of a connection over a network that would not notice another server in its place."""
    if url.get_backend_name() != "postgresql":
        return
    hosts = url.query.get("hostaddr") or url.query.get("host") or url.host
    hosts = hosts or os.environ.get("PGHOSTADDR") or os.environ.get("PGHOST") or ""
    mode = str(url.query.get("sslmode") or os.environ.get("PGSSLMODE") or "prefer")
    for host in [hosts] if isinstance(hosts, str) else hosts:
        for one in host.split(","):
            name = one.rpartition(":")[0] or one if one.count(":") == 1 else one
            if mode == "verify-full" or _is_local(name) or name in _warned:
                continue
            _warned.add(name)
            _log.warning(
                "database: the connection to %s has sslmode=%s, which does not verify that it is this server; "
                "use sslmode=verify-full, with sslrootcert where its authority is your own",
                name,
                mode,
            )


def _is_local(host: str) -> bool:
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
