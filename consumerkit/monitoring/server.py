"""Serves `/live`, `/ready` and `/metrics` from a thread, which answers while the event loop is blocked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from consumerkit.errors import ConfigurationError, StartError
from consumerkit.monitoring.health import HealthReport
from consumerkit.redaction.plain_words import shown_word

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Answer = tuple[str, str, bytes]
_TEXT: Final = "text/plain; charset=utf-8"


def address(text: str) -> tuple[str, int]:
    """Return host and port of `--http`.

    Raises:
        ConfigurationError: The text is not HOST:PORT.

    Example:
        >>> address("127.0.0.1:8080"), address("[::1]:0")
        (('127.0.0.1', 8080), ('::1', 0))
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"--http {shown_word(text)}: write HOST:PORT, such as 127.0.0.1:8080")
    return host.strip("[]"), int(port)


@contextmanager
def serving(
    place: tuple[str, int], health: Callable[[], HealthReport], registry: Callable[[], CollectorRegistry]
) -> Iterator[int]:
    """Answer until the block ends; yield the port.

    Args:
        place: Host and port; port 0 takes a free one.
        health: Called for each `/live` and `/ready`, in the server's threads.
        registry: Called for each `/metrics`.

    Raises:
        StartError: The port is taken, or there is no such host.
    """

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        status, kind, body = _answer(environ.get("PATH_INFO", "/"), health, registry)
        start(status, [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")])
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

    try:
        server = make_server(*place, application, server_class=_server_for(place[0]), handler_class=_Quiet)
    except OSError as error:
        raise StartError(f"--http {place[0]}:{place[1]}: {error.strerror or error}; choose another port") from None
    thread = threading.Thread(target=server.serve_forever, name="consumerkit-http", daemon=True)
    thread.start()
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(path: str, health: Callable[[], HealthReport], registry: Callable[[], CollectorRegistry]) -> Answer:
    if path == "/live":
        return _told(health(), lambda found: found.live)
    if path == "/ready":
        return _told(health(), lambda found: found.ready)
    if path == "/metrics":
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

        return "200 OK", CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry())
    return "404 Not Found", _TEXT, b"there is /live, /ready and /metrics\n"


def _told(health: HealthReport, good: Callable[[HealthReport], bool]) -> Answer:
    status = "200 OK" if good(health) else "503 Service Unavailable"
    body = {"live": health.live, "ready": health.ready, "findings": list(health.findings)}
    return status, "application/json", json.dumps(body).encode() + b"\n"


class _Threads(ThreadingMixIn, WSGIServer):
    """A server that answers several requests at once; its threads do not delay the process's exit."""

    daemon_threads = True


def _server_for(host: str) -> type[_Threads]:
    """Return the server class for a host's address family."""
    if ":" not in host:
        return _Threads
    import socket

    return type("_ThreadsV6", (_Threads,), {"address_family": socket.AF_INET6})


class _Quiet(WSGIRequestHandler):
    """Writes no access log: a probe each second would hide the worker's own lines."""

    timeout = 10.0  # seconds for which a connection may be silent

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""
