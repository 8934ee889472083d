"""Access to a broker: two Kafka clients and one in memory, behind the protocol in `base`."""
