"""How messages of declared handlers become dead letters, for code that ends them without running the handler."""

from __future__ import annotations

from collections.abc import Sequence

from consumerkit.dead_letters.formats import consumerkit as dead_letter_format
from consumerkit.engine.transaction import failures
from consumerkit.handlers.declaration import Declaration
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.maintenance.expiry import Terms
from consumerkit.storage.outbox import OutboxMessage


def terms_of(declarations: Sequence[Declaration]) -> list[Terms]:
    """Return the terms of each handler."""
    return [_terms(declared) for declared in declarations]


def _terms(declared: Declaration) -> Terms:
    dead_letter, hooked = declared.dead_letter, declared.on_dead_letter is not None
    if dead_letter is None:
        return Terms(declared.name, hooked=hooked)
    topic = dead_letter.topic

    def copy(dead: DeadMessage) -> OutboxMessage:
        return dead_letter_format.written(dead, topic, declared.name, failures.now())

    return Terms(declared.name, declared.holds_key, copy, hooked)
