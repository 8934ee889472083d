"""The transaction of one call of `on_dead_letter`."""

from __future__ import annotations

from contextvars import Context
from typing import Any
from uuid import uuid4

from sqlalchemy.orm import Session

from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.guard import OPTION, Guard, guard
from consumerkit.errors import TransactionMisused
from consumerkit.handlers.context import Publisher
from consumerkit.handlers.dead_lettered import DeadLetterContext
from consumerkit.handlers.declaration import Declaration
from consumerkit.observability.propagation import current_headers
from consumerkit.storage import location, outbox
from consumerkit.storage.dead_letters.hooked import HookRows
from consumerkit.storage.dialects import Limits
from consumerkit.storage.isolation import connection_of


class DeadLetterCall:
    """One call's transaction; the parts that coroutines and threads share.

    Args:
        declared: The handler's declarations.
        rows: The handler's letters that wait.
        limits: How long the transaction may take.
        row: The dead letter, taken by this worker.

    Attributes:
        attempt: The number of the try.
        surroundings: The context in which the method is called.
    """

    def __init__(self, declared: Declaration, rows: HookRows, limits: Limits, row: Any) -> None:
        self._declared = declared
        self._rows = rows
        self._limits = limits
        self._row = row
        self.attempt: int = row.hook_tries
        self.surroundings = Context()
        self._publisher = Publisher(declared.encode, declared.topic_prefix, declared.publishes)
        self._token = uuid4().hex
        self._guard = Guard()
        self._begun: Any = None
        self._context: DeadLetterContext[Any] | None = None

    def open(self, session: Session) -> bool:
        """Begin, and record the call; return False if another worker makes it."""
        rows = self._rows
        self._guard = guard(session)
        connection = connection_of(session, rows.dialect, **{OPTION: self._guard})
        location.remember(session, rows.tables)
        self._begun = rows.dialect.begin(connection, self._limits, self._token)
        return rows.done(connection, self._row)

    def context(self, session: Any) -> DeadLetterContext[Any]:
        """Return the context that the user's method gets."""
        self._context = made = DeadLetterContext(session, self._publisher)
        return made

    def close(self, session: Session) -> bool:
        """Flush, check that the transaction is still ours, and write the outbox; return whether it has something."""
        rows, declared = self._rows, self._declared
        self._guard.check()
        session.flush()
        connection = session.connection()
        local = self._guard.set_local and not self._guard.set_session
        if not rows.dialect.finalise(connection, self._token, self._begun, local=local):
            raise TransactionMisused("on_dead_letter ended the transaction of its session")
        # A letter may be redriven before its call, or die again without a redrive; a new database repeats it.
        source = f"dead letter {self._row.id} {self._row.dead_at.isoformat()}".encode()
        trace = self.surroundings.run(current_headers)
        made = [
            failures.published(one, declared.name, source, number, trace)
            for number, one in enumerate(self._publisher.publications)
        ]
        outbox.append(connection, rows.tables, made)
        self._guard.seal()
        return bool(made)

    def end(self) -> None:
        """Refuse late use of the context and the session."""
        if self._context is not None:
            self._context.close(self._declared.name)
        self._guard.end(self._declared.name)
