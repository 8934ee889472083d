"""Kafka through confluent-kafka, which wraps librdkafka."""
