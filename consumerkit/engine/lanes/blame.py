"""Decides whose fault a batch's failure is, by the error and by whose statements were running."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from consumerkit.engine.transaction.batch import Batch
from consumerkit.engine.transaction.statement_clock import DatabaseSilent
from consumerkit.error_tree import all_in, is_a, leaves
from consumerkit.errors import ConfigurationError, Reject, SessionUnfit, TablesReplaced, Unavailable
from consumerkit.storage.faults import Fault, engine_of, fault_of, mistake_of, sqlstate
from consumerkit.storage.ledger import LedgerMoved

OWN: Final = frozenset({Fault.HANDLER, Fault.PRESENT, Fault.SUSPECT})
"""Faults that one message may cause: its batch is split until that message is alone."""

LOCKED: Final = "55P03"  # lock_not_available
_CANCELLED: Final = "57014"  # query_canceled
# disk_full, too_many_connections: one message never causes these.
_TROUBLE: Final = frozenset({"53100", "53300"})
# The client's clock starts before the server's; they may run at slightly different rates.
_NEARLY: Final = 0.98


class Blame(NamedTuple):
    """Whose fault a failure is.

    Attributes:
        fault: What to do about it.
        kind: How it failed; equal for two messages that fail in the same way.
        waited: Whether one of our time limits ran out, not one that the message set.
        foreign: Whether a database other than ours failed.
    """

    fault: Fault
    kind: str = ""
    waited: bool = False
    foreign: bool = False


def blame(batch: Batch, error: Exception) -> Blame:
    """Return whose fault the failure of a batch is."""
    if isinstance(error, LedgerMoved):
        return Blame(Fault.CONFLICT)
    if isinstance(error, TablesReplaced) or (isinstance(error, ConfigurationError) and not batch.handling):
        return Blame(Fault.DEPLOY)
    found = leaves(error)
    if any(is_a(leaf, DatabaseSilent) for leaf in found):
        return Blame(Fault.SUSPECT, "no answer", waited=True)
    if any(is_a(leaf, Unavailable) for leaf in found):
        return Blame(Fault.CAPACITY)
    if batch.guard.unfit is not None or any(is_a(leaf, SessionUnfit) for leaf in found):
        return Blame(Fault.UNFIT)
    if batch.sound and any(is_a(leaf, Reject) for leaf in found):
        # A Reject is intended, whatever its cause: another database's error, or one that a savepoint undid.
        found = [leaf for leaf in found if not is_a(leaf, Reject)]
    return _first(batch, found)


def _first(batch: Batch, errors: list[BaseException]) -> Blame:
    """Return the blame for the first error or cause that is not simply the handler's own."""
    if batch.unprepared:
        # No statement of ours ran. If an error looks like a database's, our database is probed.
        return Blame(Fault.HANDLER, foreign=any(fault_of(e, in_handler=True) is not Fault.HANDLER for e in errors))
    in_handler = batch.handling or batch.guard.commit.in_hook
    theirs = batch.theirs or batch.guard.commit.in_hook
    foreign = False
    for error in errors:
        for one in all_in(error):
            fault = fault_of(one, in_handler=in_handler, alone=True)
            if fault is Fault.HANDLER or (batch.sound and is_a(one, PendingRollbackError)):
                continue
            if _is_foreign(batch, one):
                foreign = True
            else:
                return _of_theirs(batch, one, fault) if theirs else _of_ours(fault)
    return Blame(Fault.HANDLER, foreign=foreign)


def _is_foreign(batch: Batch, error: BaseException) -> bool:
    """Tell whether an error comes from an engine other than the one that writes claims and effects."""
    engine, ours = engine_of(error), batch.guard.engine
    return engine is not None and ours is not None and engine.pool is not ours.pool


def _of_ours(fault: Fault) -> Blame:
    # A pooler gave us another session, where another client has prepared something.
    return Blame(Fault.CONNECTION if fault is Fault.PRESENT else fault)


def _of_theirs(batch: Batch, error: BaseException, fault: Fault) -> Blame:
    """Return the blame for an error of a user's statement; it may concern one message or all."""
    if fault is Fault.PRESENT:
        return Blame(fault)
    if is_a(error, PoolTimeout):
        return Blame(Fault.SUSPECT, "no free connection")
    kind = _kind(error)
    # A new connection may work.
    if kind is None or (fault is Fault.CONNECTION and batch.reused):
        return Blame(fault)
    return Blame(Fault.SUSPECT, kind, waited=_ran_out(batch, kind))


def _kind(error: BaseException) -> str | None:
    """Return how a statement failed; None for a failure that one message never causes."""
    if not is_a(error, DBAPIError) or error.connection_invalidated:
        return None
    state = sqlstate(error)
    if state is None:
        return mistake_of(error)
    return None if state in _TROUBLE or state.startswith("40") else state


def _ran_out(batch: Batch, state: str) -> bool:
    """Tell whether our limit ended a statement; the message may have set a shorter one."""
    if batch.limits is None or state not in (LOCKED, _CANCELLED):
        return False
    limit = batch.limits.lock if state == LOCKED else batch.limits.statement
    return batch.guard.statements.took >= _NEARLY * limit
