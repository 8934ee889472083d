"""Payloads at rest: sealed before they are written and unsealed when they are read, by the user's own code.

Value and headers are sealed. The key is not: messages are parked, ordered, redriven and erased by
it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from consumerkit.errors import PayloadSealed
from consumerkit.message import Headers
from consumerkit.storage import headers as header_text


class Sealer(Protocol):
    """Encrypts values in the tables; called in transactions and in threads, so it must be fast and must not block.

    `unseal` must accept everything that `seal` ever returned, also after a change of keys: use an
    authenticated cipher and put the key's number in front.

    Example:
        >>> class Rot:
        ...     def seal(self, payload: bytes) -> bytes:
        ...         return bytes(255 - byte for byte in payload)
        ...
        ...     def unseal(self, sealed: bytes) -> bytes:
        ...         return bytes(255 - byte for byte in sealed)
        >>> Rot().unseal(Rot().seal(b"x"))
        b'x'
    """

    def seal(self, payload: bytes) -> bytes:
        """Return the bytes to store instead of a payload."""
        ...

    def unseal(self, sealed: bytes) -> bytes:
        """Return the payload.

        Raises:
            Exception: It was altered, or sealed by another sealer.
        """
        ...


class Payload(NamedTuple):
    """The payload of a row, in the clear."""

    value: bytes | None
    headers: Headers


def sealed(sealer: Sealer | None, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row to write, with value and headers sealed if there is a sealer."""
    if sealer is None:
        return dict(row)
    value, headers = row["value"], row["headers"]
    return {
        **row,
        "value": None if value is None else sealer.seal(value),
        "headers": base64.b64encode(sealer.seal(headers.encode())).decode(),
        "sealed": True,
    }


def payload(sealer: Sealer | None, row: Any) -> Payload:
    """Return the payload of a row that was read with `value`, `headers` and `sealed`.

    Raises:
        PayloadSealed: It is sealed, and there is no sealer, or the sealer cannot unseal it.
    """
    value = None if row.value is None else bytes(row.value)
    if not row.sealed:
        return Payload(value, header_text.load(row.headers))
    if sealer is None:
        raise PayloadSealed("the payload is sealed; give Tables(sealer=...) the sealer that sealed it")
    try:
        headers = sealer.unseal(base64.b64decode(row.headers)).decode()
        return Payload(None if value is None else sealer.unseal(value), header_text.load(headers))
    except Exception as error:
        raise PayloadSealed(f"the payload was not sealed by this sealer: {type(error).__name__}") from error
