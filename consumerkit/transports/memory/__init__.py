"""A broker in memory, for tests and examples."""

from consumerkit.transports.memory.broker import Memory, MemoryBroker, MemoryProducer
from consumerkit.transports.memory.producer import Acknowledgement

__all__ = ["Acknowledgement", "Memory", "MemoryBroker", "MemoryProducer"]
