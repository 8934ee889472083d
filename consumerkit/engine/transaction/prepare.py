"""Turns a record into a delivery: size, decoding, identity, fingerprint. A failure here is final."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from consumerkit.dead_letters.error_text import KIND_CHARACTERS, TEXT_CHARACTERS, cut
from consumerkit.engine.transaction.delivery import Decided, Delivery, GiveUp
from consumerkit.engine.transaction.fresh_context import FreshContexts
from consumerkit.errors import Unavailable, Undecodable
from consumerkit.handlers.declaration import SKIP, Declaration
from consumerkit.handlers.message_id import Identity, MessageId, topic_scope
from consumerkit.handlers.value_bytes import NoStableBytes
from consumerkit.message import Message
from consumerkit.observability.shown_errors import are_shown, one_line
from consumerkit.observability.user_code import is_ours
from consumerkit.outcome import Reason
from consumerkit.redaction.text import redact
from consumerkit.storage.dead_letters.letters import DeadMessage

# A number above 1e11 is in milliseconds, above 1e14 in microseconds, above 1e17 in nanoseconds. In the next larger unit
# it would be the year 5138 or later. A number below a bound would be March 1973 or earlier in the smaller unit.
_UNITS: Final = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
_TOO_LARGE: Final = 1e20
FAR_FUTURE: Final = 86_400.0
"""Seconds ahead of the database's clock beyond which an event's time is not believed."""


class Preparer:
    """Prepares messages by one handler's declarations.

    `clock` returns the database's time, or None while that is unknown.
    """

    def __init__(self, declaration: Declaration, clock: Callable[[], float | None] = time.time) -> None:
        self._declaration = declaration
        self._clock = clock
        by_topic = declaration.scope == "topic"
        self._contexts = FreshContexts()
        self._scopes = {topic: topic_scope(topic) if by_topic else b"" for topic in declaration.topics}

    def prepare(self, message: Message, attempt: int = 1) -> Decided | None:
        """Return the delivery, which may already be dead, or None for a message to skip.

        Raises:
            Unavailable: A service that decoding needs is down.
        """
        return self._contexts.run(self._prepare, message, attempt)

    def _prepare(self, message: Message, attempt: int) -> Decided | None:
        declared = self._declaration
        if declared.size_limit is not None and message.size > declared.size_limit:
            return _oversized(message, declared.size_limit)
        try:
            event = declared.decode(message)
        except Undecodable as error:
            letter = _dead(message, Reason.UNDECODABLE, str(error), self._hint(message))
            if is_ours(error):
                letter = replace(letter, summary=cut(letter.error, KIND_CHARACTERS))
            return Decided(Delivery(message), GiveUp(letter))
        except Unavailable:
            raise
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"codec: {type(error).__name__}") from error
        except Exception as error:  # noqa: BLE001 - a codec's bug is one message's trouble, not the partition's
            return _dead_lettered(message, Reason.UNDECODABLE, f"{type(error).__name__} in the codec")
        if event is SKIP:
            return None
        return self._identified(message, event, attempt)

    def _identified(self, message: Message, event: Any, attempt: int) -> Decided:
        declared = self._declaration
        try:
            found = declared.identity.find(message, event, scope=self._scopes.get(message.topic, b""))
            if found is None:
                return _dead_lettered(message, Reason.UNIDENTIFIED, f"no message ID: {declared.identity!r} found none")
            version = declared.fingerprint.version
            fingerprint = declared.fingerprint.of(message, event, version)
        except NoStableBytes as error:
            return _dead_lettered(message, Reason.UNIDENTIFIED, f"{declared.identity!r}: {error}")
        except Exception as error:  # noqa: BLE001 - an event's property or __str__ may raise anything
            return _dead_lettered(
                message, Reason.UNIDENTIFIED, f"{type(error).__name__} while {declared.identity!r} was read"
            )
        aged = untimed = False
        if declared.event_time is not None and declared.remembered is not None:
            age = self._age(declared.event_time, message, event)
            untimed = age is None
            aged = age is not None and age > declared.remembered
        delivery = Delivery(
            message,
            event,
            found.digest,
            str(found),
            fingerprint,
            found.fallback,
            attempt,
            version,
            aged=aged,
            untimed=untimed,
        )
        return Decided(delivery)

    def _age(self, event_time: Identity, message: Message, event: Any) -> float | None:
        """Return an event's age in seconds, by the database's clock; None if its time is unreadable.

        Raises:
            Unavailable: The database's clock is unknown yet.
        """
        now = self._clock()
        if now is None:
            raise Unavailable("the database's clock is not known yet")
        try:
            happened = moment_of(event_time.find(message, event))
        except Exception:  # noqa: BLE001 - an event's property may raise anything; it has no readable time then
            return None
        return None if happened is None or happened - now > FAR_FUTURE else now - happened

    def _hint(self, message: Message) -> str | None:
        """Return an undecodable message's ID if it is readable without the event; only for people."""
        found: MessageId | None = self._declaration.identity.find(message, None)
        return None if found is None else str(found)


def moment_of(found: MessageId | None) -> float | None:
    """Return a time found in a message, in seconds since the epoch; None if there is none.

    The time is in ISO 8601, in UTC if it has no zone, or is a number of seconds. A number that is too large for seconds
    is in milliseconds, microseconds or nanoseconds.
    """
    if found is None or len(found.parts) != 1:
        return None
    text = found.parts[0].decode("ascii", "replace").strip()
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        # The negation also refuses NaN.
        if not abs(number) < _TOO_LARGE:
            return None
        return number / next((per_second for least, per_second in _UNITS if abs(number) > least), 1)
    try:
        moment = datetime.fromisoformat(text)
        return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp()
    except (ValueError, OverflowError):
        return None


def _oversized(message: Message, limit: int) -> Decided:
    text = f"{message.size} bytes are more than size_limit={limit}"
    return Decided(Delivery(message), GiveUp(_dead(message, Reason.OVERSIZED, text, None, keep_value=False)))


def _dead_lettered(message: Message, reason: Reason, text: str, message_id: str | None = None) -> Decided:
    return Decided(Delivery(message), GiveUp(_dead(message, reason, text, message_id)))


def _dead(
    message: Message, reason: Reason, text: str, message_id: str | None, *, keep_value: bool = True
) -> DeadMessage:
    return DeadMessage(
        message=message,
        digest=None,
        message_id=message_id,
        reason=reason,
        error_type=reason.value.capitalize(),
        error=cut(redact(text), TEXT_CHARACTERS),
        keep_value=keep_value,
        in_full=one_line(redact(text)) if are_shown() else "",
    )
