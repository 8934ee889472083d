"""Checks over HTTP whether a server keeps what an `Idempotency-Key` promises, in whatever language it is written.

    python -m consumerkit.http.conformance https://shop.example/orders --body '{"item": "tea"}' \
        --other-body '{"item": "coffee"}' --header 'Authorization: Bearer ...'

The cases come from the IETF's draft (-07, expired) and from the documentation of payment services.
The requests take effect: use a test system. The check needs only Python's standard library.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

_COPIES: Final = 8
_WITHIN: Final = 60.0


class ServerAnswer(NamedTuple):
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_done(self) -> bool:
        """Whether the request took effect."""
        return 200 <= self.status < 300

    @property
    def is_problem(self) -> bool:
        """Whether the answer is problem details."""
        return self.headers.get("content-type", "").partition(";")[0] == "application/problem+json"


@dataclass(frozen=True, slots=True)
class Server:
    """The server that is checked.

    Attributes:
        url: The URL of an operation that takes effect once per key.
        body: A body that the server answers with 2xx.
        other_body: Another body that it answers with 2xx.
        headers: Headers that each request needs, such as the caller's credentials.
        other_caller: The same headers for another caller; without them, keys of two callers are not
            compared.
        method: POST, or PATCH.
    """

    url: str
    body: bytes
    other_body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    other_caller: Mapping[str, str] | None = None
    method: str = "POST"

    def ask(self, key: str | None, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> ServerAnswer:
        """Send one request on a new connection."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=_WITHIN)
        given = {"Content-Type": "application/json", **(self.headers if headers is None else headers)}
        if key is not None:
            given["Idempotency-Key"] = key
        target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        try:
            connection.request(self.method, target, self.body if body is None else body, given)
            found = connection.getresponse()
            return ServerAnswer(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
        finally:
            connection.close()


def _new_key() -> str:
    return f'"{uuid4()}"'


def _missing(server: Server) -> str | None:
    answer = server.ask(None)
    return None if answer.status == 400 else f"answered {answer.status} and not 400"


def _malformed(server: Server) -> str | None:
    for key in ('""', '"unfinished', "two words"):
        if (answer := server.ask(key)).status != 400:
            return f"answered {answer.status} and not 400 to the key {key}"
    return None


def _explained(server: Server) -> str | None:
    return None if server.ask('"unfinished').is_problem else "its Content-Type is not application/problem+json"


def _first(server: Server) -> str | None:
    answer = server.ask(_new_key())
    if not answer.is_done:
        return f"answered {answer.status} to a first request"
    return "called a first answer a repeated one" if "idempotent-replayed" in answer.headers else None


def _long(server: Server) -> str | None:
    answer = server.ask('"' + f"{uuid4()}".ljust(255, "x") + '"')
    return None if answer.is_done else f"answered {answer.status} to a key of 255 characters"


def _repeated(server: Server) -> str | None:
    key = _new_key()
    first, *others = (server.ask(key) for _ in range(3))
    if not first.is_done:
        return f"answered {first.status} to a first request"
    same = all((one.status, one.body) == (first.status, first.body) for one in others)
    return None if same else "answered a repeated request with another status or body"


def _other_request(server: Server) -> str | None:
    key = _new_key()
    first, other, again = server.ask(key), server.ask(key, server.other_body), server.ask(key)
    if other.status != 422:
        return f"answered {other.status} and not 422 to another request under the key"
    same = (again.status, again.body) == (first.status, first.body)
    return None if same else "the first request was answered otherwise after that"


def _two_keys(server: Server) -> str | None:
    answers = [server.ask(_new_key()) for _ in range(2)]
    if not all(one.is_done for one in answers):
        return f"answered {answers[0].status} and {answers[1].status} to two keys"
    replayed = any("idempotent-replayed" in one.headers for one in answers)
    return "took one key for another" if replayed else None


def _at_once(server: Server) -> str | None:
    key, together = _new_key(), threading.Barrier(_COPIES)

    def ask(_: int) -> ServerAnswer:
        together.wait()
        return server.ask(key)

    with ThreadPoolExecutor(_COPIES) as threads:
        answers = list(threads.map(ask, range(_COPIES)))
    done = {(one.status, one.body) for one in answers if one.is_done}
    if others := {one.status for one in answers if not one.is_done} - {409}:
        return f"answered {', '.join(map(str, sorted(others)))} to copies of a request in progress, and not 409"
    after = server.ask(key)
    done.add((after.status, after.body))
    return None if len(done) == 1 else f"gave {len(done)} different answers to copies sent at once"


def _two_callers(server: Server) -> str | None:
    if server.other_caller is None:
        return None
    key = _new_key()
    first, other = server.ask(key), server.ask(key, headers=server.other_caller)
    if not (first.is_done and other.is_done):
        return f"answered {first.status} and {other.status} to two callers"
    return "gave one caller's answer to another" if "idempotent-replayed" in other.headers else None


CASES: Final[Mapping[str, Callable[[Server], str | None]]] = {
    "a missing key is refused with 400": _missing,
    "a malformed key is refused with 400": _malformed,
    "a refusal explains itself by problem details": _explained,
    "a first request is done": _first,
    "a key may have 255 characters": _long,
    "a repeated request gets the first answer": _repeated,
    "another request under the same key is refused with 422": _other_request,
    "two keys are two requests": _two_keys,
    "copies sent at once get one answer, or 409": _at_once,
    "keys of two callers do not meet": _two_callers,
}
"""The checks by name; each returns what was wrong, or None."""


def check(server: Server) -> dict[str, str | None]:
    """Return what the server did wrong, by case; None where it did nothing wrong."""
    return {name: case(server) for name, case in CASES.items()}


def _arguments(given: Sequence[str]) -> Server:
    parser = argparse.ArgumentParser(
        prog="python -m consumerkit.http.conformance",
        description="Check whether a server keeps what an Idempotency-Key promises. Its requests take effect.",
    )
    parser.add_argument("url", help="of an operation that takes effect once for each key")
    parser.add_argument("--body", default='{"conformance": 1}', help="a JSON body that is answered with 2xx")
    parser.add_argument("--other-body", default='{"conformance": 2}', help="another one of that kind")
    parser.add_argument("--header", action="append", default=[], metavar="NAME: VALUE", help="of each request")
    parser.add_argument(
        "--other-caller", action="append", default=[], metavar="NAME: VALUE", help="the same of another caller"
    )
    parser.add_argument("--method", default="POST")
    found = parser.parse_args(given)
    for name in ("body", "other_body"):
        try:
            json.loads(getattr(found, name))
        except ValueError:
            parser.error(f"--{name.replace('_', '-')} is no JSON")
    if urlsplit(found.url).scheme not in ("http", "https"):
        parser.error("the URL begins with neither http:// nor https://")
    headers, other = _headers(parser, found.header), _headers(parser, found.other_caller)
    return Server(found.url, found.body.encode(), found.other_body.encode(), headers, other or None, found.method)


def _headers(parser: argparse.ArgumentParser, given: Sequence[str]) -> dict[str, str]:
    """Return the headers; a value `$NAME` comes from the environment, which other users cannot see."""
    found = {}
    for one in given:
        name, colon, value = one.partition(":")
        if not colon:
            parser.error("a header has no colon; write it as 'Name: value'")
        value = value.strip()
        found[name.strip()] = os.environ.get(value[1:], "") if value.startswith("$") else value
    return found


def main(given: Sequence[str] = ()) -> int:
    """Check a server and print each case; return the exit status: 0 if all hold, 1 if not, 2 if it is unreachable."""
    server = _arguments(given)
    try:
        found = check(server)
    except (OSError, http.client.HTTPException) as error:
        print(f"error: the server cannot be asked: {type(error).__name__}", file=sys.stderr)
        return 2
    for name, wrong in found.items():
        skipped = CASES[name] is _two_callers and server.other_caller is None
        verdict = "not checked" if skipped else "kept" if wrong is None else "BROKEN"
        print(f"{verdict:<12}{name}" + (f": it {wrong}" if wrong else ""))
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
