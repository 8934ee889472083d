"""A process that stands still ends itself, with its status and its reason; one that works does not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from consumerkit.worker.watchdog import EXIT_STATUS
from tests.services.process import freeze

pytestmark = pytest.mark.calm


def start(way: str, directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.integration.stuck", way, str(directory / "stuck.sqlite")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "way, reason",
    [
        ("loop", "the event loop has been blocked for "),
        ("fetch", "handler 'write': nothing was fetched for "),
        ("client", "handler 'write': its consumer's own loop has not run for 60 s"),
        ("fatal", "handler 'write': its consumer failed: authorisation was withdrawn"),
        ("thread", "handler 'write': a transaction has taken "),
    ],
)
def test_a_worker_that_stands_still_ends_itself(tmp_path: Path, way: str, reason: str) -> None:
    process = start(way, tmp_path)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (EXIT_STATUS, "starts\n"), err
    assert EXIT_STATUS == 71
    assert f"worker: {reason}" in err
    assert "; the process ends, to be restarted" in err


def test_a_worker_that_works_goes_on(tmp_path: Path) -> None:
    process = start("sound", tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "the process ends" not in err


def test_a_worker_whose_loop_is_closed_ends_no_process(tmp_path: Path) -> None:
    process = start("abandoned", tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "the process ends" not in err


def test_a_process_that_was_itself_stopped_gets_a_fresh_start(tmp_path: Path) -> None:
    process = start("sound", tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "starts\n"
    time.sleep(1.5)
    freeze(process.pid)
    time.sleep(6)  # longer than it may stand still
    os.kill(process.pid, signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
