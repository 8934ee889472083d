"""Tokens for logins: an endpoint's answers, a function's results, and that neither blocks other work."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote_plus

import pytest

from consumerkit import AccessToken, Kafka, OAuthBearer, TokenEndpoint
from consumerkit.errors import ConfigurationError, StartError
from consumerkit.transports import token_caller, token_keeper, token_request
from consumerkit.transports.access_token import NoToken
from consumerkit.transports.token_keeper import TokenKeeper
from tests.services.process import wait_until
from tests.services.token_endpoint import CLIENT, SECRET, Answer, TokenServer, granted, new_token

WITHIN = 120.0
TOKEN = "hidden-token-in-an-answer"


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with TokenServer() as running:
        yield running


def body(**told: object) -> Callable[[], Answer]:
    return lambda: Answer(200, json.dumps(told).encode())


def eventually(holds: Callable[[], bool]) -> None:
    wait_until(holds, within=WITHIN, what="the keeper", every=0.01)


@pytest.fixture
def renewed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each token renewed long before it expires, however slow the machine is."""
    monkeypatch.setattr(token_keeper, "RENEWED_AFTER", 0.0)
    monkeypatch.setattr(token_keeper, "_SHORTEST_LIFE", 0.05)


@pytest.fixture
def asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_keeper, "LONGEST_WAIT", 0.05)


def keeper(ask: Any, timeout: float = 10.0) -> TokenKeeper:
    return OAuthBearer(ask, timeout=timeout).keeper()


def test_the_endpoint_is_asked_as_the_standard_says(server: TokenServer) -> None:
    token = TokenEndpoint(server.url, CLIENT, SECRET, "kafka api", parameters={"audience": "broker"})()
    assert 3500 < token.seconds_left <= 3600
    (asked,) = server.asked
    assert asked.fields == {"grant_type": "client_credentials", "scope": "kafka api", "audience": "broker"}
    sent = base64.b64decode(asked.headers["Authorization"].removeprefix("Basic ")).decode()
    assert sent == f"{CLIENT}:{quote_plus(SECRET)}"
    TokenEndpoint(server.url, CLIENT, lambda: SECRET, authentication="post")()
    fields = server.asked[1].fields
    assert (fields["client_id"], fields["client_secret"]) == (CLIENT, SECRET)
    assert "Authorization" not in server.asked[1].headers


