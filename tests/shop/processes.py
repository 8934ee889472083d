"""The processes of the shop: started, killed, and started again."""

import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Part:
    """One process, and those that stood at its place before.

    Attributes:
        name: What it is called in the report: `web`, `worker` or `outside`.
        arguments: Of `tests.shop.parts`.
        environment: What it finds in its environment.
        log: What it says goes there.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.shop.parts", *self.arguments],
                env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip

    def kill(self) -> bool:
        """Kill it with SIGKILL; return whether it had been running."""
        assert self.process is not None
        self.process.kill()
        return self.process.wait() == -signal.SIGKILL


@dataclass
class Parts:
    """All processes. One that ends without a kill of ours has failed.

    Attributes:
        parts: The processes.
        seed: Which of them are killed.
        killed: How many of each kind were killed.
        wanted: Failpoints by which some kill themselves: `{exit status: how many}` may be met.
    """

    parts: Sequence[Part]
    seed: int
    killed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def start(self) -> None:
        """Start all."""
        for part in self.parts:
            part.start()

    def kill_one(self) -> str:
        """Kill one of them, and start it again; return its name."""
        part = self._random.choice(self.parts)
        assert part.kill(), f"{part.name} had ended before it was killed; see {part.log}"
        self.killed[part.name] += 1
        part.start()
        return part.name

    def restart_killed(self) -> None:
        """Start those again that a failpoint has killed; any other end is a failure."""
        for part in self.parts:
            assert part.process is not None
            status = part.process.poll()
            if status is None:
                continue
            assert status == -signal.SIGKILL, f"{part.name} ended with {status}; see {part.log}"
            self.killed[part.name] += 1
            part.environment = {k: v for k, v in part.environment.items() if k != "CONSUMERKIT_FAILPOINT"}
            part.start()

    def end(self) -> None:
        """Kill all that are left."""
        for part in self.parts:
            if part.process is not None:
                part.kill()
