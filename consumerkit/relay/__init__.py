"""The relay: sends what is in the outbox to Kafka, and removes it once the broker has it."""

from consumerkit.relay.relay import Relay

__all__ = ["Relay"]
