"""The metrics of several processes, read while the processes create their files."""

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
