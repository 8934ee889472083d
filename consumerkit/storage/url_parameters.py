"""Reads a PostgreSQL URL's servers and parameters as libpq does, before anything of it is shown.

libpq, asyncpg and the server quote what they cannot read, and it may be part of a password. So each
parameter is read here first, and an error about it does not quote it.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import URL

from consumerkit.errors import ConfigurationError
from consumerkit.redaction.file_path import check_path, shown_path

_MODES: Final = "disable|allow|prefer|require|verify-ca|verify-full"
_SWITCH: Final = "0|1"
_TLS: Final = r"(?i:TLSv1(?:\.[123])?)"
_WHOLE: Final = r"-?\d{1,9}"
_AUTH: Final = r"!?(?:password|md5|gss|sspi|scram-sha-256|none|oauth)"
_PORT: Final = 5432
_LAST_PORT: Final = 65535
_DIGITS: Final = 5
# The parameters that may follow the question mark, and the form of each value.
FORMS: Final[Mapping[str, str]] = {
    "sslmode": _MODES,
    "ssl": _MODES,
    "target_session_attrs": "any|read-write|read-only|primary|standby|prefer-standby",
    "gssencmode": "disable|prefer|require",
    "channel_binding": "disable|prefer|require",
    "load_balance_hosts": "disable|random",
    "sslnegotiation": "postgres|direct",
    "sslcertmode": "disable|allow|require",
    "require_auth": rf"{_AUTH}(?:,{_AUTH}){{0,9}}",
    "gsslib": "gssapi|sspi",
    "min_protocol_version": r"3\.[02]|latest",
    "max_protocol_version": r"3\.[02]|latest",
    **dict.fromkeys(("ssl_min_protocol_version", "ssl_max_protocol_version"), _TLS),
    **dict.fromkeys(("sslsni", "sslcompression", "keepalives", "gssdelegation"), _SWITCH),
    **dict.fromkeys(("keepalives_count", "keepalives_idle", "keepalives_interval", "tcp_user_timeout"), _WHOLE),
    "connect_timeout": rf"{_WHOLE}(?:\.\d{{1,6}})?",
    "client_encoding": r"(?i:auto|unicode|utf-?8|sql_ascii|latin\d{1,2}|win\d{3,4}|euc_\w{2,4}|koi8\w?)",
}
"""The form of a parameter's value, for those that have one."""
_FILES: Final = ("sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir", "passfile", "sslkeylogfile")
_TEXTS: Final = ("application_name", "fallback_application_name", "options", "dbname", "user", "krbsrvname", "service")
_OTHER_TEXTS: Final = ("requirepeer", "oauth_client_id", "oauth_issuer", "oauth_scope")
KNOWN: Final = frozenset((*FORMS, *_FILES, *_TEXTS, *_OTHER_TEXTS, "host", "hostaddr", "port")) - {"ssl"}
"""Names that libpq knows and whose values are no secrets."""
_HOST: Final = re.compile(r"(?=.{1,253}$)(?:[\w-]{1,63}\.)*[\w-]{1,63}\.?")


class _Server(NamedTuple):
    host: str
    port: int | None


def is_secret(name: str) -> bool:
    """Return whether a parameter's value is a secret.

    Example:
        >>> [name for name in ("sslpassword", "scram_client_key", "sslkey") if is_secret(name)]
        ['sslpassword', 'scram_client_key']
    """
    return "password" in name.lower() or name in ("oauth_client_secret", "scram_client_key", "scram_server_key")


def checked(url: URL) -> URL:
    """Return a PostgreSQL URL with its servers in one form, after reading everything behind its question mark.

    Raises:
        ConfigurationError: A part cannot be read; the message names the parameter, and never its
            value.
    """
    for name, value in url.query.items():
        if name not in ("host", "port") and not isinstance(value, str):
            what = name if name in KNOWN else "a parameter"
            raise ConfigurationError(f"database: {what} is in the URL twice; give it once")
        if name in FORMS and not re.fullmatch(FORMS[name], str(value)):
            raise ConfigurationError(f"database: {name} in the URL {_should_be(FORMS[name])}; correct it")
        if name in _FILES:
            _check_file(name, str(value))
    return _with_servers(url, _servers(url))


