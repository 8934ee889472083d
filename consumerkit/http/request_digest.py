"""Digests of requests: they tell a repeated request from another one under the same key."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final

from starlette.requests import Request

from consumerkit.handlers.fingerprint import DIGEST_BYTES
from consumerkit.handlers.value_bytes import NoStableBytes, canonical, read_path

_BOUNDARY: Final = re.compile(r'boundary="?([^";]+)"?', re.IGNORECASE)


def fingerprint(request: Request, body: bytes, fields: Sequence[str] | None) -> bytes:
    """Return 16 bytes of the request's method, path, query and body.

    A JSON body counts by its value: neither spaces nor the order of names matter. The boundary of a
    multipart form does not count, since a browser chooses it for each request.

    Args:
        request: The request.
        body: Its body.
        fields: The fields of a JSON body that count; a dot leads into a nested field. The whole
            body where None.
    """
    parts = [
        request.method.encode(),
        request.url.path.encode(),
        request.url.query.encode(),
        _body(request, body, fields),
    ]
    joined = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return blake2b(joined, digest_size=DIGEST_BYTES).digest()


def _body(request: Request, body: bytes, fields: Sequence[str] | None) -> bytes:
    kind = request.headers.get("content-type", "")
    if "json" in kind.lower() or fields is not None:
        value = _value(body)
        if value is not _NO_JSON:
            return _canonical(
                value if fields is None else [read_path(value, tuple(one.split("."))) for one in fields], body
            )
    if kind.lower().startswith("multipart/") and (found := _BOUNDARY.search(kind)):
        return body.replace(b"--" + found[1].encode(), b"--")
    return body


_NO_JSON: Final = object()


def _value(body: bytes) -> Any:
    try:
        return json.loads(body, parse_float=Decimal)
    except (ValueError, RecursionError):
        return _NO_JSON


def _canonical(value: Any, body: bytes) -> bytes:
    try:
        return canonical(value)
    except NoStableBytes:
        return body
