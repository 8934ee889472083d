"""The metrics of several processes, read while the processes create their files."""

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client.exposition import generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from consumerkit.monitoring.monitor import registry_of


def test_a_file_that_was_just_made_is_left_out(tmp_path: Path) -> None:
    written = MmapedDict(str(tmp_path / "counter_1.db"))  # type: ignore[no-untyped-call]
    written.write_value(mmap_key("seen", "seen_total", [], [], "Seen."), 3.0, 0.0)  # type: ignore[no-untyped-call]
    (tmp_path / "counter_2.db").touch()
    (tmp_path / "gauge_liveall_3.db").touch()

    assert "seen_total 3.0" in generate_latest(registry_of(tmp_path)).decode()
    written.close()  # type: ignore[no-untyped-call]


def test_what_two_processes_hold_back_counts_once(tmp_path: Path) -> None:
    """Both have met the topic that the broker does not take, since the relay's turn has moved."""
    program = """
from prometheus_client import CollectorRegistry
from consumerkit import events
from consumerkit.monitoring import Metrics
Metrics(CollectorRegistry())(events.OutboxHeldBack(topic="receipts", error="x", wait=1.0))
print("held back", flush=True)
input()
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held back\n"
        told = generate_latest(registry_of(tmp_path)).decode()
        assert 'consumerkit_outbox_held_back{handler=""} 1.0' in told
    finally:
        for process in processes:
            process.communicate(b"\n")
