"""The relay sends the outbox's messages to Kafka, and removes each one once the broker has it."""

from consumerkit.relay.relay import Relay

__all__ = ["Relay"]
