"""The `consumers` table: gives each handler's name a small integer and binds it to its group and topics."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final
from zlib import crc32

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from consumerkit.errors import StartError
from consumerkit.redaction.plain_words import shown_word
from consumerkit.storage.tables import Tables

_LOCK_SPACE: Final = 0x636B  # "ck", like the dialect's other locks
NO_GROUP: Final = ""
"""The group of a name after another name has taken its group over."""
NO_TOPICS: Final = "[]"
"""The topics of a name whose keys come from jobs, backfills or requests, not from messages."""


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
    """Return the consumer's number; the first start enters it.

    A name stays bound to the group and topics of its first start: two services that use one name by
    mistake would take each other's messages for duplicates. A group stays with its name: two names
    that use one group would each get a part of the messages. The ordering may change at any start;
    redrives read the stored one.

    Args:
        session: An open transaction; the caller commits.
        tables: The table definitions.
        name: The handler's name.
        group: Its consumer group.
        topics: Its topics.
        ordering: Its ordering's value; None leaves the stored value unchanged.
        adopt: Binds the name again if it is bound to something else, and takes the group from a
            name that has it.

    Raises:
        StartError: The name is bound to another group or other topics, or another name has the group.
    """
    consumers = tables.consumers
    known = _find(session, tables, name)
    if adopt or known is None or known[1]["group_name"] != group:
        _take_group(session, tables, name, group, adopt=adopt)
    wanted = {"group_name": group, "topics": json.dumps(sorted(topics))}
    if known is None:
        try:
            with session.begin_nested():
                session.execute(insert(consumers).values(name=name, created_at=datetime.now(UTC), **wanted))
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
            f"handler {name!r}: this name is bound to {_group_in_words(bound['group_name'])} and topics "
            f"{', '.join(json.loads(bound['topics']))}, not to group {group!r} and topics {', '.join(sorted(topics))}; "
            f"rename the handler, or start once with --adopt {name} if the change is meant"
        )
    session.execute(update(consumers).where(consumers.c.id == number).values(wanted))
    return number


def sharing(session: Session, tables: Tables, name: str, group: str) -> list[str]:
    """Return the names of the other handlers that are bound to a group, in order."""
    c = tables.consumers.c
    others = (c.group_name == group, c.name != name, c.topics != NO_TOPICS)
    return list(session.execute(select(c.name).where(*others).order_by(c.name)).scalars())


def _take_group(session: Session, tables: Tables, name: str, group: str, *, adopt: bool) -> None:
    """Refuse a group that another name has, or take it from that name if `adopt` is set."""
    _wait_for_others(session, tables)
    others = sharing(session, tables, name, group)
    if others and not adopt:
        raise StartError(
            f"handler {name!r}: group {group!r} belongs to handler {others[0]!r} on this database, and each would "
            f"get a part of the messages; give {name!r} a group of its own, or start once with --adopt {name} if "
            f"{others[0]!r} never runs again"
        )
    if others:
        c = tables.consumers.c
        taken = update(tables.consumers).where(c.name.in_(others)).values(group_name=NO_GROUP)
        session.execute(taken)


def _wait_for_others(session: Session, tables: Tables) -> None:
    """Let one process at a time take a group: two that enter their names at once would not see each other's."""
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        number = crc32(f"{tables.identity(tables.consumers)} groups".encode()) & 0x7FFFFFFF
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK_SPACE, number)))


def _group_in_words(group: str) -> str:
    return "no group, because another handler adopted it," if group == NO_GROUP else f"group {group!r}"


def _keep_ordering(session: Session, tables: Tables, number: int, ordering: str | None) -> None:
    c = tables.consumers.c
    if ordering is not None:
        other = c.ordering.is_distinct_from(ordering)
        session.execute(update(tables.consumers).where(c.id == number, other).values(ordering=ordering))


def home(session: Session, tables: Tables) -> str:
    """Return 16 hexadecimal digits that tell these tables from others.

    The digits derive from the time when the first handler was entered. A restored database and a
    copy keep them.
    """
    connection, c = session.connection(), tables.consumers.c
    first = connection.execute(select(c.created_at).where(c.id > 0).order_by(c.id).limit(1)).scalar_one()
    moment = first if first.tzinfo is not None else first.replace(tzinfo=UTC)
    digest = sha256(f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}".encode()).hexdigest()
    return digest[:16]


def number_of(connection: Connection, tables: Tables, name: str) -> int | None:
    """Return the number of a consumer, or None if no handler of this name has started on this database."""
    c = tables.consumers.c
    return connection.execute(select(c.id).where(c.name == name)).scalar_one_or_none()


def known(connection: Connection, tables: Tables, name: str) -> int:
    """Return the number of a consumer.

    Raises:
        StartError: No handler of this name has started on this database.
    """
    number = number_of(connection, tables, name)
    if number is None:
        raise StartError(unknown(name, names(connection, tables)))
    return number


def names(connection: Connection, tables: Tables) -> list[str]:
    """Return the names of all handlers that have started on this database."""
    c = tables.consumers.c
    return list(connection.execute(select(c.name).order_by(c.name)).scalars())


def unknown(name: str, known: Iterable[str]) -> str:
    """Return the error's text for a name under which no handler has started; usually the name is mistyped."""
    those = ", ".join(sorted(map(repr, known))) or "none"
    return f"no handler {shown_word(name)} has started on this database; these have: {those}"


def _find(session: Session, tables: Tables, name: str) -> tuple[int, dict[str, str]] | None:
    c = tables.consumers.c
    row = session.execute(select(c.id, c.group_name, c.topics).where(c.name == name)).one_or_none()
    return None if row is None else (row.id, {"group_name": row.group_name, "topics": row.topics})
