"""Record headers as text for a column: any bytes survive, and plain ones stay readable."""

from __future__ import annotations

import base64
import json
from typing import Final

from consumerkit.message import Headers

_BASE64: Final = 4 / 3


def dump(headers: Headers) -> str:
    r"""Return headers as JSON: `[name, text]`, `[name, null]`, or `[name, base64, "base64"]` for other bytes.

    Text is written as base64 too if that is shorter, since JSON escapes most of the text.

    Example:
        >>> dump((("id", b"1"), ("raw", b"\xff"), ("none", None)))
        '[["id", "1"], ["raw", "/w==", "base64"], ["none", null]]'
    """
    return json.dumps([_dumped(name, value, short=True) for name, value in headers])


def as_text(headers: Headers) -> str:
    """Return headers as JSON with text always as text: a stable form for digests."""
    return json.dumps([_dumped(name, value, short=False) for name, value in headers])


def _dumped(name: str, value: bytes | None, *, short: bool) -> list[str | None]:
    if value is None:
        return [name, None]
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\x00"
    # PostgreSQL's text type cannot hold NUL. JSON would escape it, but base64 is safe for every
    # reader.
    if "\x00" in text or (short and _takes_more_room(text, len(value))):
        return [name, base64.b64encode(value).decode(), "base64"]
    return [name, text]


def _takes_more_room(text: str, length: int) -> bool:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return False
    return len(json.dumps(text)) > length * _BASE64 + len(', "base64"')


def load(text: str) -> Headers:
    r"""Return the headers that `dump` wrote.

    Example:
        >>> load(dump((("raw", b"\xff"), ("none", None))))
        (('raw', b'\xff'), ('none', None))
    """
    return tuple(_loaded(*item) for item in json.loads(text))


def _loaded(name: str, value: str | None, encoding: str | None = None) -> tuple[str, bytes | None]:
    if value is None:
        return name, None
    return name, base64.b64decode(value) if encoding == "base64" else value.encode()
