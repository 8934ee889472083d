"""The supervisor: several worker processes on one machine, and their channels to it."""

from consumerkit.supervisor.child import CLEAN, FAILED, GRACE_EXCEEDED, NOT_STARTED, RestartBackoff
from consumerkit.supervisor.lifeline import Channel, GroupMember, Lifeline
from consumerkit.supervisor.supervisor import SAME_REQUEST, Supervisor
from consumerkit.supervisor.systemd import Notifier

__all__ = [
    "CLEAN",
    "FAILED",
    "GRACE_EXCEEDED",
    "NOT_STARTED",
    "SAME_REQUEST",
    "Channel",
    "GroupMember",
    "Lifeline",
    "Notifier",
    "RestartBackoff",
    "Supervisor",
]
