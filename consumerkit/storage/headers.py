"""Record headers as text for a column: any bytes survive, and plain ones stay readable."""

from __future__ import annotations

import base64
import json

from consumerkit.message import Headers


def dump(headers: Headers) -> str:
    r"""Return headers as JSON: `[name, text]`, `[name, null]`, or `[name, base64, "base64"]` for other bytes.

    Example:
        >>> dump((("id", b"1"), ("raw", b"\xff"), ("none", None)))
        '[["id", "1"], ["raw", "/w==", "base64"], ["none", null]]'
    """
    return json.dumps([_dumped(name, value) for name, value in headers])


def _dumped(name: str, value: bytes | None) -> list[str | None]:
    if value is None:
        return [name, None]
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\x00"
    # PostgreSQL's text cannot hold NUL, and JSON escapes it, but base64 keeps every reader safe.
    if "\x00" in text:
        return [name, base64.b64encode(value).decode(), "base64"]
    return [name, text]


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
