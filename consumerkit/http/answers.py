"""The edge's own answers, and the answers that it keeps."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from starlette.responses import JSONResponse, Response

from consumerkit.errors import ConfigurationError, PayloadSealed
from consumerkit.storage.payload import Sealer

NEVER_KEPT: Final = frozenset({401, 403, 408, 409, 425, 429})
"""Statuses of 4xx that depend on the moment or the caller, not on the request."""
REPLAYED: Final = "Idempotent-Replayed"
RETENTION: Final = "Idempotency-Retention"


def problem(
    status: int, title: str, detail: str, *, type: str = "about:blank", retry_after: int | None = None
) -> Response:
    """Return an error as problem details (RFC 9457)."""
    content = {"type": type, "title": title, "status": status, "detail": detail}
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return JSONResponse(content, status, headers, media_type="application/problem+json")


def rendered_body(response: Response) -> bytes:
    """Return the body of an answer that is not streamed.

    Raises:
        ConfigurationError: The answer is streamed, and could be kept only in part.
    """
    body = getattr(response, "body", None)
    if not isinstance(body, bytes) or hasattr(response, "body_iterator") or hasattr(response, "path"):
        raise ConfigurationError(
            f"an idempotent endpoint returned a {type(response).__name__}, which is streamed and cannot be kept; "
            "return the whole answer, or leave the endpoint without @idempotent"
        )
    return body


@dataclass(frozen=True, slots=True)
class Answer:
    """A kept answer: its status, its allowed headers, and its body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @classmethod
    def of(cls, response: Response, allowed: Collection[str]) -> Answer:
        """Return what is kept of a response.

        Raises:
            ConfigurationError: The response is streamed.
        """
        headers = tuple((name, value) for name, value in response.headers.items() if name.lower() in allowed)
        return cls(response.status_code, headers, rendered_body(response))

    def response(self) -> Response:
        """Return the response to a repeated request."""
        response = Response(self.body, self.status)
        for name, value in self.headers:
            response.headers.append(name, value)
        response.headers[REPLAYED] = "true"
        return response

    def text(self, sealer: Sealer | None) -> str:
        """Return the answer as stored text, sealed where there is a sealer."""
        plain = {"status": self.status, "headers": self.headers, "body": base64.b64encode(self.body).decode()}
        if sealer is None:
            return json.dumps(plain)
        return json.dumps({"sealed": base64.b64encode(sealer.seal(json.dumps(plain).encode())).decode()})


def parsed(text: str, sealer: Sealer | None) -> Answer:
    """Return the answer that `Answer.text` has written.

    Raises:
        PayloadSealed: The text is sealed, and there is no sealer or it cannot unseal the text.
    """
    found = json.loads(text)
    if "sealed" in found:
        found = json.loads(_unsealed(base64.b64decode(found["sealed"]), sealer))
    headers = tuple((str(name), str(value)) for name, value in found["headers"])
    return Answer(found["status"], headers, base64.b64decode(found["body"]))


def _unsealed(payload: bytes, sealer: Sealer | None) -> bytes:
    if sealer is None:
        raise PayloadSealed("the kept answer is sealed; give Tables(sealer=...) the sealer that sealed it")
    try:
        return sealer.unseal(payload)
    except Exception as error:
        raise PayloadSealed(f"the kept answer was not sealed by this sealer: {type(error).__name__}") from error
