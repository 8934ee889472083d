"""Finds whether a COMMIT was sent, refused or answered, whatever `session.commit()` raised.

A session's class, its listeners and its engine's listeners run code before and after COMMIT. Their errors tell nothing
about the transaction, so its end is observed where it happens.
"""

from __future__ import annotations

import logging

from sqlalchemy import Connection, Transaction

from consumerkit.engine.transaction import failures
from consumerkit.errors import CommitUnknown, SessionUnfit
from consumerkit.storage.faults import is_refusal

_log = logging.getLogger(__name__)


class CommitEvidence:
    """The observations of one transaction's COMMIT.

    Attributes:
        sealed: Whether all checks are done, so that only COMMIT may follow.
        rolled_back: Whether the transaction was rolled back.
        in_hook: Whether the user's code failed on the way to COMMIT.
    """

    __slots__ = ("_connection", "_durable", "_late", "_refusal", "_transaction", "in_hook", "rolled_back", "sealed")

    def __init__(self) -> None:
        self.sealed = False
        self.rolled_back = False
        self.in_hook = False
        self._late = False
        self._connection: Connection | None = None
        self._transaction: Transaction | None = None
        self._refusal: BaseException | None = None
        self._durable = False

    def executed(self) -> None:
        """Record a statement; one after the checks requires another check."""
        self._late = self.sealed

    def begin(self, connection: Connection) -> None:
        """Record that COMMIT is about to be sent.

        Raises:
            DBAPIError: A statement after the checks failed, and its error was swallowed. The server would answer COMMIT
                with a rollback that no driver reports.
        """
        if self._late:
            connection.exec_driver_sql("SELECT 1")
        self._connection, self._transaction = connection, connection.get_transaction()

    def failed(self, error: BaseException) -> None:
        """Record a driver's error that no statement of the user caused."""
        if self._connection is not None and not self._durable and not self.rolled_back and self._refusal is None:
            self._refusal = error

    def answered(self) -> None:
        """Record that the session's transaction is committed."""
        self._durable = self._connection is not None and self._refusal is None and not self.rolled_back

    @property
    def durable(self) -> bool | None:
        """Whether the transaction is durable; None if that is unknown."""
        if self._durable:
            return True
        if self._connection is None or self.rolled_back:
            return False
        if self._refusal is not None:
            return False if is_refusal(self._refusal) else None
        # A listener raised: the connection's before COMMIT was sent, or the session's after its answer.
        if self._connection.get_transaction() is self._transaction:
            return False
        return None if self._connection.closed else True

    def conclude(self, handler: str, error: BaseException | None) -> None:
        """Return if the transaction is durable, whatever `session.commit()` raised.

        Args:
            handler: The handler's name, for the log.
            error: The error of `session.commit()`, or None.

        Raises:
            CommitUnknown: COMMIT was sent, and its outcome is unknown.
            SessionUnfit: `commit()` returned without a commit.
            BaseException: The error that prevented COMMIT, or the server's refusal.
        """
        durable = self.durable
        if durable:
            if error is not None:
                self.tell(handler, error)
            return
        cause = self._refusal or error
        if durable is None:
            what = "no error" if cause is None else type(cause).__name__
            raise CommitUnknown(f"the connection broke at COMMIT: {what}") from cause
        if cause is None:
            raise SessionUnfit("commit() of the session's class returned without a commit: call super().commit()")
        self.in_hook = self._refusal is None
        raise cause

    def tell(self, handler: str, error: BaseException) -> None:
        """Log an error of the user's code that came after the transaction was durable."""
        _log.error(
            "handler %r: code of the session's class or a listener failed after COMMIT; the transaction is durable, "
            "so nothing is run again: %s",
            handler,
            failures.described(error),
        )
