"""A server process that cannot outlive its starter, and what both servers need around it."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_GUARD = Path(__file__).with_name("guard.py")
# Below the range from which the kernel hands out client ports: a stopped server finds its port still free.
_PORTS = range(20_000, 32_000)


class ServiceError(RuntimeError):
    """A server is missing or did not start; the message is one line that says what to do."""


class NotOurs(ServiceError):
    """A test wants to stop a server that this process did not start."""

    def __init__(self, what: str, variable: str) -> None:
        super().__init__(
            f"this {what} was given by {variable} and is not ours to stop: "
            f"a test that stops it starts its own with start_private()"
        )


class ServerProcess:
    """One server under its guard; `start` may be called again after the server has ended."""

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        *,
        user: str | None = None,
        last_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.directory = directory
        self.log = directory / "server.log"
        self._command = list(command)
        self._user = user
        self._last_signal = last_signal
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """The server's process ID, not the guard's."""
        if self._pid is None:
            raise ServiceError(f"{self._command[0]} is not running")
        return self._pid

    def start(self) -> None:
        """Run the server; the caller then waits until it answers."""
        self._dismiss(keep=True)
        arguments = [str(self.directory), self._user or "-", str(int(self._last_signal)), str(self.log)]
        self._guard = subprocess.Popen(
            [sys.executable, "-I", str(_GUARD), *arguments, *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._guard.stdout is not None
        line = self._guard.stdout.readline()
        if not line:
            raise ServiceError(f"{self._command[0]} could not be run; its guard's error is above")
        self._pid = int(line)

    def is_alive(self) -> bool:
        """Whether the server's process exists."""
        if self._pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, 0)
            return True
        return False

    def send(self, number: signal.Signals) -> None:
        """Send the server a signal; an ended server is left alone."""
        if self.is_alive():
            os.kill(self.pid, number)

    def freeze(self) -> None:
        """Stop the server (SIGSTOP); an ended server is left alone."""
        if self.is_alive():
            freeze(self.pid)

    def end(self, number: signal.Signals, *, within: float = 30.0) -> None:
        """Send `number`, waking the server first, and wait for its end; SIGKILL after `within` seconds."""
        self.send(signal.SIGCONT)
        for last in (number, signal.SIGKILL):
            self.send(last)
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: not self.is_alive(), within=within, what="the server's end")
                return

    def wait_until_ready(self, ready: Callable[[], bool], *, within: float, name: str) -> None:
        """Wait for `ready`; a server that ends before that is an error with the end of its log."""

        def answers() -> bool:
            if not self.is_alive():
                raise ServiceError(f"{name} ended while starting: {self.last_lines()}")
            return ready()

        try:
            wait_until(answers, within=within, what=name)
        except TimeoutError:
            raise ServiceError(f"{name} did not answer within {within:.0f} s: {self.last_lines()}") from None

    def last_lines(self, count: int = 12) -> str:
        """The end of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:]) if self.log.exists() else ""

    def close(self) -> None:
        """End the server and remove its directory."""
        if self._guard is None:
            shutil.rmtree(self.directory, ignore_errors=True)
        self._dismiss(keep=False)

    def _dismiss(self, *, keep: bool) -> None:
        guard, self._guard, self._pid = self._guard, None, None
        if guard is None:
            return
        guard.communicate(b"keep" if keep else None)


def freeze(pid: int) -> None:
    """Stop a process (SIGSTOP), and wait until it stands still.

    The kernel stops the threads one after another: until the first of them has taken the signal, on a busy machine,
    the others go on.
    """
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: _stands_still(pid), within=60, what=f"process {pid} stands still", every=0.001)


def _stands_still(pid: int) -> bool:
    states = set()
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # a thread that has ended
            states.add(thread.read_text().rpartition(")")[2].split()[0])
    return states <= {"T", "Z", "X"}


def wait_until(condition: Callable[[], bool], *, within: float, what: str, every: float = 0.05) -> None:
    """Poll `condition` until it holds.

    Raises:
        TimeoutError: it did not hold within `within` seconds.
    """
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within:.0f} s")
        time.sleep(every)


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServiceError("no free port between 20000 and 32000 on 127.0.0.1")


def new_directory(name: str) -> Path:
    """A directory for one server's data, which its guard removes."""
    return Path(tempfile.mkdtemp(prefix=f"consumerkit-{name}-"))


def cache_directory() -> Path:
    """Where what was downloaded once is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "consumerkit"
