"""The reports of worker processes to the demo."""

import os
import subprocess
import sys
from pathlib import Path

from consumerkit.demo.reports import DemoReports, Reporter
from consumerkit.events import GroupCommitted, OutboxPublished, WorkerStarted


def test_reports_add_up_and_are_read_once(tmp_path: Path) -> None:
    reporter, reports = Reporter(tmp_path / "reports"), DemoReports(tmp_path / "reports")
    reports.read()
    reporter(WorkerStarted(handlers=("credit-account",)))
    reporter(GroupCommitted(lane=0, processed=5, duplicates=2, duplicates_of_dead=1, dead=1))
    reporter(OutboxPublished(count=1))
    reports.read()
    reports.read()
    assert reports.skipped == 3
    assert reports.done[os.getpid()] == 9
    assert reports.processes == reports.alive() == [os.getpid()]


def test_half_a_line_waits_for_the_other_half(tmp_path: Path) -> None:
    reports = DemoReports(tmp_path / "reports")
    line = b'{"process": 1, "skipped": 2, "done": 3}\n'
    (tmp_path / "reports").write_bytes(line + line[:10])
    reports.read()
    assert reports.skipped == 2
    (tmp_path / "reports").write_bytes(line + line)
    reports.read()
    assert reports.skipped == 4


def test_a_process_that_has_ended_is_not_alive(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "reports").write_text(f'{{"process": {ended.pid}, "skipped": 0, "done": 0}}\n')
    reports = DemoReports(tmp_path / "reports")
    reports.read()
    assert reports.processes == [ended.pid]
    assert reports.alive() == []
