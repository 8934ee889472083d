"""What systemd hears on its socket."""

import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumerkit.supervisor import Notifier, Supervisor


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield end


def heard(systemd: socket.socket) -> str:
    return systemd.recv(1_000).decode()


def test_ready_is_told_once_and_the_socket_is_not_handed_on(systemd: socket.socket) -> None:
    notifier = Notifier()
    assert "NOTIFY_SOCKET" not in os.environ
    notifier.ready()
    notifier.ready()
    notifier.stopping()
    assert [heard(systemd), heard(systemd)] == ["READY=1\nSTATUS=works", "STOPPING=1\nSTATUS=stopping"]


def test_signs_of_life_come_while_it_lives(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    notifier = Notifier()
    answers = iter([True, False, False, True])
    with notifier.living(lambda: next(answers, False)):
        assert [heard(systemd), heard(systemd)] == ["WATCHDOG=1", "WATCHDOG=1"]
        while next(answers, None) is not None:
            pass
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        heard(systemd)


@pytest.mark.parametrize("variables", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}])
def test_without_a_watchdog_there_are_none(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    notifier = Notifier()
    assert notifier.watchdog is None
    with notifier.living(lambda: True):
        pass
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        heard(systemd)


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    notifier = Notifier()
    notifier.ready()
    with notifier.living(lambda: True):
        notifier.stopping()
    assert not notifier.listens


WORKER = """
import os, signal
_, end = os.environ["CONSUMERKIT_SUPERVISOR_FD"].split(",")
os.write(int(end), b'{"works": true}\\n')
signal.sigwait([signal.SIGTERM])
"""


async def test_a_supervisor_is_ready_once_each_of_its_processes_works(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    command = [sys.executable, "-S", "-c", f"import signal; signal.pthread_sigmask(0, [15])\n{WORKER}"]
    running = asyncio.create_task(Supervisor(command, 2, notifier=Notifier()).run())
    told = [await asyncio.to_thread(heard, systemd) for _ in range(2)]
    assert told == ["WATCHDOG=1", "READY=1\nSTATUS=works"]
    os.kill(os.getpid(), 15)
    assert await asyncio.to_thread(heard, systemd) == "STOPPING=1\nSTATUS=stopping"
    assert await running == 0
