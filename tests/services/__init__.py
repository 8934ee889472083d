"""A real Kafka and a real PostgreSQL for tests, found or started here; no container engine is needed.

`python -m tests.services` runs a pair of them in the foreground for other test runs to use.
"""

from tests.services.kafka import KafkaServer
from tests.services.postgres import PostgresServer
from tests.services.process import NotOurs, ServiceError

__all__ = ["KafkaServer", "NotOurs", "PostgresServer", "ServiceError"]
