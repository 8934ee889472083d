"""The supervisor with real processes: small scripts that stand in for a worker."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from consumerkit.supervisor import RestartBackoff, Supervisor, lifeline
from tests.lines import whole_lines
from tests.services.process import freeze

pytestmark = pytest.mark.calm

SUPERVISE = """
import asyncio, logging, sys
from pathlib import Path
from consumerkit.observability.logs import configure
from consumerkit.supervisor import RestartBackoff, Supervisor
from consumerkit.supervisor.changes import python_changes
configure("text", "INFO")
workers, margin, backoff, script = int(sys.argv[1]), float(sys.argv[2]), eval(sys.argv[3]), sys.argv[4]
changes = python_changes([Path(code) for code in sys.argv[5:]]) if sys.argv[5:] else None
supervisor = Supervisor([sys.executable, script], workers, margin=margin, backoff=backoff, changes=changes)
sys.exit(asyncio.run(supervisor.run()))
"""

# Stand-ins for a worker process. They load the one module they need from its file, which spares a second of imports.
PROLOGUE = """
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("lifeline", {lifeline!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
lifeline = module.Lifeline(poll=0.05)
lifeline.hold()
def say(what):
    with open({journal!r}, "a") as journal:
        journal.write(f"{{time.monotonic()}} {{os.getpid()}} {{what}}\\n")
def ends_on_sigterm(*_):
    say("stopped")
    os._exit(0)
"""
OBEYS = 'signal.signal(signal.SIGTERM, ends_on_sigterm)\nlifeline.tell_grace(5)\nsay("started")\nsignal.pause()\n'
IGNORES = (
    'signal.signal(signal.SIGTERM, lambda *_: say("ignored"))\nlifeline.tell_grace(0.3)\nsay("started")\n'
    "while True: time.sleep(0.1)\n"
)


# It works once there is a file of its own name, and ends at once where there is one that says so.
WORKS_LATER = """
here = os.path.dirname(sys.argv[0])
if os.path.exists(here + "/broken"):
    say("broke")
    sys.exit(1)
signal.signal(signal.SIGTERM, ends_on_sigterm)
lifeline.tell_grace(5)
say("started")
while not os.path.exists(here + "/works"):
    time.sleep(0.02)
say("works")
lifeline.tell_works()
signal.pause()
"""


# It cannot start where the code says so, and works where the code says so.
CODED = """
with open(os.path.dirname(sys.argv[0]) + "/.venv/code/shop.py") as code:
    code = code.read()
say("started")
if code == "broken":
    say("broke")
    sys.exit(2)
signal.signal(signal.SIGTERM, ends_on_sigterm)
lifeline.tell_grace(5)
if code == "works":
    say("works")
    lifeline.tell_works()
while True:
    signal.pause()
"""


# It is a member of two groups, and prints which dead members it is asked to remove.
TELLS_OF_THE_DEAD = """
lifeline.hear_of_the_dead(lambda dead: say("dead: " + " ".join(f"{one.group}/{one.id}" for one in sorted(dead))))
signal.signal(signal.SIGTERM, ends_on_sigterm)
lifeline.tell_members(frozenset({module.GroupMember("earlier", "x")}))
lifeline.tell_members(frozenset(module.GroupMember(group, str(os.getpid())) for group in ("one", "two")))
lifeline.tell_works()
say("started")
while True:
    signal.pause()
"""


class Supervised:
    """A supervisor under test, and the journal of its processes."""

    def __init__(
        self,
        directory: Path,
        body: str,
        workers: int,
        *,
        margin: float,
        backoff: RestartBackoff,
        stdin: int | None,
        code: Path | None = None,
    ) -> None:
        self._journal = directory / "journal"
        self._log = directory / "log"
        script = directory / "worker.py"
        script.write_text(PROLOGUE.format(journal=str(self._journal), lifeline=lifeline.__file__) + body)
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SUPERVISE, str(workers), str(margin), repr(backoff), str(script)]
                + ([] if code is None else [str(code)]),
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stderr=log,
            )

    def lines(self, what: str) -> list[tuple[float, int]]:
        found = [line.split(maxsplit=2) for line in whole_lines(self._journal)]
        return [(float(at), int(pid)) for at, pid, said in found if said == what]

    def wait_for(self, what: str, count: int) -> list[tuple[float, int]]:
        until(lambda: len(self.lines(what)) >= count, f"{count} times {what!r}")
        return self.lines(what)

    def ends(self, within: float = 120) -> int:
        return self.process.wait(timeout=within)

    @property
    def log(self) -> str:
        return self._log.read_text()


def until(holds: Callable[[], bool], what: str, within: float = 120) -> None:
    end = time.monotonic() + within
    while not holds():
        assert time.monotonic() < end, f"waited {within} s for {what}"
        time.sleep(0.02)


def waits_between_starts(supervised: Supervised) -> None:
    """Until a failing process is not there for a while, so that a signal ends none in the midst of its start."""
    ended = supervised.log.count("started again in")
    until(lambda: supervised.log.count("started again in") > ended, "a wait between two starts")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


Start = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Supervised] = []

    def start_(
        body: str,
        workers: int = 2,
        *,
        margin: float = 2.0,
        backoff: RestartBackoff | None = None,
        stdin: int | None = None,
        code: Path | None = None,
    ) -> Supervised:
        backoff = backoff or RestartBackoff(first=0.1)
        started.append(Supervised(tmp_path, body, workers, margin=margin, backoff=backoff, stdin=stdin, code=code))
        return started[-1]

    yield start_
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        for _, pid in one.lines("started"):
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_processes_cleanly(start: Start, number: signal.Signals) -> None:
    supervised = start(OBEYS, workers=3)
    pids = {pid for _, pid in supervised.wait_for("started", 3)}

    supervised.process.send_signal(number)

    assert supervised.ends() == 0
    assert {pid for _, pid in supervised.lines("stopped")} == pids


def test_a_killed_process_is_started_again_and_the_others_go_on(start: Start) -> None:
    supervised = start(OBEYS, workers=2)
    (_, first), (_, second) = supervised.wait_for("started", 2)

    os.kill(first, signal.SIGKILL)

    third = supervised.wait_for("started", 3)[2][1]
    assert is_running(second)
    assert is_running(third)
    assert re.search(r"worker process \d was killed by SIGKILL; started again in 0.1 s", supervised.log)
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.ends() == 0


@pytest.mark.parametrize("killed", [1, 2])
def test_the_groups_of_dead_processes_are_told_to_the_others(start: Start, killed: int) -> None:
    """Also where nothing is left alive: then to those that are started in their place."""
    supervised = start(TELLS_OF_THE_DEAD, workers=2)
    victims = [pid for _, pid in supervised.wait_for("started", 2)][:killed]
    for pid in victims:
        freeze(pid)  # so that none hears of the other's death before its own
    for pid in victims:
        os.kill(pid, signal.SIGKILL)

    for pid in victims:
        hearers = {hearer for _, hearer in supervised.wait_for(f"dead: one/{pid} two/{pid}", 3 - killed)}
        assert hearers.isdisjoint(victims)
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.ends() == 0


def test_a_process_that_keeps_failing_waits_longer_each_time(start: Start) -> None:
    supervised = start('say("started")\nsys.exit(1)\n', workers=1, backoff=RestartBackoff(first=0.2, most=0.8))

    supervised.wait_for("started", 6)

    waits = re.findall(r"ended with exit code 1; started again in (\S+) s", supervised.log)
    assert waits[:5] == ["0.2", "0.4", "0.8", "0.8", "0.8"]
    moments = [at for at, _ in supervised.lines("started")]
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert all(gap >= wait for gap, wait in zip(gaps, [0.2, 0.4, 0.8, 0.8, 0.8], strict=False))
    waits_between_starts(supervised)
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.ends() == 0


def test_a_signal_ends_the_wait_for_a_restart(start: Start) -> None:
    supervised = start("sys.exit(1)\n", workers=2, backoff=RestartBackoff(first=60))
    until(lambda: supervised.log.count("started again in 60 s") == 2, "both to wait")

    supervised.process.send_signal(signal.SIGTERM)

    assert supervised.ends() == 0


def test_it_gives_up_when_all_fail_to_start(start: Start) -> None:
    supervised = start('say("started")\nsys.exit(2)\n', workers=3)

    assert supervised.ends() == 2
    assert "all 3 worker processes failed to start; giving up" in supervised.log


def test_it_does_not_give_up_while_one_runs(start: Start) -> None:
    only_the_first_starts = (
        "try:\n    os.mkdir(sys.argv[0] + '.taken')\nexcept FileExistsError:\n    say('refused')\n    sys.exit(2)\n"
    )
    supervised = start(only_the_first_starts + OBEYS, workers=2)

    supervised.wait_for("refused", 3)

    waits_between_starts(supervised)
    assert supervised.process.poll() is None
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.ends() == 0


def test_a_process_that_ignores_its_grace_is_killed_and_told_by_the_exit_code(start: Start) -> None:
    supervised = start(IGNORES, workers=2, margin=0.3)
    pids = [pid for _, pid in supervised.wait_for("started", 2)]

    began = time.monotonic()
    supervised.process.send_signal(signal.SIGTERM)

    assert supervised.ends() == 3
    assert time.monotonic() - began >= 0.6
    assert len(supervised.lines("ignored")) == 2
    assert not any(map(is_running, pids))
    assert supervised.log.count("is killed after its grace of 0.3 s") == 2


def test_a_second_signal_kills_at_once(start: Start) -> None:
    supervised = start(IGNORES, workers=2, margin=60)
    pids = [pid for _, pid in supervised.wait_for("started", 2)]

    supervised.process.send_signal(signal.SIGINT)
    supervised.wait_for("ignored", 2)
    time.sleep(1.1)
    supervised.process.send_signal(signal.SIGINT)

    assert supervised.ends() == 3
    assert not any(map(is_running, pids))


def test_a_signal_that_is_told_twice_at_once_is_one(start: Start) -> None:
    supervised = start(IGNORES, workers=2, margin=60)
    pids = [pid for _, pid in supervised.wait_for("started", 2)]

    supervised.process.send_signal(signal.SIGINT)
    supervised.process.send_signal(signal.SIGTERM)
    supervised.wait_for("ignored", 2)
    time.sleep(0.5)

    assert all(map(is_running, pids))


def test_a_process_that_fails_while_stopping_is_told_by_the_exit_code(start: Start) -> None:
    fails = 'signal.signal(signal.SIGTERM, lambda *_: os._exit(7))\nsay("started")\nsignal.pause()\n'
    supervised = start(fails, workers=1)
    supervised.wait_for("started", 1)

    supervised.process.send_signal(signal.SIGTERM)

    assert supervised.ends() == 1
    assert "worker process 1 ended with exit code 7 while stopping" in supervised.log


def test_when_the_supervisor_is_killed_its_processes_stop_by_themselves(start: Start) -> None:
    supervised = start(OBEYS, workers=2)
    pids = [pid for _, pid in supervised.wait_for("started", 2)]

    supervised.process.kill()

    supervised.wait_for("stopped", 2)
    until(lambda: not any(map(is_running, pids)), "the processes to end")


def test_without_the_kernels_help_they_watch_for_their_parent(start: Start) -> None:
    """Elsewhere than on Linux there is no signal at the parent's death."""
    deaf = (
        "import ctypes\nctypes.CDLL(None).prctl(1, 0)\n"
        "module._ask_the_kernel = lambda: False\n"
        "os.environ['CONSUMERKIT_SUPERVISOR'] = str(os.getppid())\nmodule.Lifeline(poll=0.05).hold()\n"
    )
    supervised = start(deaf + OBEYS, workers=1)
    ((_, pid),) = supervised.wait_for("started", 1)

    supervised.process.kill()

    supervised.wait_for("stopped", 1)
    until(lambda: not is_running(pid), "the process to end")


async def test_a_command_that_cannot_be_started_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor(["/nonexistent/python"], 1, backoff=RestartBackoff(first=0.05))
    running = asyncio.create_task(supervisor.run())
    await asyncio.to_thread(until, lambda: caplog.text.count("cannot be started") >= 2, "two attempts")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, 120) == 0


def test_sighup_replaces_one_process_after_another(start: Start, tmp_path: Path) -> None:
    (tmp_path / "works").touch()
    supervised = start(WORKS_LATER, workers=3)
    supervised.wait_for("works", 3)

    (tmp_path / "works").unlink()
    supervised.process.send_signal(signal.SIGHUP)
    supervised.wait_for("started", 4)
    supervised.process.send_signal(signal.SIGHUP)
    until(lambda: "being replaced already" in supervised.log, "the second request to be told")
    # The new one does not work yet, so the others are left alone.
    assert len(supervised.lines("stopped")) == 1
    (tmp_path / "works").touch()

    until(lambda: "every worker process is replaced" in supervised.log, "all to be replaced")
    old, new = supervised.lines("works")[:3], supervised.lines("works")[3:]
    stopped = supervised.lines("stopped")
    assert {pid for _, pid in stopped} == {pid for _, pid in old}
    assert all(works[0] < stops[0] for works, stops in zip(new, stopped[1:], strict=False))
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.ends() == 0


def test_where_a_new_process_ends_the_others_stay(start: Start, tmp_path: Path) -> None:
    (tmp_path / "works").touch()
    supervised = start(WORKS_LATER, workers=2, backoff=RestartBackoff(first=60))
    supervised.wait_for("works", 2)

    (tmp_path / "broken").touch()
    supervised.process.send_signal(signal.SIGHUP)
    until(lambda: "does not start with the present code" in supervised.log, "the end of the replacement")
    assert len(supervised.lines("broke")) == 1
    assert len(supervised.lines("stopped")) == 1

    # A new request ends the wait for the next attempt.
    (tmp_path / "broken").unlink()
    supervised.process.send_signal(signal.SIGHUP)
    until(lambda: "every worker process is replaced" in supervised.log, "all to be replaced")
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.ends() == 0


def test_a_stop_ends_a_replacement(start: Start, tmp_path: Path) -> None:
    supervised = start(WORKS_LATER, workers=2)
    supervised.wait_for("started", 2)
    supervised.process.send_signal(signal.SIGHUP)
    supervised.wait_for("started", 3)

    supervised.process.send_signal(signal.SIGTERM)

    assert supervised.ends() == 0
    assert len(supervised.lines("stopped")) == 3


def test_a_terminal_that_is_gone_stops_all(start: Start) -> None:
    main, terminal = os.openpty()
    try:
        supervised = start(OBEYS, workers=2, stdin=terminal)
        supervised.wait_for("started", 2)

        supervised.process.send_signal(signal.SIGHUP)

        assert supervised.ends() == 0
        assert len(supervised.lines("stopped")) == 2
    finally:
        os.close(main)
        os.close(terminal)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Where the stand-ins' code is: the names of the directories above it do not matter."""
    made = tmp_path / ".venv" / "code"
    made.mkdir(parents=True)
    save(made, "works")
    return made


def save(code: Path, text: str) -> None:
    """Change the code at one blow: what is watched and what starts see no half of it."""
    (code / "new").write_text(text)
    (code / "new").replace(code / "shop.py")


def watches(supervised: Supervised, code: Path) -> None:
    until(lambda: f"Python files are watched in {code}" in supervised.log, "the watch to begin")


def test_a_change_of_the_code_replaces_the_processes_and_one_that_cannot_start_waits_for_the_next(
    start: Start, code: Path
) -> None:
    supervised = start(CODED, workers=2, code=code, backoff=RestartBackoff(first=0.01, most=0.01))
    watches(supervised, code)
    supervised.wait_for("works", 2)
    for other in ("notes.txt", ".hidden/a.py", "venv/a.py", "__pycache__/a.py"):
        (code / other).parent.mkdir(exist_ok=True)
        (code / other).write_text("does not count")

    save(code, "broken")
    until(lambda: "worker process 1 could not start; the next change" in supervised.log, "the broken code to be told")
    save(code, "works")
    until(lambda: "every worker process is replaced and works" in supervised.log, "all to be replaced")

    # The second one went on with the code that works, and nothing was tried without a change.
    assert len(supervised.lines("broke")) == 1
    assert len(supervised.lines("works")) == 4
    told = re.findall(r"\S+ changed: .*", supervised.log)
    assert set(told) == {f"{code}/shop.py changed: 2 worker processes are replaced one after another"}
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.ends() == 0


def test_a_change_while_processes_are_replaced_begins_that_again(start: Start, code: Path) -> None:
    supervised = start(CODED, workers=2, code=code)
    watches(supervised, code)
    supervised.wait_for("works", 2)
    save(code, "waits for ever")
    supervised.wait_for("started", 3)

    save(code, "works")

    until(lambda: "every worker process is replaced and works" in supervised.log, "all to be replaced")
    assert len(supervised.lines("works")) == 4
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.ends() == 0


def test_what_cannot_be_watched_ends_the_supervisor(start: Start, code: Path) -> None:
    supervised = start(CODED, workers=2, code=code / "nowhere")

    assert supervised.ends() == 2
    assert "changes of Python files cannot be followed; stopping. " in supervised.log
    assert "--reload-dir" in supervised.log
