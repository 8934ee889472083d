"""TLS, passwords and tokens against a real broker, with both client libraries; and that no secret gets out."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal
from uuid import uuid4

import pytest

from consumerkit.errors import ConfigurationError, StartError, Unavailable
from consumerkit.transports import token_keeper
from consumerkit.transports.base import Record, Subscription, Transport
from consumerkit.transports.confluent import admin
from consumerkit.transports.kafka import AccessToken, Kafka, OAuthBearer, Sasl, Tls, TokenEndpoint
from tests.contracts.member import Member, Recorder, until
from tests.services.secure import INSIDE_NAME, PASSWORD, USER, SecureKafka
from tests.services.token_endpoint import CLIENT, SECRET, Answer, TokenServer, granted, new_token

WRONG = "wrong-horse-battery"

Client = Literal["confluent", "aiokafka"]


@pytest.fixture(scope="module")
def secure() -> Iterator[SecureKafka]:
    with SecureKafka() as server:
        yield server


@pytest.fixture(params=["confluent", "aiokafka"])
def client(request: pytest.FixtureRequest) -> Client:
    chosen: Client = request.param
    return chosen


@pytest.fixture
def topic(secure: SecureKafka) -> str:
    name = f"secure-{uuid4().hex[:8]}"
    secure.server.create_topic(name)
    return name


def tls(secure: SecureKafka) -> Tls:
    return Tls(ca_file=secure.certificates / "ca.pem")


async def round_trip(transport: Transport, topic: str) -> None:
    """Describe the topic, send a record, read it and commit: every connection a worker makes."""
    assert (await transport.topics([topic]))[topic].partitions == 1
    producer = transport.producer()
    await producer.start()
    try:
        assert await producer.send([Record(topic, b"key", b"value")]) == [None]
    finally:
        await producer.stop()
    async with Member(transport.consumer(Subscription(group=topic, topics=(topic,)))) as member:
        (message,) = await member.reads(1)
        await member.commit()
    assert message.value == b"value"


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_password_over_tls(
    secure: SecureKafka,
    topic: str,
    client: Client,
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    security = Sasl(mechanism, USER, lambda: PASSWORD, tls(secure))
    await round_trip(Kafka(secure.sasl_ssl, security=security, transport=client).connect(), topic)
    assert PASSWORD not in caplog.text
    assert PASSWORD not in "".join(capfd.readouterr())


async def test_a_password_in_the_clear_on_this_machine(secure: SecureKafka, topic: str, client: Client) -> None:
    security = Sasl("SCRAM-SHA-256", USER, PASSWORD, tls=None)
    await round_trip(Kafka(secure.sasl_plaintext, security=security, transport=client).connect(), topic)


async def test_a_client_certificate(secure: SecureKafka, topic: str, client: Client) -> None:
    at = secure.certificates
    mutual = Tls(at / "ca.pem", at / "client.pem", at / "client.key", key_password=PASSWORD)
    await round_trip(Kafka(secure.mutual, security=mutual, transport=client).connect(), topic)


async def test_a_broker_that_is_not_verified(secure: SecureKafka, topic: str, client: Client) -> None:
    security = Sasl("PLAIN", USER, PASSWORD, Tls(verify=False))
    await round_trip(Kafka(secure.sasl_ssl, security=security, transport=client).connect(), topic)


def password(mechanism: Literal["PLAIN", "SCRAM-SHA-512"], *, encrypted: bool) -> Callable[[SecureKafka], Kafka]:
    def make(secure: SecureKafka) -> Kafka:
        server = secure.sasl_ssl if encrypted else secure.sasl_plaintext
        return Kafka(server, security=Sasl(mechanism, USER, WRONG, tls(secure) if encrypted else None))

    return make


REFUSED: dict[str, Callable[[SecureKafka], Kafka]] = {
    "a wrong password, PLAIN": password("PLAIN", encrypted=True),
    "a wrong password, SCRAM": password("SCRAM-SHA-512", encrypted=True),
    "a wrong password, PLAIN in the clear": password("PLAIN", encrypted=False),
    "an authority without trust": lambda secure: Kafka(
        secure.sasl_ssl, security=Sasl("PLAIN", USER, WRONG, Tls(ca_file=secure.certificates / "other-ca.pem"))
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refused_connection_is_one_line_without_the_secret(
    secure: SecureKafka,
    topic: str,
    client: Client,
    case: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    given = REFUSED[case](secure)
    transport = Kafka(given.bootstrap, security=given.security, transport=client).connect()
    with pytest.raises(StartError) as error:
        await transport.topics([topic])
    with pytest.raises(StartError) as start_error:
        await transport.consumer(Subscription(group=topic, topics=(topic,))).start(Recorder())
    errors = [error.value, start_error.value]
    producer = transport.producer()
    try:
        await producer.start()
    except StartError as refused:  # librdkafka's producer connects in the background, and tells at the first send
        errors.append(refused)
    finally:
        await producer.stop()
    for refusal in errors:
        assert "\n" not in str(refusal)
        assert re.search("authentication|certificate", str(refusal), re.IGNORECASE)
        assert WRONG not in "".join(traceback.format_exception(refusal))
    assert WRONG not in caplog.text + "".join(capfd.readouterr()) + repr(transport)


async def test_a_wrong_key_password_is_found_before_anything_is_sent(secure: SecureKafka, client: Client) -> None:
    at = secure.certificates
    mutual = Tls(at / "ca.pem", at / "client.pem", at / "client.key", key_password=WRONG)
    with pytest.raises(ConfigurationError, match=r"client\.key") as error:
        Kafka(secure.mutual, security=mutual, transport=client).connect()
    assert WRONG not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("allow_insecure", [False, True])
async def test_an_advertised_name_that_is_unknown_here_is_named_with_the_way_out(
    secure: SecureKafka, topic: str, client: Client, allow_insecure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bootstrap server answers, as `localhost:9092` does for a broker in Compose that calls itself `kafka`."""

    def give_up(session: admin._Session, why: str) -> None:
        raise StartError(f"{session.place}: {why}")

    monkeypatch.setattr(admin._Session, "check_reached", give_up)
    transport = Kafka(secure.inside, transport=client, allow_insecure=allow_insecure).connect()
    address = f"{INSIDE_NAME}:{secure.inside.rpartition(':')[2]}"
    words = rf"^Kafka at {secure.inside}: it answers and advertises {address}, which this machine cannot resolve \("
    for start in (
        transport.topics([topic]),
        transport.consumer(Subscription(group=topic, topics=(topic,))).start(Recorder()),
    ):
        with pytest.raises(StartError, match=words) as error:
            await start
        assert "advertised.listeners can be reached from here" in str(error.value)
        assert "\n" not in str(error.value)


