"""librdkafka's lines are logged once a minute for each kind, with their number."""

import logging

import pytest
from confluent_kafka import Producer

from consumerkit.observability.repetitions import PAUSE, Repetitions
from consumerkit.transports.confluent import client_log


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def log() -> tuple[logging.Logger, Clock]:
    clock, logger = Clock(), logging.getLogger("tests.client_log")
    logger.filters = [Repetitions(clock=clock)]
    return logger, clock


def refused(port: int, after: int) -> str:
    return f"kafka:{port}/bootstrap: Connect failed: Connection refused (after {after}ms in state CONNECT)"


def test_a_line_comes_once_a_minute_with_the_number_left_out(
    log: tuple[logging.Logger, Clock], caplog: pytest.LogCaptureFixture
) -> None:
    logger, clock = log
    for after in range(50):
        logger.error("%s [%s] %s", "FAIL", "consumer-1", refused(9092, after))
    logger.error("%s [%s] %s", "FAIL", "consumer-1", refused(9093, 0))
    assert caplog.messages == [f"FAIL [consumer-1] {refused(port, 0)}" for port in (9092, 9093)]
    clock.now += PAUSE
    logger.error("%s [%s] %s", "FAIL", "consumer-1", refused(9092, 7))
    assert caplog.messages[2:] == [f"FAIL [consumer-1] {refused(9092, 7)}; 49 more lines like it since the last one"]


def test_only_kinds_that_may_come_again_are_remembered(log: tuple[logging.Logger, Clock]) -> None:
    logger, clock = log
    (filter_,) = logger.filters
    assert isinstance(filter_, Repetitions)
    for port in range(1_000):
        clock.now += 1
        logger.error(refused(port, 0))
    assert len(filter_._seen) <= 200


def test_only_lines_of_the_named_logger_are_left_out() -> None:
    seen = Repetitions("aiokafka")
    for name, expected in {"aiokafka.conn": [True, False], "shop": [True, True]}.items():
        line = logging.LogRecord(name, logging.ERROR, "", 0, "no connection", (), None)
        assert [seen.filter(line) for _ in range(2)] == expected


def test_the_client_logs_through_it(caplog: pytest.LogCaptureFixture) -> None:
    producer = Producer(
        {
            "bootstrap.servers": "127.0.0.1:1",
            "logger": client_log.log,
            "reconnect.backoff.ms": 20,
            "reconnect.backoff.max.ms": 50,
        }
    )
    for _ in range(20):
        producer.poll(0.1)
    lines = [line for line in caplog.messages if "Connection refused" in line]
    assert len(lines) == 1
