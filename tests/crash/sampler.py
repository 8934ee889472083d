"""Checks, while workers run and die, that no committed offset ever passes an unfinished message."""

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import psycopg
from confluent_kafka import KafkaException

from tests.crash.workload import PARTITIONS, Log
from tests.services.offsets import CommittedOffsets

INTERVAL = 0.25


@dataclass
class Watch:
    """What was seen so far."""

    samples: int = 0
    advances: int = 0
    finished: set[str] = field(default_factory=set)
    committed: list[int] = field(default_factory=lambda: [0] * PARTITIONS)
    problems: list[str] = field(default_factory=list)


class Sampler(threading.Thread):
    """Samples the group's committed offsets at the broker; a context manager.

    At each sample the offsets are read first and the database after them, so that what was finished in between can
    hide nothing: every message below a committed offset must be found finished.
    """

    def __init__(self, bootstrap: str, group: str, topic: str, dsn: str, log: Log) -> None:
        super().__init__(name="sampler", daemon=True)
        self.watch = Watch()
        self._log = log
        self._offsets = CommittedOffsets({"bootstrap.servers": bootstrap}, group, topic)
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._ending = threading.Event()
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self.join()
        self._connection.close()
        self._offsets.__exit__(kind, error, trace)

    def run(self) -> None:
        try:
            while not self._ending.wait(INTERVAL):
                self.sample()
        except BaseException as error:
            self._error = error

    @property
    def unfinished(self) -> int:
        """How many of the IDs sent had no outcome at the last sample."""
        self.raise_error()
        return len(self._log.payments) - len(self.watch.finished)

    @property
    def lag(self) -> int:
        """How many records stand above the committed offsets of the last sample."""
        self.raise_error()
        return self._log.size - sum(self.watch.committed)

    def raise_error(self) -> None:
        """Raise the sampler's error: a sampler that has failed proves nothing."""
        if self._error is not None:
            raise RuntimeError(f"the sampler ended: {self._error!r}") from self._error

    def sample(self) -> None:
        """Take one sample."""
        watch = self.watch
        with self._log.lock:
            committed = self._committed()
            # A parked message has no outcome yet, but the database has it, so the offset may pass it. It may get its
            # outcome between two statements, so the parked messages are read first.
            parked = self._parked()
            finished = self._finished()
            kept = finished | parked
            for partition, offset in enumerate(committed):
                before = watch.committed[partition]
                if offset < before:
                    watch.problems.append(f"the offset of partition {partition} went back from {before} to {offset}")
                for place in range(before, offset):
                    if self._log.ids[partition][place] not in kept:
                        watch.problems.append(f"offset {offset} of partition {partition} passed {place}, unfinished")
                watch.advances += offset > before
        watch.committed = committed
        watch.finished = finished
        watch.samples += 1

    def _committed(self) -> list[int]:
        deadline = time.monotonic() + 120
        while True:
            try:
                found = self._offsets.read(range(PARTITIONS))
            except KafkaException:  # the coordinator may be loading the group
                if time.monotonic() > deadline:
                    raise
                continue
            return [max(0, found[number]) for number in range(PARTITIONS)]

    def _finished(self) -> set[str]:
        rows = self._connection.execute(
            "SELECT message_id FROM effects UNION SELECT message_id FROM consumerkit_dead_letters"
        )
        return {message_id for (message_id,) in rows}

    def _parked(self) -> set[str]:
        return {row[0] for row in self._connection.execute("SELECT message_id FROM consumerkit_parked_messages")}
