"""Fingerprints: they tell a resend from a conflict, when the same message ID arrives again."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from consumerkit.errors import ConfigurationError
from consumerkit.handlers.value_bytes import NoStableBytes, canonical, first_bytes, read_path
from consumerkit.message import Message

DIGEST_BYTES: Final = 16
VERSION: Final = 2
"""The version of new fingerprints of fields; a row without a version has the first."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The event fields that tell a resend from a conflict; made by `event_fields`."""

    names: tuple[str, ...]

    def __repr__(self) -> str:
        return f"event_fields({', '.join(map(repr, self.names))})"

    @property
    def version(self) -> int | None:
        """The version of new fingerprints; None is the first version, and the only one of whole values."""
        return VERSION if self.names else None

    def of(self, message: Message, event: object, version: int | None = None) -> bytes:
        """Return the fingerprint: of the named fields, or of the raw value where none are named.

        Args:
            message: The record.
            event: The event that the record was decoded to.
            version: The version of the fingerprint; None is the first.

        Raises:
            NoStableBytes: A field has no bytes that represent its value.
        """
        if not self.names:
            return blake2b(message.value or b"", digest_size=DIGEST_BYTES).digest()
        joined = bytearray()
        for name in self.names:
            value = read_path(event, tuple(name.split(".")))
            joined += _first(value) if version is None else _second(name, value)
        return blake2b(joined, digest_size=DIGEST_BYTES).digest()


def _first(value: object) -> bytes:
    raw = first_bytes(value)
    return b"-" if raw is None else len(raw).to_bytes(8, "big") + raw


def _second(name: str, value: object) -> bytes:
    try:
        return canonical(value)
    except NoStableBytes as error:
        raise NoStableBytes(f"fingerprint: {name!r} {error}") from None


WHOLE_VALUE: Final = Fingerprint(())


def is_name(name: object) -> bool:
    """Whether a value can name a field or a header."""
    return isinstance(name, str) and name != ""


def event_fields(*names: str) -> Fingerprint:
    """Compare only these fields when the same ID arrives again; the default compares the whole value.

    Use it where a resend differs harmlessly, as in a timestamp. Values that are equal compare equal
    in any form: sets and mappings in any order, 1 and 1.0, one instant in two time zones.

    Example:
        >>> event_fields("payment_id", "amount")
        event_fields('payment_id', 'amount')
    """
    if not names or not all(map(is_name, names)):
        described = ", ".join(map(repr, names))
        raise ConfigurationError(f"event_fields({described}): give at least one name, none of them empty")
    return Fingerprint(names)
