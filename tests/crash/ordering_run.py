"""Runs the worker of the tests of order in processes; what they left is judged by `ordering_verdict`."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.crash.ordering_app import ATTEMPTS, TABLES, Settings
from tests.integration.kafka_stage import Given, KafkaStage, payment
from tests.lines import whole_lines
from tests.services.process import freeze, wait_until

ROOT = Path(__file__).parents[2]


@dataclass
class Crew:
    """The worker processes of one test; a context manager that leaves none behind."""

    stage: KafkaStage
    settings: Settings
    directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Self:
        asyncio.run(self.stage.create_tables())
        self.stage.execute(*TABLES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    @property
    def fired(self) -> Counter[str]:
        """How often each failpoint fired."""
        return Counter(line.split()[0] for line in whole_lines(self.directory / "fired.log"))

    def start(self, failpoint: str = "") -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            **self.settings.environment(),
            "CONSUMERKIT_FAILPOINT": failpoint,
            "CONSUMERKIT_FAILPOINT_LOG": str(self.directory / "fired.log"),
        }
        with (self.directory / f"worker-{len(self.processes):02d}.log").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.ordering_app"],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def leave(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM, and its end."""
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, self.last_words(process)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def freeze(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`: a zombie that does not know."""
        if process.poll() is None:
            freeze(process.pid)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    def last_words(self, process: subprocess.Popen[bytes]) -> str:
        log = self.directory / f"worker-{self.processes.index(process):02d}.log"
        return log.read_text(errors="replace")[-500:]

    def told(self, what: str, pid: int | None = None) -> int:
        """How often a process announced something."""
        where = f"what = '{what}'" + (f" AND pid = {pid}" if pid is not None else "")
        return int(self.stage.rows(f"SELECT count(*) AS n FROM told WHERE {where}")[0]["n"])

    def until(self, condition: str, what: str, within: float = 120.0) -> None:
        """Wait until a query's first column is true, or more than zero."""
        wait_until(
            lambda: bool(next(iter(self.stage.rows(condition)[0].values()))), within=within, what=what, every=0.2
        )

    def until_owning(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until a process has taken a partition."""
        taken = f"SELECT count(*) > 0 FROM told WHERE what = 'PartitionTaken' AND pid = {process.pid}"
        self.until(taken, f"partitions of process {process.pid}")

    def until_finished(self, sent: Sequence[Given], within: float = 400.0) -> None:
        """Wait until each message has its effect or its dead letter."""
        dead = sum(_times(one) >= ATTEMPTS for one in sent)
        self.until(
            f"SELECT (SELECT count(*) FROM effects) >= {len(sent) - dead} "
            f"AND (SELECT count(*) FROM consumerkit_dead_letters) >= {dead} "
            "AND (SELECT count(*) FROM consumerkit_outbox_messages) = 0",
            f"{len(sent) - dead} effects and {dead} dead letters",
            within,
        )


def _times(one: Given) -> int:
    """How often a payment fails, at most."""
    what, _, times = json.loads(one.value or b"{}")["kind"].partition(":")
    return ATTEMPTS if what == "forever" else int(times or 0)


def expected_retries(sent: Sequence[Given]) -> int:
    """How many attempts follow after others."""
    return sum(min(ATTEMPTS - 1, _times(one)) for one in sent)


def workload(total: int, keys: int, partitions: int, seed: object = 0) -> list[Given]:
    """3 % fail two to five times, 0.5 % for ever; spread at random, the same for each seed."""
    chance = random.Random(f"{seed}")
    kinds = ["forever"] * (total // 200) + [f"fail:{2 + n % 4}" for n in range(total * 3 // 100)]
    kinds += ["ok"] * (total - len(kinds))
    chance.shuffle(kinds)
    chosen = [chance.randrange(keys) for _ in kinds]
    return [
        payment(n, kind=kind, account=f"a-{key:03d}", partition=key % partitions)
        for n, (kind, key) in enumerate(zip(kinds, chosen, strict=True))
    ]
