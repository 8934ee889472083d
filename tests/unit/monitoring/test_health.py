"""A supervisor's health comes from the reports of live processes, and from their expected number."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from consumerkit import ConfigurationError
from consumerkit.errors import StartError
from consumerkit.monitoring.health import STALE, HealthReport, forget_the_dead, report, together
from consumerkit.monitoring.server import address, serving

GOOD = HealthReport(live=True, ready=True)
BRAKED = HealthReport(live=True, ready=False, findings=("credit: the brake is on",))


def _other(directory: Path, process: int, health: HealthReport) -> Path:
    report(directory, health)
    return (directory / f"health-{os.getpid()}.json").rename(directory / f"health-{process}.json")


def test_several_processes_are_ready_when_each_of_them_is(tmp_path: Path) -> None:
    assert together(tmp_path, 2) == HealthReport(
        live=True, ready=False, findings=("2 of 2 worker processes do not answer; see the log for the reason",)
    )
    _other(tmp_path, 1, GOOD)
    report(tmp_path, GOOD)
    assert together(tmp_path, 2) == GOOD
    _other(tmp_path, 1, BRAKED)
    report(tmp_path, BRAKED)
    assert together(tmp_path, 2) == BRAKED  # each finding once


def test_what_several_processes_find_is_told_once_with_the_longest_time(tmp_path: Path) -> None:
    here = HealthReport(live=True, ready=False, findings=("credit: database trouble (for 8 s)", "the brake (a)"))
    there = HealthReport(
        live=True, ready=False, findings=("credit: database trouble (for 12 s)", "mail: paused (for 1 s)")
    )
    _other(tmp_path, 1, there)
    report(tmp_path, here)
    assert sorted(together(tmp_path, 2).findings) == [
        "credit: database trouble (for 12 s)",
        "mail: paused (for 1 s)",
        "the brake (a)",
    ]


def test_a_report_that_grows_old_says_nothing(tmp_path: Path) -> None:
    old = _other(tmp_path, 1, GOOD)
    os.utime(old, (time.time() - STALE - 1,) * 2)
    report(tmp_path, GOOD)
    found = together(tmp_path, 2)
    assert not found.ready
    assert found.findings == ("1 of 2 worker processes do not answer; see the log for the reason",)


def test_reports_of_processes_that_ended_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    _other(tmp_path, ended.pid, GOOD)
    report(tmp_path, GOOD)
    assert list(forget_the_dead(tmp_path)) == [ended.pid]
    assert [file.name for file in tmp_path.iterdir()] == [f"health-{os.getpid()}.json"]


def test_a_broken_report_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "health-1.json").write_text("{")
    assert not together(tmp_path, 1).ready


@pytest.mark.parametrize("text", ["", "8080", ":8080", "localhost:", "localhost:http", "localhost:70000"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"write HOST:PORT"):
        address(text)


def test_a_port_that_is_taken_is_one_line() -> None:
    with serving(("127.0.0.1", 0), lambda: GOOD, CollectorRegistry) as port:
        taken = serving(("127.0.0.1", port), lambda: GOOD, CollectorRegistry)
        with pytest.raises(StartError, match=f"--http 127.0.0.1:{port}: .*; choose another port"), taken:
            pass
