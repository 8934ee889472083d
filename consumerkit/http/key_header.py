"""Reads or refuses the `Idempotency-Key` header of a request."""

from __future__ import annotations

import re
from typing import Final

from starlette.datastructures import Headers

NAME: Final = "idempotency-key"
LONGEST: Final = 255
# The draft defines a String of structured fields (RFC 9651); most clients send the bare form.
_QUOTED: Final = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])+)"')
_BARE: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]+")


class MalformedKey(Exception):
    """The header cannot be read as one key; the text says why, without the key."""


def read(headers: Headers) -> str | None:
    r"""Return the key; None where there is none.

    Raises:
        MalformedKey: The header is not one key of 1 to 255 characters.

    Example:
        >>> read(Headers({"Idempotency-Key": '"8e03978e"'})), read(Headers({"Idempotency-Key": "8e03978e"}))
        ('8e03978e', '8e03978e')
    """
    given = headers.getlist(NAME)
    if not given:
        return None
    if len(given) > 1:
        raise MalformedKey("the header is given more than once")
    text = given[0].strip()
    if (quoted := _QUOTED.fullmatch(text)) is not None:
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    elif _BARE.fullmatch(text):
        key = text
    else:
        raise MalformedKey('give one string in quotation marks, such as "8e03978e-40d5-43dd-bc93-6894a57f9324"')
    if len(key) > LONGEST:
        raise MalformedKey(f"the key is longer than {LONGEST} characters")
    if not key.strip():
        raise MalformedKey("the key is empty")
    return key
