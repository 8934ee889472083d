"""One cache of compiled statements for all engines of a test process.

SQLAlchemy compiles each statement once for an engine. Nearly each test has an engine of its own, and a sixth of what it
computes, measured, was to compile the same statements again.
"""

from typing import Any

from sqlalchemy import Connection, Engine, event


class StatementCache(dict[Any, Any]):
    """Finds what another engine has compiled, if both have the same kind of dialect and the same server's version.

    A key of SQLAlchemy's begins with the dialect, which is another object for each engine.
    """

    def get(self, key: Any, default: Any = None) -> Any:
        """Return what is stored for a key, or for the same statement of a like engine."""
        return super().get(_of_kind(key), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        super().__setitem__(_of_kind(key), compiled)


def _of_kind(key: Any) -> Any:
    dialect, statement, columns, has_translated_schemas, many = key
    if has_translated_schemas:  # a statement that was compiled for other schemas would be refused
        return key
    version = getattr(dialect, "server_version_info", None)
    return type(dialect), dialect.paramstyle, version, statement, columns, many


def share() -> None:
    """Let all engines of this process use one cache from now on."""
    cache = StatementCache()

    @event.listens_for(Engine, "engine_connect")
    def use(connection: Connection) -> None:
        connection.execution_options(compiled_cache=cache)