REFUSED: dict[str, tuple[Callable[[], Answer], str, bool]] = {
    "no client": (
        lambda: Answer(401, json.dumps({"error": "invalid_client", "error_description": SECRET}).encode()),
        r"refused the client \(HTTP 401, invalid_client\); check client_id, client_secret and scope",
        True,
    ),
    "no scope": (lambda: Answer(400, b'{"error": "invalid_scope"}'), "HTTP 400, invalid_scope", True),
    "an error that quotes": (lambda: Answer(400, b'{"error": "no user hidden-token-in"}'), r"\(HTTP 400\)", True),
    "no such page": (lambda: Answer(404, b"<html>"), "answered HTTP 404; check its URL", True),
    "a redirect": (lambda: Answer(302, b"", "/elsewhere"), "answered HTTP 302; check its URL", True),
    "out of order": (lambda: Answer(503, b""), "answered HTTP 503", False),
    "too many requests": (lambda: Answer(429, b""), "answered HTTP 429", False),
    "a page": (lambda: Answer(200, b"<html>Sign in</html>"), "without an access token; check its URL", False),
    "a list": (lambda: Answer(200, b"[]"), "without an access token", False),
    "no token": (body(token_type="Bearer"), "without an access token", False),
    "another kind": (body(access_token=TOKEN, token_type="mac", expires_in=60), "another kind than bearer", False),
    "no lifetime": (body(access_token=TOKEN, token_type="Bearer"), "without a known expiry", False),
    "a lifetime in words": (body(access_token=TOKEN, expires_in="an hour"), "without a known expiry", False),
    "a token with a break": (body(access_token=TOKEN + "\n", expires_in=60), "gave no token", False),
    "a number": (body(access_token=5, expires_in=60), "gave no token", False),
    "expired": (body(access_token=TOKEN, expires_in=-5), "has expired already; check the clocks", False),
    "expired by itself": (body(access_token=new_token(-60)), "has expired already", False),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_endpoint_without_a_token_is_one_line_with_the_way_out(server: TokenServer, case: str) -> None:
    server.answer, words, permanent = REFUSED[case]
    with pytest.raises(NoToken, match=words) as error:
        TokenEndpoint(server.url, CLIENT, SECRET)()
    told = "".join(traceback.format_exception(error.value))
    assert str(error.value).startswith(f"the token endpoint {server.url.partition('?')[0]} ")
    assert "\n" not in str(error.value)
    assert error.value.permanent is permanent
    assert TOKEN not in told
    assert SECRET not in told
    assert "tenant=hidden" not in told


def test_an_endpoint_that_cannot_be_reached_or_hangs_is_told(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    server.answer = lambda: (gate.wait(10), granted())[1]
    monkeypatch.setattr(token_request, "_TIMEOUT", 0.05)
    with pytest.raises(NoToken, match=r"cannot be reached: no answer within 0\.05 s; check its URL"):
        TokenEndpoint(server.url, CLIENT, SECRET)()
    gate.set()
    with pytest.raises(NoToken, match="cannot be reached: Connection refused; check its URL and that it runs"):
        TokenEndpoint("http://127.0.0.1:1/token", CLIENT, SECRET)()


def test_a_lifetime_may_stand_in_the_token_alone(server: TokenServer) -> None:
    server.answer = body(access_token=new_token(120.0))
    assert 110 < TokenEndpoint(server.url, CLIENT, SECRET)().seconds_left <= 120


def test_a_token_is_asked_for_once(server: TokenServer) -> None:
    keeping = keeper(TokenEndpoint(server.url, CLIENT, SECRET))
    assert not server.asked
    first = keeping.wait()
    assert [keeping.wait() for _ in range(3)] == [first] * 3
    assert len(server.asked) == 1


@pytest.mark.usefixtures("renewed_at_once")
def test_a_token_is_renewed_before_it_expires(server: TokenServer) -> None:
    keeping = keeper(TokenEndpoint(server.url, CLIENT, SECRET))
    first = keeping.wait()
    eventually(lambda: keeping.current() not in (None, first))


@pytest.mark.usefixtures("asked_again_at_once")
def test_an_endpoint_that_comes_back_is_asked_again(server: TokenServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server.answer = lambda: Answer(503, b"")
    keeping = keeper(TokenEndpoint(server.url, CLIENT, SECRET))
    assert keeping.current() is None
    eventually(lambda: len(server.asked) > 1)
    with pytest.raises(StartError, match=r"no token to log in to Kafka: the token endpoint .* answered HTTP 503"):
        keeping.wait(0.0)
    server.answer = granted
    assert keeping.wait().seconds_left > 3000
    assert "there is no token, asked again in" in caplog.text
    assert "gives tokens again" in caplog.text


@pytest.mark.usefixtures("asked_again_at_once")
def test_a_refusal_is_told_at_once_and_asked_about_again(server: TokenServer) -> None:
    server.answer = lambda: Answer(401, b"{}")
    keeping = keeper(TokenEndpoint(server.url, CLIENT, SECRET))
    with pytest.raises(StartError, match="HTTP 401"):
        keeping.wait(600)
    server.answer = granted
    eventually(lambda: keeping.current() is not None)


@pytest.mark.usefixtures("renewed_at_once")
def test_the_old_token_serves_while_no_new_one_is_given(caplog: pytest.LogCaptureFixture) -> None:
    tokens = iter([AccessToken("first", expires_in=3600)])
    keeping = keeper(lambda: next(tokens))
    assert keeping.wait().value == "first"
    eventually(lambda: "the token there is holds for" in caplog.text)
    assert "raised StopIteration at " in caplog.text


def ask() -> AccessToken:
    return AccessToken("plain", expires_in=60)


async def ask_async() -> AccessToken:
    await asyncio.sleep(0)
    return AccessToken("async", expires_at=time.time() + 60)


class Credential:
    """Holds something that belongs to one event loop, as clients of services do."""

    def __init__(self) -> None:
        self.loops: set[object] = set()

    async def __call__(self) -> AccessToken:
        self.loops.add(asyncio.get_running_loop())
        return AccessToken("mine", expires_in=3600)


@pytest.mark.usefixtures("renewed_at_once")
def test_a_function_may_be_sync_or_async() -> None:
    assert keeper(ask).wait().value == "plain"
    assert keeper(ask_async).wait().value == "async"
    assert keeper(lambda: ask_async()).wait().value == "async"
    credential = Credential()
    keeping = keeper(credential)
    first = keeping.wait()
    eventually(lambda: keeping.current() not in (None, first))
    assert len(credential.loops) == 1


async def ask_for_ever() -> AccessToken:
    await asyncio.sleep(3600)
    raise AssertionError


def raising() -> AccessToken:
    raise ValueError(TOKEN)


def milliseconds() -> AccessToken:
    return AccessToken(TOKEN, expires_at=time.time() * 1000 + 900_000)


async def leaving() -> AccessToken:
    raise SystemExit(TOKEN)


WRONG: dict[str, tuple[Any, str]] = {
    "raises": (raising, r"OAuthBearer\(token=...\) raised ValueError at .*test_oauth.py:\d+"),
    "leaves": (leaving, "raised SystemExit at "),
    "a text": (lambda: TOKEN, r"returned a value of type str; it must return an AccessToken"),
    "a pair": (lambda: (TOKEN, 60), "returned a value of type tuple"),
    "expired": (lambda: AccessToken(TOKEN, expires_in=-1), "returned a token that has expired already"),
    "milliseconds": (milliseconds, "a time in milliseconds; give seconds"),
    "hangs, async": (ask_for_ever, r"did not return within 0\.05 s"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_function_without_a_token_is_one_line(case: str, caplog: pytest.LogCaptureFixture) -> None:
    function, words = WRONG[case]
    keeping = keeper(function, 0.05 if case.startswith("hangs") else 10.0)
    assert keeping.current() is None
    eventually(lambda: "cannot log in" in caplog.text)
    with pytest.raises(StartError, match=words) as error:
        keeping.wait(0.0)
    assert "\n" not in str(error.value)
    assert TOKEN not in caplog.text + "".join(traceback.format_exception(error.value))


@pytest.mark.usefixtures("asked_again_at_once")
@pytest.mark.parametrize("kind", ["sync", "async that blocks"])
def test_a_function_that_hangs_is_called_again_and_never_without_end(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(token_caller, "MOST_HANGING", 2)
    monkeypatch.setattr(token_caller, "_AWAKE", 0.05)
    gate, calls = threading.Event(), []

    def hang() -> AccessToken:
        calls.append(1)
        gate.wait(60)
        return ask()

    async def hang_async() -> AccessToken:
        return hang()

    keeping = keeper(hang if kind == "sync" else hang_async, 0.05)
    before = time.monotonic()
    assert keeping.current() is None
    assert time.monotonic() - before < 30  # it did not wait for the function
    eventually(lambda: "2 calls of the function given as OAuthBearer(token=...) have not returned" in caplog.text)
    assert len(calls) == 2
    gate.set()
    assert keeping.wait(60).value == "plain"


def test_the_threads_end_with_the_keeper() -> None:
    def ours() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name.startswith("consumerkit-token")]

    gc.collect()
    eventually(lambda: not ours())
    keeping = keeper(ask)
    keeping.wait()
    assert len(ours()) == 2
    del keeping
    gc.collect()
    eventually(lambda: not ours())


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "no url": (lambda: TokenEndpoint("login", "a", "b"), "is not a URL; give https://host/path"),
    "a port": (lambda: TokenEndpoint("https://login:port/t", "a", "b"), "is not a URL"),
    "credentials": (lambda: TokenEndpoint("https://a:b@login/t", "a", "b"), "holds credentials"),
    "no secret": (lambda: TokenEndpoint("https://login/t", "a", ""), r"client_secret=...\) is empty"),
    "ways": (lambda: TokenEndpoint("https://l/t", "a", "b", authentication="header"), "'basic', 'post'"),  # type: ignore[arg-type]
    "own parameter": (lambda: TokenEndpoint("https://l/t", "a", "b", parameters={"scope": "x"}), "leave it out"),
    "no ca": (
        lambda: OAuthBearer(TokenEndpoint("https://l/t", "a", "b", ca_file="/nope.pem")).keeper(),
        "No such file",
    ),
    "no function": (lambda: OAuthBearer("secret-token"), "a function that returns a token, not str"),  # type: ignore[arg-type]
    "extension": (lambda: OAuthBearer(ask, extensions={"auth": "x"}), "a name is made of letters"),
    "extension's value": (lambda: OAuthBearer(ask, extensions={"a": "\x01"}), "'a' is not text"),
    "timeout": (lambda: OAuthBearer(ask, timeout=0), "takes seconds"),
    "tls": (lambda: OAuthBearer(ask, tls=True), r"takes Tls\(...\) or None"),  # type: ignore[arg-type]
    "both times": (lambda: AccessToken("a", expires_in=1, expires_at=5), "one of them"),
    "no time": (lambda: AccessToken("a"), "one of them"),
    "a time in words": (lambda: AccessToken("a", expires_in="5"), "numbers of seconds"),  # type: ignore[arg-type]
    "an open secret": (
        lambda: Kafka("localhost:9092", security=OAuthBearer(TokenEndpoint("http://login/t?k=v", "a", "b"))),
        r"url='http://login/t'\) would be sent the client's secret without encryption; .*allow_insecure",
    ),
    "an open token": (lambda: Kafka("b:9092", security=OAuthBearer(ask, tls=None)), "without encryption"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_refused_where_it_is_written(case: str) -> None:
    make, words = MISTAKES[case]
    with pytest.raises(ConfigurationError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
    assert "secret-token" not in str(error.value)


def test_no_representation_shows_a_secret() -> None:
    endpoint = TokenEndpoint("https://login/t?k=v", "shop", SECRET, parameters={"key": TOKEN})
    shown = repr(Kafka("b:9093", security=OAuthBearer(endpoint))) + repr(AccessToken(TOKEN, expires_in=5))
    assert "OAuthBearer(token=TokenEndpoint(url='https://login/t', client_id='shop'" in shown
    assert SECRET not in shown
    assert TOKEN not in shown
