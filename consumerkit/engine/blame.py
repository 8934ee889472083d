"""Whose fault the failure of a group is, by the error and by whose statements were running."""

from __future__ import annotations

from typing import Final

from consumerkit.engine.group import Group
from consumerkit.engine.transaction import LedgerMoved
from consumerkit.error_tree import is_a, leaves
from consumerkit.errors import ConfigurationError, Reject, SessionUnfit, TablesReplaced, Unavailable
from consumerkit.storage.faults import Fault, fault_of

OWN: Final = frozenset({Fault.HANDLER, Fault.PRESENT})
"""What may be one message's fault: its group is taken apart until that message is alone."""


def fault_in(group: Group, error: Exception) -> Fault:
    """Return whose fault the failure of a group is."""
    fault = _fault(group, error)
    if fault is Fault.PRESENT and not _is_theirs(group):
        return Fault.CONNECTION  # a pooler gave us another session, with what somebody else has prepared there
    return fault


def _fault(group: Group, error: Exception) -> Fault:
    if isinstance(error, LedgerMoved):
        return Fault.CONFLICT
    if isinstance(error, TablesReplaced) or (isinstance(error, ConfigurationError) and not group.handling):
        return Fault.DEPLOY
    found = leaves(error)
    if any(is_a(leaf, Unavailable) for leaf in found):
        return Fault.CAPACITY
    if group.guard.unfit is not None or any(is_a(leaf, SessionUnfit) for leaf in found):
        return Fault.UNFIT
    in_handler = group.handling or group.guard.commit.in_hook
    if group.sound and any(is_a(leaf, Reject) for leaf in found):
        # Said on purpose, whatever error it was said about: of another database, or undone by a savepoint.
        others = (fault_of(leaf, in_handler=in_handler) for leaf in found if not is_a(leaf, Reject))
        return next((fault for fault in others if fault is not Fault.HANDLER), Fault.HANDLER)
    return fault_of(error, in_handler=in_handler)


def _is_theirs(group: Group) -> bool:
    return group.theirs or group.guard.commit.in_hook
