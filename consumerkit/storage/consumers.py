"""The `consumers` table: gives each handler's name a small integer and binds it to its group and topics."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Final

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from consumerkit.errors import StartError
from consumerkit.redaction.plain_words import shown_word
from consumerkit.storage.tables import Tables

NO_TOPICS: Final = "[]"
"""The topics of a name whose keys no message brings: those of jobs, backfills and requests."""


def bind(
    session: Session,
    tables: Tables,
    *,
    name: str,
    group: str,
    topics: Collection[str],
    ordering: str | None = None,
    adopt: bool = False,
) -> int:
    """Return the consumer's number, entering it on its first start.

    Two services that use one name by mistake would take each other's messages for duplicates, so a name stays bound to
    the group and topics of its first start. Its ordering may change at any start, and is kept for who redrives.

    Args:
        session: An open transaction; the caller commits.
        tables: The table definitions.
        name: The handler's name.
        group: Its consumer group.
        topics: Its topics.
        ordering: Its ordering's value; what is kept stays where None.
        adopt: Bind the name again where it is bound to something else.

    Raises:
        StartError: The name is bound to another group or other topics.
    """
    consumers = tables.consumers
    known = _find(session, tables, name)
    wanted = {"group_name": group, "topics": json.dumps(sorted(topics))}
    if known is None:
        try:
            with session.begin_nested():
                session.execute(insert(consumers).values(name=name, **wanted))
        except IntegrityError:  # another process was first
            pass
        known = _find(session, tables, name)
        assert known is not None
    number, bound = known
    _keep_ordering(session, tables, number, ordering)
    if bound == wanted:
        return number
    if bound["topics"] == NO_TOPICS:
        raise StartError(
            f"handler {name!r}: this name has keys of jobs or requests on this database; rename the handler"
        )
    if not adopt:
        raise StartError(
            f"handler {name!r}: this name is bound to group {bound['group_name']!r} and topics "
            f"{', '.join(json.loads(bound['topics']))}, not to group {group!r} and topics {', '.join(sorted(topics))}; "
            f"rename the handler, or start once with --adopt {name} if the change is meant"
        )
    session.execute(update(consumers).where(consumers.c.id == number).values(wanted))
    return number


def _keep_ordering(session: Session, tables: Tables, number: int, ordering: str | None) -> None:
    c = tables.consumers.c
    if ordering is not None:
        other = c.ordering.is_distinct_from(ordering)
        session.execute(update(tables.consumers).where(c.id == number, other).values(ordering=ordering))


def number_of(connection: Connection, tables: Tables, name: str) -> int | None:
    """Return the number of a consumer, or None where no handler of this name has started on this database."""
    c = tables.consumers.c
    return connection.execute(select(c.id).where(c.name == name)).scalar_one_or_none()


def names(connection: Connection, tables: Tables) -> list[str]:
    """Return the names of all handlers that have started on this database."""
    c = tables.consumers.c
    return list(connection.execute(select(c.name).order_by(c.name)).scalars())


def unknown(name: str, known: Iterable[str]) -> str:
    """Return the error's text where no handler of a name has started: most often the name is mistyped."""
    those = ", ".join(sorted(map(repr, known))) or "none"
    return f"no handler {shown_word(name)} has started on this database; those that have: {those}"


def _find(session: Session, tables: Tables, name: str) -> tuple[int, dict[str, str]] | None:
    c = tables.consumers.c
    row = session.execute(select(c.id, c.group_name, c.topics).where(c.name == name)).one_or_none()
    return None if row is None else (row.id, {"group_name": row.group_name, "topics": row.topics})
