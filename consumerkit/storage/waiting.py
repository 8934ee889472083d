"""Whether the worker that handles or sends waiting rows can read them."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from consumerkit.errors import StartError
from consumerkit.storage.tables import Tables


def check_sealer(session: Session, tables: Tables) -> None:
    """Refuse to start without the sealer that sealed a waiting row.

    Raises:
        StartError: A parked message or one in the outbox is sealed, and the tables have no sealer.
    """
    if tables.sealer is not None:
        return
    for table, what in ((tables.parked_messages, "parked messages"), (tables.outbox_messages, "messages to send")):
        if session.execute(select(table.c.sealed).where(table.c.sealed).limit(1)).first() is not None:
            raise StartError(
                f"database: there are {what} that are sealed; give Tables(sealer=...) the sealer that sealed them"
            )
