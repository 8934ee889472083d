"""A static member's name belongs to one process."""

import os

import pytest

from consumerkit.errors import ConfigurationError
from consumerkit.transports.kafka import Client, Kafka
from consumerkit.worker import checks


@pytest.mark.parametrize("client, option", [("confluent", "group.instance.id"), ("aiokafka", "group_instance_id")])
def test_several_processes_share_no_static_members_name(client: Client, option: str) -> None:
    def named(name: str) -> str | None:
        return Kafka("localhost:9092", transport=client, options={option: name}).instance_id

    with pytest.raises(ConfigurationError, match=r"each of 2 worker processes.*put os.getpid\(\) into it"):
        checks.instance(named("shop"), 2)
    checks.instance(named(f"shop-{os.getpid()}"), 2)
    checks.instance(named("shop"), 1)
    checks.instance(Kafka("localhost:9092", transport=client).instance_id, 2)
