"""The tables: what consumerkit keeps in the user's database.

`message_tables` and `progress_tables` define their columns. Migrations live in
`consumerkit.storage.migrations`; a test compares them with these definitions.
"""

from __future__ import annotations

import re
import threading
from copy import copy
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import MetaData, Table

from consumerkit.errors import ConfigurationError
from consumerkit.redaction.plain_words import shown_word
from consumerkit.storage import message_tables, progress_tables
from consumerkit.storage.payload import Sealer

DEFAULT_PREFIX = "consumerkit_"

_SEALER = ("seal", "unseal")
_MOST_PLACES: Final = 64  # each defines all tables; a service with a schema for each tenant may have thousands
_defining: Final = threading.RLock()


@dataclass(frozen=True)
class Tables:
    """The table definitions under one prefix and schema.

    Args:
        prefix: Put before each table's name.
        schema: The database schema. If None, it is found once, at the start: on PostgreSQL it is
            the first schema of the search path that has the tables, on SQLite the main file.
        sealer: Encrypts the values and headers that are stored; None stores them in the clear.

    Raises:
        ConfigurationError: The prefix or schema is not a plain lower-case name.

    Example:
        >>> Tables(schema="ledger").processed_messages.fullname
        'ledger.consumerkit_processed_messages'
    """

    prefix: str = DEFAULT_PREFIX
    schema: str | None = None
    sealer: Sealer | None = field(default=None, repr=False, compare=False)
    configured: Tables | None = field(default=None, init=False, repr=False, compare=False)
    metadata: MetaData = field(init=False, repr=False, compare=False)
    consumers: Table = field(init=False, repr=False, compare=False)
    processed_messages: Table = field(init=False, repr=False, compare=False)
    message_results: Table = field(init=False, repr=False, compare=False)
    message_steps: Table = field(init=False, repr=False, compare=False)
    dead_letters: Table = field(init=False, repr=False, compare=False)
    outbox_messages: Table = field(init=False, repr=False, compare=False)
    parked_messages: Table = field(init=False, repr=False, compare=False)
    partition_progress: Table = field(init=False, repr=False, compare=False)
    first_runs: Table = field(init=False, repr=False, compare=False)
    lane_progress: Table = field(init=False, repr=False, compare=False)
    operator_actions: Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for what, value in (("prefix", self.prefix), ("schema", self.schema)):
            if value is not None and not re.fullmatch(r"[a-z_][a-z0-9_]{0,30}", value):
                raise ConfigurationError(
                    f"Tables({what}={shown_word(value)}): use up to 31 lower-case letters, digits and underscores, "
                    "the first of them not a digit"
                )
        if self.sealer is not None and not all(callable(getattr(self.sealer, name, None)) for name in _SEALER):
            raise ConfigurationError("Tables(sealer=...): give an object with the methods seal(bytes), unseal(bytes)")

    if not TYPE_CHECKING:  # type checkers report an unknown name

        def __getattr__(self, name: str) -> Any:
            """Define the tables at their first use: SQLAlchemy imports both databases' dialects for them."""
            if name.startswith("__") or name not in _DEFINED:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            with _defining:
                if name not in vars(self):
                    _define(self)
            return vars(self)[name]

    def within(self, schema: str) -> Tables:
        """Return these tables, qualified by the schema in which a database has them; any name is accepted.

        The result's `configured` is these definitions.
        """
        self.metadata  # noqa: B018 - defines them
        places: dict[str, Tables] = vars(self)["_places"]
        if (found := places.get(schema)) is None:
            found = copy(self)
            object.__setattr__(found, "schema", schema)
            object.__setattr__(found, "configured", self.configured or self)
            _define(found)
            if len(places) >= _MOST_PLACES:
                places.clear()
            places[schema] = found
        return found

    def identity(self, table: Table) -> str:
        """Return `schema.table`, from which lock numbers derive: it differs between two services in one database."""
        return table.name if self.schema is None else f"{self.schema}.{table.name}"

    @property
    def version_table(self) -> str:
        """The name of the table in which Alembic keeps our schema's version, apart from the user's own."""
        return f"{self.prefix}alembic_version"


_DEFINED: Final = frozenset(one.name for one in fields(Tables) if not one.init) - {"configured"}


def _define(tables: Tables) -> None:
    metadata = MetaData(schema=tables.schema)
    places: dict[str, Tables] = {}
    made = [make(tables.prefix, metadata) for make in _MAKERS]
    object.__setattr__(tables, "_places", places)
    for table in made:
        object.__setattr__(tables, table.name.removeprefix(tables.prefix), table)
    # Last: if it exists, the others exist too.
    object.__setattr__(tables, "metadata", metadata)


_MAKERS = (
    progress_tables.consumers,
    message_tables.processed_messages,
    message_tables.message_results,
    message_tables.message_steps,
    message_tables.dead_letters,
    message_tables.outbox_messages,
    message_tables.parked_messages,
    progress_tables.partition_progress,
    progress_tables.first_runs,
    progress_tables.lane_progress,
    progress_tables.operator_actions,
)
DEFAULT_TABLES = Tables()