def refuse_unknown(url: URL) -> None:
    """Refuse parameters that libpq does not know; the error omits the name, which may be part of a password.

    Raises:
        ConfigurationError: There is such a parameter.
    """
    if set(url.query) - KNOWN:
        raise ConfigurationError(
            "database: not every parameter of the URL is known to libpq; see its connection parameters, and write "
            "? in a password as %3F and & as %26"
        )


def effective(url: URL, name: str, variable: str, service: Mapping[str, str] | None = None) -> str | None:
    """Return a parameter's value as libpq finds it: in the URL, the service file or the environment."""
    return str(url.query.get(name) or (service or {}).get(name) or os.environ.get(variable) or "") or None


def is_address(text: str) -> bool:
    """Return whether a text is an IP address."""
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def is_host(text: str) -> bool:
    """Return whether a text is the name of a host."""
    return _HOST.fullmatch(text) is not None


def is_port(text: str) -> bool:
    """Return whether a text is the number of a port."""
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS and 0 < int(text) <= _LAST_PORT


def _should_be(form: str) -> str:
    if re.fullmatch(r"[\w|-]+", form):
        return f"is none of {', '.join(form.split('|'))}"
    return "is no number" if form.startswith(_WHOLE) else "has an invalid value"


def _check_file(name: str, value: str) -> None:
    if name == "sslrootcert" and value == "system":
        return
    check_path(f"database: {name} in the URL", value)
    if shown_path(value) == "***":
        raise ConfigurationError(
            f"database: {name} in the URL names a file that does not exist; give the path of a file"
        )


def _servers(url: URL) -> list[_Server]:
    """Return the servers in the query, which replace the one before it; empty if the query names none."""
    for address in str(url.query.get("hostaddr", "")).split(",") if "hostaddr" in url.query else ():
        if address and not is_address(address):
            raise ConfigurationError("database: hostaddr in the URL is no IP address; give a name by host")
    hosts, ports = _texts(url.query.get("host", ())), _texts(url.query.get("port", ()))
    alone = isinstance(url.query.get("host"), tuple) or len(hosts) == 1
    found = [_server(host, with_port=alone and not ports) for host in hosts]
    if ports:
        numbers = [_number(port) for port in ports]
        if len(numbers) not in (1, max(1, len(hosts))):
            raise ConfigurationError(
                "database: the URL has neither one port for all hosts nor one for each; correct it"
            )
        numbers = numbers * max(1, len(hosts)) if len(numbers) == 1 else numbers
        found = [_Server(one.host, port) for one, port in zip(found or [_Server("", None)], numbers, strict=True)]
    for host, port in ((url.host, url.port), *found):
        if port is not None and not 0 < port < 65536:
            raise ConfigurationError("database: the port in the URL is not a port; give a number from 1 to 65535")
        if host and not (host.startswith("/") or is_address(host.strip("[]")) or _HOST.fullmatch(host)):
            raise ConfigurationError("database: the host in the URL is not a host; give a name or an address")
    return found


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.split(",")
    return list(value)


def _server(text: str, *, with_port: bool) -> _Server:
    if with_port and text.count(":") == 1 and not text.startswith("/"):
        host, _, port = text.partition(":")
        return _Server(host, _number(port))
    return _Server(text, None)


def _number(text: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        raise ConfigurationError("database: the port in the URL is not a port; give a number from 1 to 65535")
    return int(text)


def _with_servers(url: URL, servers: list[_Server]) -> URL:
    """Return a URL with its servers in the form of both drivers: several servers with all their ports, as in libpq."""
    if not servers:
        return url
    usual = os.environ.get("PGPORT", "")
    default = url.port or (int(usual) if is_port(usual) else _PORT)
    query: dict[str, Any] = {name: value for name, value in url.query.items() if name not in ("host", "port")}
    if hosts := ",".join(one.host for one in servers):
        query["host"] = hosts
    if len(servers) > 1 or servers[0].port is not None:
        query["port"] = ",".join(str(one.port or default) for one in servers)
    return url.set(query=query)
