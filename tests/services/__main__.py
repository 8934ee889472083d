"""Runs a Kafka and a PostgreSQL until interrupted, for test runs that set the printed variables.

python -m tests.services [--env-file PATH] [--not-durable] [--prepare]
"""

import argparse
import signal
import sys
from pathlib import Path

from tests.services import KafkaServer, PostgresServer, ServiceError, kafka, postgres


def main() -> int:
    """Run until Ctrl-C or SIGTERM; 1 when a server is missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.services", description=__doc__.splitlines()[0])
    parser.add_argument("--env-file", type=Path, help="also write the export lines here; removed at the end")
    parser.add_argument("--not-durable", action="store_true", help="no fsync in PostgreSQL: never for benchmarks")
    parser.add_argument("--prepare", action="store_true", help="only check what is needed, and bring what is missing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        if arguments.prepare:
            KafkaServer.prepare()
            PostgresServer.prepare()
            return 0
        with (
            KafkaServer.start_private(lasting=True) as broker,
            PostgresServer.start_private(durable=not arguments.not_durable) as database,
        ):
            _announce(broker, database, arguments.env_file)
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if arguments.env_file:
            arguments.env_file.unlink(missing_ok=True)
    return 0


def _announce(broker: KafkaServer, database: PostgresServer, env_file: Path | None) -> None:
    lines = [
        f"export {kafka.VARIABLE}={broker.bootstrap}",
        f"export {kafka.VERSION_VARIABLE}={broker.version}",
        f"export {postgres.VARIABLE}={database.admin_dsn}",
    ]
    print("\n".join(lines), flush=True)
    print(f"# Kafka {broker.version}, PostgreSQL {database.version}; Ctrl-C stops them", flush=True)
    if env_file:
        fresh = env_file.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.rename(env_file)  # whole or not there: others wait for it


if __name__ == "__main__":
    sys.exit(main())
