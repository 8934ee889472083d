"""The engines that consumerkit makes from a URL, and what it sets on every engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import URL, Engine, ExceptionContext, Pool, QueuePool, create_engine, event
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from consumerkit.errors import ConfigurationError
from consumerkit.redaction.database_words import remember
from consumerkit.storage import pooler, postgresql_engine, sqlite_engine
from consumerkit.storage.urls import ParsedUrl

T = TypeVar("T")

# For each name that a URL may have: the driver for coroutines and the driver for threads.
DRIVERS: Final[dict[str, tuple[str | None, str | None]]] = {
    "postgresql": ("postgresql+psycopg", "postgresql+psycopg"),
    "postgresql+psycopg": ("postgresql+psycopg", "postgresql+psycopg"),
    "postgresql+psycopg_async": ("postgresql+psycopg", "postgresql+psycopg"),
    "postgresql+asyncpg": ("postgresql+asyncpg", None),
    "sqlite": ("sqlite+aiosqlite", "sqlite+pysqlite"),
    "sqlite+aiosqlite": ("sqlite+aiosqlite", "sqlite+pysqlite"),
    "sqlite+pysqlite": ("sqlite+aiosqlite", "sqlite+pysqlite"),
}


class OwnEngines(NamedTuple):
    """The engines for one URL.

    Attributes:
        coroutines: For coroutines; None without such a driver.
        threads: For threads; None without such a driver.
        unprepared: Whether the URL asks for no prepared statements, as some poolers need it.
    """

    coroutines: AsyncEngine | None
    threads: Engine | None
    unprepared: bool


def own_engines(found: ParsedUrl, connections: int) -> OwnEngines:
    """Make the engines for a URL, each with at most this many connections.

    Raises:
        ConfigurationError: A part of the URL is not known, or its driver is not installed.
    """
    url, unprepared = pooler.taken_from(found.url)
    async_driver, sync_driver = DRIVERS[url.drivername]
    options = _options(url, connections)
    postgresql_engine.check_surroundings(url)
    if async_driver == "postgresql+asyncpg":
        url, arguments = postgresql_engine.for_asyncpg(url, found.secrets)
        options["connect_args"] |= arguments
    else:
        if url.get_backend_name() == "postgresql":
            postgresql_engine.for_psycopg(url)
        options["connect_args"] |= found.secrets
    return OwnEngines(
        None if async_driver is None else _made(create_async_engine, url.set(drivername=async_driver), options),
        None if sync_driver is None else _made(create_engine, url.set(drivername=sync_driver), options),
        unprepared,
    )


def limit_of(pool: Pool) -> int | None:
    """Return how many connections a pool gives at once; SQLAlchemy has no public name for the allowed overflow."""
    if not isinstance(pool, QueuePool):
        return None
    size, overflow = pool.size(), pool._max_overflow  # noqa: SLF001
    return None if size == 0 or overflow < 0 else size + overflow


def set_up(engine: Engine, *, unprepared: bool) -> None:
    """Set on any engine what consumerkit needs of it; `unprepared` turns prepared statements off."""
    if not event.contains(engine, "handle_error", _failed):
        event.listen(engine, "handle_error", _failed)
    if engine.dialect.name == "sqlite":
        sqlite_engine.set_up(engine)
    elif engine.dialect.name == "postgresql":
        postgresql_engine.set_up(engine)
        pooler.set_up(engine, off=unprepared)


def _failed(context: ExceptionContext) -> None:
    """Keep the database's error text, to cut it from texts in which a handler repeats it."""
    remember(context.original_exception)


def _options(url: URL, connections: int) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"hide_parameters": True, "connect_args": {"timeout": sqlite_engine.BUSY_MILLISECONDS / 1000}}
    options: dict[str, Any] = {
        "hide_parameters": True,  # parameters are payloads, and would appear in SQLAlchemy's errors and its own log
        "pool_size": connections,
        "max_overflow": 2,
        "pool_timeout": 30,
        "pool_pre_ping": False,
    }
    if "asyncpg" in url.drivername:
        options["connect_args"] = {"timeout": 10}
    else:
        options["connect_args"] = {
            "connect_timeout": 10,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        }
    return options


def _made(make: Callable[..., T], url: URL, options: dict[str, Any]) -> T:
    try:
        return make(url, **options)
    except (ArgumentError, ValueError):
        # SQLAlchemy's text quotes the part that it cannot read, which may be part of a password.
        raise ConfigurationError(
            f"database: {url.drivername} does not know a part of the URL; check its port, its path and its parameters"
        ) from None
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        extra = "sqlite" if url.get_backend_name() == "sqlite" else "asyncpg" if "asyncpg" in str(url) else "postgresql"
        raise ConfigurationError(
            f"database: the driver for {url.drivername} is not installed ({error}); pip install 'consumerkit[{extra}]'"
        ) from None
