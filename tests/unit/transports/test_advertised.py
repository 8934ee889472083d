"""A cluster's advertised addresses are tried once, and reported where they are unreachable."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from consumerkit.errors import StartError
from consumerkit.transports.advertised import Address, in_words, unreachable, unresolvable
from consumerkit.transports.confluent import admin
from tests.services.process import free_port

UNKNOWN = Address("kafka.invalid", 9092)


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_each_address_is_reached_or_told_with_its_reason(open_port: int) -> None:
    there, closed, six = Address("127.0.0.1", open_port), Address("127.0.0.1", free_port()), Address("::1", 1)
    found = unreachable([there, closed, UNKNOWN, six])
    assert [one.address for one in found] == [closed, UNKNOWN, six]
    assert found[0].why == "cannot reach (Connection refused)"
    assert found[1].why.startswith("cannot resolve (")
    assert [one.address for one in unresolvable([there, closed, UNKNOWN])] == [UNKNOWN]
    assert f"advertises {closed}, which this machine cannot reach (Connection refused), nor 2 others;" in in_words(
        found
    )
    assert str(six) == "[::1]:1"
    assert unreachable([]) == []


class Session:
    """A session of an admin client, as far as it is asked here."""

    place = "Kafka at localhost:1"

    def __init__(self, metadata: Any) -> None:
        self.metadata = lambda: metadata
        self.told: list[str] = []

    def check_reached(self, why: str) -> None:
        self.told.append(why)
        if len(self.told) == 3:
            raise StartError(why)


def reach(brokers: list[Address], bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(admin, "_PAUSE", 0.0)
    metadata: Any = SimpleNamespace(brokers={n: SimpleNamespace(**at._asdict()) for n, at in enumerate(brokers)})
    session: Any = Session(metadata)
    admin.TopicAdmin({"bootstrap.servers": bootstrap})._reach(session, metadata)
    return session  # type: ignore[no-any-return]


def test_of_a_cluster_some_may_be_unknown_and_all_may_not(
    open_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = Address("127.0.0.1", open_port)
    assert reach([there], "localhost:1", monkeypatch).told == []
    # A server of the bootstrap has just answered.
    assert reach([UNKNOWN], str(UNKNOWN), monkeypatch).told == []
    assert caplog.text == ""
    assert reach([there, UNKNOWN], "localhost:1", monkeypatch).told == []
    assert "advertises kafka.invalid:9092, which this machine cannot resolve" in caplog.text
    with pytest.raises(StartError, match=r"kafka\.invalid:9092"):
        reach([UNKNOWN], "localhost:1", monkeypatch)