# -- tokens


@pytest.fixture(scope="module")
def tokens() -> Iterator[TokenServer]:
    with TokenServer() as server:
        yield server


async def test_a_token_from_an_endpoint(
    secure: SecureKafka,
    topic: str,
    client: Client,
    tokens: TokenServer,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    given: list[str] = []
    tokens.answer, before = lambda: _noted(granted(), given), len(tokens.asked)
    security = OAuthBearer(TokenEndpoint(tokens.url, CLIENT, SECRET), tls=tls(secure))
    transport = Kafka(secure.sasl_ssl, security=security, transport=client).connect()
    await round_trip(transport, topic)
    assert len(tokens.asked) == before + 1  # one for all connections
    shown = caplog.text + "".join(capfd.readouterr()) + repr(transport)
    assert len(given) == 1
    assert given[0] not in shown
    assert SECRET not in shown


async def committed(member: Member) -> None:
    """Commit as an engine does, again until it succeeds: on a busy machine a short token expires before its use."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await member.commit()
            except Unavailable:
                await asyncio.sleep(0.1)


async def test_a_token_from_a_function_is_renewed_while_a_consumer_reads(
    secure: SecureKafka, topic: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker ends a connection with its token, so what is read and committed later came by a newer one."""
    monkeypatch.setattr(token_keeper, "RENEWED_AFTER", 0.5)
    given: list[float] = []

    async def ask() -> AccessToken:
        given.append(3.0)
        return AccessToken(new_token(3.0), expires_in=3.0)

    def newer(than: int) -> bool:
        return len(given) > than

    security = OAuthBearer(ask, tls=None)
    transport = Kafka(secure.sasl_plaintext, security=security, transport=client).connect()
    producer = transport.producer()
    await producer.start()
    try:
        async with Member(transport.consumer(Subscription(group=topic, topics=(topic,)))) as member:
            for number in range(4):
                seen = len(given)
                assert await producer.send([Record(topic, None, str(number).encode())]) == [None]
                assert (await member.reads(number + 1))[-1].value == str(number).encode()
                await committed(member)
                await until(partial(newer, seen), "a newer token")
    finally:
        await producer.stop()


async def test_without_a_token_the_start_is_refused_in_one_line(
    secure: SecureKafka, topic: str, client: Client, tokens: TokenServer, caplog: pytest.LogCaptureFixture
) -> None:
    tokens.answer = lambda: Answer(401, b'{"error": "invalid_client"}')
    security = OAuthBearer(TokenEndpoint(tokens.url, CLIENT, WRONG), tls=None)
    await _is_refused(Kafka(secure.sasl_plaintext, security=security, transport=client), topic, "invalid_client")
    assert WRONG not in caplog.text


async def test_a_token_that_the_broker_does_not_take_is_refused_in_one_line(
    secure: SecureKafka, topic: str, client: Client
) -> None:
    security = OAuthBearer(lambda: AccessToken(WRONG, expires_in=60), tls=None)
    await _is_refused(
        Kafka(secure.sasl_plaintext, security=security, transport=client), topic, "invalid_token|SASL auth"
    )


async def _is_refused(kafka: Kafka, topic: str, words: str) -> None:
    transport = kafka.connect()
    producer = transport.producer()
    starts = [
        transport.topics([topic]),
        transport.consumer(Subscription(group=topic, topics=(topic,))).start(Recorder()),
        transport.reader(topic).start(),
    ]
    if kafka.transport == "aiokafka":  # librdkafka's producer connects in the background
        starts.append(producer.start())
    for start in starts:
        with pytest.raises(StartError, match=words) as error:
            await start
        assert "\n" not in str(error.value)
        assert WRONG not in "".join(traceback.format_exception(error.value))
    await producer.stop()


def _noted(answer: Answer, given: list[str]) -> Answer:
    given.append(json.loads(answer.body)["access_token"])
    return answer
