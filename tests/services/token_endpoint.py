"""A token endpoint over HTTP, as OAuth 2.0 servers have one; its tokens are JWS without a signature."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs

CLIENT = "shop"
SECRET = "horse battery+staple/%"


class Asked(NamedTuple):
    """One request: its headers, and its parameters."""

    headers: dict[str, str]
    fields: dict[str, str]


class Answer(NamedTuple):
    """One answer."""

    status: int
    body: bytes
    location: str = ""


def new_token(seconds: float = 3600.0, **claims: object) -> str:
    """Return a token that Kafka's validator for tests takes: it names a user, and when it expires."""
    now = time.time()
    told = {"sub": CLIENT, "iat": int(now), "exp": now + seconds, **claims}
    return f"{_part({'alg': 'none'})}.{_part(told)}."


def granted(seconds: float = 3600.0) -> Answer:
    """Return a token in an answer."""
    told = {"access_token": new_token(seconds), "token_type": "Bearer", "expires_in": seconds}
    return Answer(200, json.dumps(told).encode())


class TokenServer:
    """A running token endpoint; a context manager.

    Args:
        answer: What it answers.

    Attributes:
        url: The endpoint.
        answer: What it answers from now on.
        asked: What it was asked.
    """

    def __init__(self, answer: Callable[[], Answer] = granted) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                fields = {name: values[0] for name, values in parse_qs(body).items()}
                server.asked.append(Asked(dict(self.headers), fields))
                answer = server.answer()
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(answer.body)))
                if answer.location:
                    self.send_header("Location", answer.location)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/oauth/token?tenant=hidden"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _part(claims: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
