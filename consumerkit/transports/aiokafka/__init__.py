"""Kafka through aiokafka, a client written in Python for asyncio."""
