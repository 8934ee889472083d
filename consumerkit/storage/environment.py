"""Checks PostgreSQL's variables and service files before a driver reads them: drivers quote unreadable values."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from sqlalchemy import URL

from consumerkit.errors import ConfigurationError
from consumerkit.redaction.file_path import shown_path
from consumerkit.redaction.text import HIDDEN
from consumerkit.storage.url_parameters import FORMS, is_address, is_host, is_port, is_secret

# By libpq's names; every other parameter's variable is PG and its name in capitals.
_VARIABLES: Final[Mapping[str, str]] = {
    "PGHOST": "host",
    "PGHOSTADDR": "hostaddr",
    "PGPORT": "port",
    "PGDATABASE": "dbname",
    "PGUSER": "user",
    "PGOPTIONS": "options",
    "PGAPPNAME": "application_name",
    "PGSERVICE": "service",
    "PGREQUIREAUTH": "require_auth",
    "PGCHANNELBINDING": "channel_binding",
    "PGSSLMODE": "sslmode",
    "PGSSLCERT": "sslcert",
    "PGSSLKEY": "sslkey",
    "PGSSLCERTMODE": "sslcertmode",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCRL": "sslcrl",
    "PGSSLCRLDIR": "sslcrldir",
    "PGSSLCOMPRESSION": "sslcompression",
    "PGSSLSNI": "sslsni",
    "PGSSLNEGOTIATION": "sslnegotiation",
    "PGSSLMINPROTOCOLVERSION": "ssl_min_protocol_version",
    "PGSSLMAXPROTOCOLVERSION": "ssl_max_protocol_version",
    "PGREQUIREPEER": "requirepeer",
    "PGGSSENCMODE": "gssencmode",
    "PGGSSDELEGATION": "gssdelegation",
    "PGKRBSRVNAME": "krbsrvname",
    "PGGSSLIB": "gsslib",
    "PGCONNECT_TIMEOUT": "connect_timeout",
    "PGCLIENTENCODING": "client_encoding",
    "PGTARGETSESSIONATTRS": "target_session_attrs",
    "PGLOADBALANCEHOSTS": "load_balance_hosts",
    "PGMINPROTOCOLVERSION": "min_protocol_version",
    "PGMAXPROTOCOLVERSION": "max_protocol_version",
    "PGSERVICEFILE": "servicefile",
    "PGPASSFILE": "passfile",
    "PGTZ": "timezone",
    "PGDATESTYLE": "datestyle",
    "PGGEQO": "geqo",
}
_FILES: Final = frozenset(
    ("sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir", "passfile", "sslkeylogfile", "servicefile")
)
_SWITCHES: Final = r"(?:-c\s{0,9}|--)[\w.-]{1,64}=(?:[^\s\\]|\\.){0,200}|-[a-zA-Z]\s{0,9}(?:[^\s\\]|\\.){0,200}"
_MORE_FORMS: Final[Mapping[str, str]] = {
    "options": rf"\s*(?:(?:{_SWITCHES})\s*){{0,30}}",
    "service": r"[\w.-]{1,100}",
    "timezone": r"[\w+/:,.<>-]{1,100}",
    "datestyle": r"[\w, ]{1,40}",
    "geqo": r"\w{1,10}",
    "krbsrvname": r"[\w.-]{1,100}",
    "requirepeer": r"[\w.-]{1,100}",
}
_NAMES: Final = frozenset(("dbname", "user", "application_name"))


def check_environment(url: URL, service: Mapping[str, str]) -> None:
    """Refuse variables and service entries that PostgreSQL's drivers could not read.

    Args:
        url: Its parameters take precedence: the variables and entries that they override are not
            checked.
        service: The entries of the requested service; empty if none is requested.

    Raises:
        ConfigurationError: A value is invalid. The error names the variable or entry, and never its
            value.
    """
    said = _said_by(url)
    for name, value in service.items():
        if name not in said and value and not is_secret(name) and not _is_fit(name, value):
            raise ConfigurationError(
                f"database: in PostgreSQL's file of services, {name} has an invalid value; correct it"
            )
    for variable, name in _VARIABLES.items():
        value = os.environ.get(variable, "")
        if value and name not in said and name not in service and not _is_fit(name, value):
            raise ConfigurationError(f"database: the variable {variable} has an invalid value; correct it, or unset it")


def _said_by(url: URL) -> set[str]:
    parts = {"host": url.host, "port": url.port, "dbname": url.database, "user": url.username}
    return {name for name, part in parts.items() if part} | set(url.query)


def _is_fit(name: str, value: str) -> bool:
    if name == "host":
        return all(_is_server(host) for host in value.split(","))
    if name == "hostaddr":
        return all(not address or is_address(address) for address in value.split(","))
    if name == "port":
        return all(not port.strip() or is_port(port.strip()) for port in value.split(","))
    if name in _FILES:
        return value == "system" or shown_path(value) != HIDDEN or _looks_like_path(value)
    if name in _NAMES:
        return value.isprintable() and "://" not in value and len(value.encode(errors="replace")) <= 63
    form = FORMS.get(name) or _MORE_FORMS.get(name)
    return form is None or re.fullmatch(form, value.strip()) is not None


def _is_server(host: str) -> bool:
    if host.startswith(("/", "@")):
        return _looks_like_path(host.lstrip("@"))
    return not host or is_address(host) or is_host(host)


def _looks_like_path(value: str) -> bool:
    """Return whether each part of a path is a plain name; the file need not exist yet."""
    return all(re.fullmatch(r"[\w.~ +-]{0,64}", part) for part in value.split("/"))
