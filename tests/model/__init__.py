"""A small executable model of the protocol between workers, the database and Kafka."""
