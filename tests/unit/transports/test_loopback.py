"""A bootstrap server on this machine does not lead a plain connection to another one."""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from consumerkit.errors import StartError
from consumerkit.transports.confluent import admin
from consumerkit.transports.kafka import Kafka, Sasl
from consumerkit.transports.loopback import check_advertised
from consumerkit.transports.tls import Tls

LOCAL = "localhost:9092"
FAR = "broker.example.org"


@pytest.fixture
def advertised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster with one topic, whose second broker is elsewhere."""
    brokers = {0: SimpleNamespace(host="127.0.0.1", port=1), 1: SimpleNamespace(host=FAR, port=1)}
    topics = {"t": SimpleNamespace(partitions={0: None})}
    found = SimpleNamespace(brokers=brokers, topics=topics, cluster_id="mockCluster")
    monkeypatch.setattr(admin._Session, "metadata", lambda _: found)
    # Both are known and reached, whatever the network.
    monkeypatch.setattr(admin, "unresolvable", lambda _: [])
    monkeypatch.setattr(admin, "unreachable", lambda _: [])


@pytest.mark.parametrize("client", ["confluent", "aiokafka"])
@pytest.mark.parametrize("security", [None, Sasl("PLAIN", "shop", "secret", tls=None), Tls(verify=False)])
async def test_a_broker_elsewhere_is_refused_where_the_connection_is_plain_or_unverified(
    advertised: None, client: Any, security: Any
) -> None:
    with pytest.raises(StartError, match=f"advertises a broker at '{FAR}'.*allow_insecure"):
        await Kafka(LOCAL, transport=client, security=security).connect().topics(["t"])


@pytest.mark.parametrize("client", ["confluent", "aiokafka"])
@pytest.mark.parametrize("ask", ["no topic", "keeps", "create"])
async def test_it_is_refused_whatever_is_asked(advertised: None, client: Any, ask: str) -> None:
    transport = Kafka(LOCAL, transport=client).connect()
    questions: dict[str, Callable[[], Awaitable[object]]] = {
        "no topic": lambda: transport.topics([]),
        "keeps": lambda: transport.keeps(["t"]),
        "create": lambda: transport.create_topics({"t": 1}),
    }
    with pytest.raises(StartError, match=f"advertises a broker at '{FAR}'"):
        await questions[ask]()


@pytest.mark.parametrize("client", ["confluent", "aiokafka"])
async def test_it_is_used_where_that_is_allowed_or_encrypted(advertised: None, client: Any) -> None:
    for kafka in (
        Kafka(LOCAL, transport=client, allow_insecure=True),
        Kafka(LOCAL, transport=client, security=Sasl("PLAIN", "shop", "secret")),
    ):
        assert (await kafka.connect().topics(["t"]))["t"].partitions == 1


def test_brokers_of_this_machine_pass() -> None:
    check_advertised(["localhost", "127.0.0.7", "::1", "a.localhost"])
