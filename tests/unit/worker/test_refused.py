"""A setting that would silently do nothing is refused where it is written, in one line with the way out."""

from collections.abc import Callable
from typing import Any

import pytest

from consumerkit import ConfigurationError, Context, DeadLetter, Handler, Kafka, Tls, Worker, header
from consumerkit.handlers.codecs import Json
from consumerkit.handlers.context import Publisher
from consumerkit.handlers.foreign_names import MEANT, SET_ELSEWHERE
from consumerkit.handlers.handler import AnyHandler
from consumerkit.transports.memory import Memory, MemoryBroker


def handler(**declared: Any) -> Handler[bytes]:
    class Greet(Handler[bytes]):
        name = "greet"
        topic = "greetings"
        message_id = header("id")

        async def handle(self, event: bytes, context: Context) -> None: ...

    for name, value in declared.items():
        setattr(Greet, name, value)
    return Greet()


def worker(*handlers: AnyHandler, kafka: Any = None) -> Worker:
    return Worker(database="sqlite:///unused.sqlite", kafka=kafka or Memory(MemoryBroker()), handlers=handlers)


def publishing(**given: Any) -> None:
    Publisher(Json().encode).publish(**{"topic": "out", "value": b"1", **given})


DECLARED = [
    "max_attempts", "timeout", "batch", "workers", "middlewares", "middleware", "retries", "max_retries", "dlq",
    "dead_letter_topic", "consumer_group", "group_id", "auto_offset_reset", "decoder", "ack_policy", "auto_commit",
    "autoretry_for", "retry_backoff", "default_retry_delay", "acks_late", "time_limit", "soft_time_limit",
    "rate_limit", "max_workers", "serializer",
]  # fmt: skip
# `idempotency_key` may be the user's own where `message_id` is declared, as it is here.
NAMES = sorted({*DECLARED, *SET_ELSEWHERE, *(name for name, meant in MEANT.items() if meant != "message_id")})


@pytest.mark.parametrize("name", NAMES)
def test_what_other_frameworks_let_one_declare_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^Greet \(name 'greet'\): {name} is no declaration") as caught:
        worker(handler(**{name: 3}))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(("If not, rename it", "If it is yours, rename it"))


REFUSED: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: DeadLetter(""), ConfigurationError, r"DeadLetter\(''\): this is not the name of a topic"),
    (worker, ConfigurationError, r"handlers=.* give a list of at least one"),
    (lambda: worker(handler(), handler()), ConfigurationError, "greet"),
    (
        lambda: worker(handler(), kafka=Kafka("kafka:9093", security=Tls(ca_file="/nope"))),
        ConfigurationError,
        r"Tls\(ca_file=.*\): No such file",
    ),
    (lambda: publishing(key=5), TypeError, "key"),
    (lambda: publishing(id=5), TypeError, "id"),
    (lambda: publishing(headers={"a": 5}), TypeError, "a"),
    (lambda: publishing(topic="no topic"), ValueError, "topic"),
]


@pytest.mark.parametrize("write, error, said", REFUSED, ids=[said for _, _, said in REFUSED])
def test_a_value_that_does_nothing_is_refused(write: Callable[[], object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        write()
    assert "\n" not in str(caught.value)
