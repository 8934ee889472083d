"""`consumerkit demo` as a user runs it: in a process, its output read from a pipe."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

pytestmark = [pytest.mark.calm, pytest.mark.slow, pytest.mark.timeout(300)]

DEMO = [sys.executable, "-m", "consumerkit", "demo", "--payments", "600", "--kills", "1", "--seed", "7"]

# A ledger that takes every message for a new one and remembers none: what a demo must not let pass.
FORGETFUL_LEDGER = """
from consumerkit.storage import ledger

def claim(self, connection, claims):
    return ledger.Claimed({claim.digest for claim in claims}, {})

ledger.Ledger.claim = claim
"""


def test_the_books_balance_and_every_printed_command_works() -> None:
    with _staying() as demo:
        assert demo.stdout is not None
        output = _read_until(demo.stdout, "Broker and database stay until Ctrl-C")
        assert "The books balance to the cent" in output, output
        assert "WRONG" not in output
        assert "SIGKILL to worker process" in output
        assert re.search(
            r"produced [\d,]+ of [\d,]+, processed 595, duplicates skipped \d+, dead letters 6, kills 1", output
        )
        for reason in ("undecodable", "unidentified", "rejected", "exhausted", "conflict"):
            assert reason in output
        assert "\x1b" not in output
        commands = re.findall(r"^  (\S.*consumerkit.*)$", output, flags=re.MULTILINE)
        looks = [command for command in commands if "--database" in command]
        assert len(looks) == 3
        for command in looks:
            subprocess.run(command, shell=True, check=True, capture_output=True, timeout=120)
        _run_a_worker_again(next(command for command in commands if "CONSUMERKIT_APP" in command))
        directory = Path(re.findall(r"DEMO_DIRECTORY=(\S+)", output)[0])
        assert directory.is_dir()
        demo.send_signal(signal.SIGINT)
        assert demo.wait(120) == 0
        assert not directory.exists()


@pytest.mark.variant
def test_books_that_do_not_balance_are_told_and_end_with_status_1(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FORGETFUL_LEDGER)
    path = os.pathsep.join([str(tmp_path), str(Path.cwd())])
    done = subprocess.run(
        [*DEMO, "--keep", str(tmp_path / "kept")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "The books do NOT balance" in done.stdout
    wrong = [line for line in done.stdout.splitlines() if line.lstrip().startswith("WRONG")]
    assert any("each good payment is in the journal once" in line for line in wrong)
    assert any("the sum is right to the cent" in line for line in wrong)
    assert (tmp_path / "kept" / "shop.db").exists()


def test_sigterm_ends_the_demo_with_its_processes(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(DEMO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert demo.stdout is not None
    _read_until(demo.stdout, "workers alive 2")
    demo.terminate()
    # Everything that holds the pipe or the directory has ended when this returns.
    demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    done = subprocess.run([*DEMO, "--keep", str(tmp_path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --keep ***: this is not an empty directory; name another one")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@contextmanager
def _staying() -> Iterator[subprocess.Popen[str]]:
    demo = subprocess.Popen([*DEMO, "--stay"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield demo
    finally:
        if demo.poll() is None:
            demo.terminate()
        demo.communicate(timeout=120)


def _read_until(stream: IO[str], words: str) -> str:
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"{words!r} was not said in:\n{''.join(lines)}")


def _run_a_worker_again(command: str) -> None:
    worker = subprocess.Popen(
        f"exec env {command}", shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert worker.stdout is not None
    _read_until(worker.stdout, "got payments.captured[")
    worker.terminate()
    worker.communicate(timeout=120)
    assert worker.returncode == 0
