"""Reads a database's URL and never shows its content: a malformed one may have its password anywhere."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from sqlalchemy import URL, make_url

from consumerkit.errors import ConfigurationError
from consumerkit.storage import url_parameters

_EXAMPLE: Final = "postgresql+psycopg://user:password@host:5432/name"
_KNOWN: Final = ("postgres", "mysql", "mariadb", "oracle", "mssql")
"""Databases that a user may want; any other word in front of a URL may be a secret, and is not repeated."""


class ParsedUrl(NamedTuple):
    """A URL that can be shown with its password hidden; the other secrets are arguments of the driver."""

    url: URL
    secrets: dict[str, str]

    def __repr__(self) -> str:
        return f"ParsedUrl({self.url.set(query={})!r}, secrets={sorted(self.secrets)!r})"


def address(given: str | URL, drivers: Collection[str]) -> ParsedUrl:
    """Read a URL.

    Args:
        given: The URL.
        drivers: The names that may stand in front of it.

    Raises:
        ConfigurationError: It cannot be read, or names another database; no part of it is quoted.

    Example:
        >>> address("sqlite:///books.sqlite", ["sqlite"]).url.database
        'books.sqlite'
    """
    try:
        url = make_url(given)
    except Exception:  # noqa: BLE001 - SQLAlchemy's ArgumentError, and a ValueError that quotes what it takes for a port
        raise ConfigurationError(f"database: cannot read the URL; write it like {_EXAMPLE}") from None
    if url.drivername not in drivers:
        name = url.get_backend_name()
        what = repr(name) if name in _KNOWN else "the start of the URL"
        raise ConfigurationError(f"database: {what} is not supported; use one of {', '.join(sorted(drivers))}")
    if not url.drivername.startswith("sqlite"):
        _check_parts(url)
        url, hidden = _hidden(url)
        return ParsedUrl(url_parameters.checked(url), hidden)
    return _hidden(url)


def _check_parts(url: URL) -> None:
    """Refuse a URL with displaced parts: an unescaped `/` or `@` moves part of a password into another part."""
    said: list[str | None] = [url.host, url.database]
    for name, value in url.query.items():
        # A secret's value may contain an escaped `@`. A `?` in an unescaped password turns the rest
        # of the password into a parameter.
        said += (
            [name] if url_parameters.is_secret(name) else [name, value if isinstance(value, str) else " ".join(value)]
        )
    if any("@" in (part or "") for part in said):
        raise ConfigurationError(
            "database: the URL has an @ behind its host; in user and password write / as %2F, @ as %40 and : as %3A"
        )


def _hidden(url: URL) -> ParsedUrl:
    """Take secrets out of the query, which engines show: the password goes where it is hidden, others to the driver."""
    secrets = {name: url.query[name] for name in url.query if url_parameters.is_secret(name)}
    flat = {name: value if isinstance(value, str) else value[-1] for name, value in secrets.items()}
    url = url.difference_update_query(secrets)
    if (password := flat.pop("password", None)) is not None:
        url = url.set(password=password)
    return ParsedUrl(url, flat)
