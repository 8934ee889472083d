"""The words that a metric's label can have, and the names of what waits."""

from __future__ import annotations

from typing import Final

from consumerkit.outcome import Reason

OUTCOMES: Final = ("processed", "duplicate", "duplicate_of_dead", "dead", "parked", "skipped")
"""The outcomes of `messages`."""
REASONS: Final = tuple(reason.value for reason in Reason)
"""The reasons of `dead_letters`."""
CAUSES: Final = ("redelivered", "resent")
"""The causes of `duplicates`."""
PLACES: Final = ("database", "broker", "codec", "undo")
"""The places of `trouble`."""
DATABASE: Final = "database"
SOURCES: Final = (DATABASE, "broker")
"""The sources of `measured_timestamp_seconds`: `lag` needs both, and what is parked or dead only the database."""
BACKLOG: Final = {
    "parked": "Messages that wait for their next attempt, or behind one that does.",
    "parked_due": "Parked messages that are due.",
    "parked_oldest_seconds": "How long the oldest parked message has been parked.",
    "parked_due_oldest_seconds": "How long the first due parked message has been due.",
    "keys_held": "Keys that wait for a decision on a dead letter.",
    "undos": "Steps that are to be undone.",
    "undos_due": "Steps to be undone that are due.",
    "undos_due_oldest_seconds": "How long the first due undo has been due.",
    "left_behind": "Rows that wait for code which is not deployed; without a handler, those of handlers not run here.",
    "dead_letter_calls": "Dead letters that wait for the handler's on_dead_letter.",
    "dead_letter_calls_due": "Dead letters for which on_dead_letter is due.",
    "dead_letter_calls_due_oldest_seconds": "How long the first of these calls has been due.",
    "dead_undecided": "Dead letters that wait for a decision.",
    "dead_oldest_seconds": "How long the oldest of these has waited.",
    "lag": "Messages in the topics, of all partitions, that are not processed.",
    "lag_oldest_seconds": "How long the oldest of these has been there, as far as the process has seen.",
    "work_left": "Lag, due parked messages, held keys, due undos and due calls together, for autoscalers.",
    "work_left_oldest_seconds": "How long the oldest of these has waited.",
}
"""Each number of a handler's backlog, with its description."""
