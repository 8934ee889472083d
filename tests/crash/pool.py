"""Worker processes that are started, killed, paused and stopped, and their journal."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.crash.app import Settings
from tests.lines import Lines, whole_lines
from tests.services.process import freeze, wait_until

ROOT = Path(__file__).parents[2]


@dataclass
class Entries:
    """The journal, read so far."""

    assignments: Counter[int] = field(default_factory=Counter)
    groups: list[int] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    stopped: dict[int, bool] = field(default_factory=dict)


class JournalReader:
    """Reads what workers wrote since the last look."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)
        self.entries = Entries()

    def read(self) -> Entries:
        entries = self.entries
        for line in self._lines.added():
            pid, kind, value = json.loads(line)
            if kind == "assigned":
                entries.assignments[pid] += 1
            elif kind == "stopped":
                entries.stopped[pid] = value
            else:
                entries.groups.append(sum(value))
                names = ("processed", "duplicates", "duplicates_of_dead", "dead")
                entries.outcomes.update(dict(zip(names, value, strict=True)))
        return entries


@dataclass
class Member:
    """One worker process."""

    process: subprocess.Popen[bytes]
    failpoint: str
    killed: bool = False
    asked_to_leave: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


class Pool:
    """The worker processes of one run; a context manager that leaves none behind.

    Attributes:
        members: Every process that was ever started.
        problems: Processes that ended in another way than they were made to.
    """

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.members: list[Member] = []
        self.problems: list[str] = []
        self.settings = settings
        self._directory = directory
        self._fired = directory / "failpoints.log"
        self._spare: subprocess.Popen[bytes] | None = None
        self.journal = JournalReader(Path(settings.journal))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in [member.process for member in self.living()] + ([self._spare] if self._spare else []):
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def living(self) -> list[Member]:
        """The processes that run, the oldest first."""
        return [member for member in self.members if member.alive]

    def armed(self) -> list[Member]:
        """Those of them that have been given partitions often enough, so that they may go."""
        seen = self.journal.read().assignments
        return [member for member in self.living() if seen[member.pid] >= self.settings.arm_after]

    def assigned(self, member: Member) -> bool:
        """Whether the member was given partitions."""
        return self.journal.read().assignments[member.pid] > 0

    def start(self, failpoint: str = "") -> Member:
        """Start a process that dies at `failpoint`, once armed."""
        process, self._spare = self._spare or self._spawn(), None
        member = Member(process, failpoint)
        self.members.append(member)
        assert process.stdin is not None
        with process.stdin as line:
            line.write(replace(self.settings, failpoint=failpoint).line())
        self._spare = self._spawn()
        return member

    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start the next process; it waits for its settings."""
        with self._log(len(self.members)).open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.crash.app"],
                cwd=ROOT,
                env={**os.environ, "CONSUMERKIT_FAILPOINT_LOG": str(self._fired)},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _log(self, number: int) -> Path:
        return self._directory / f"worker-{number:02d}.log"

    def kill(self, member: Member) -> None:
        """SIGKILL."""
        member.killed = True
        member.process.send_signal(signal.SIGKILL)
        member.process.wait()

    def leave(self, member: Member, *, within: float = 120.0) -> None:
        """SIGTERM: the member finishes its messages and leaves its group."""
        member.asked_to_leave = True
        member.process.send_signal(signal.SIGTERM)
        try:
            member.process.wait(within)
        except subprocess.TimeoutExpired:
            self.problems.append(f"{self.name(member)} did not end within {within:.0f} s of SIGTERM")
            self.kill(member)

    def freeze(self, member: Member, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`: a zombie that does not know."""
        if member.process.poll() is None:
            freeze(member.process.pid)
        time.sleep(seconds)
        member.process.send_signal(signal.SIGCONT)

    def fired(self) -> Counter[str]:
        """How often each failpoint fired."""
        return Counter(line[0] for line in self._fired_lines())

    def loaded(self) -> list[Member]:
        """The living processes that have not come to their failpoint yet."""
        met = {line[2] for line in self._fired_lines()}
        return [member for member in self.living() if member.failpoint and str(member.pid) not in met]

    def _fired_lines(self) -> list[list[str]]:
        return [line.split() for line in whole_lines(self._fired)]

    def check_ends(self) -> None:
        """Note the processes that ended in another way than they were made to."""
        for member in self.members:
            code = member.process.poll()
            if code is None or member.killed or (member.asked_to_leave and code == 0):
                continue
            if not self._met_failpoint(member):
                self.problems.append(f"{self.name(member)} ended with status {code}: {self._last_line(member)}")

    def name(self, member: Member) -> str:
        """The process as the logs call it."""
        return f"worker-{self.members.index(member):02d} (pid {member.pid}, failpoint {member.failpoint or 'none'})"

    def wait_for_armed(self, within: float) -> bool:
        """Wait for a process that may go."""
        try:
            wait_until(lambda: bool(self.armed()), within=within, what="a process that may go")
        except TimeoutError:
            return False
        return True

    def _met_failpoint(self, member: Member) -> bool:
        """Whether the process came to its failpoint: killed there, or ended by what was raised, or by the watchdog."""
        return str(member.pid) in {line[2] for line in self._fired_lines()}

    def _last_line(self, member: Member) -> str:
        log = self._log(self.members.index(member))
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "nothing logged"
