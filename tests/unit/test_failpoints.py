"""Failpoints are off unless armed, and fire at the given place and visit."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumerkit import ConfigurationError, failpoints
from consumerkit.failpoints import FailpointError, arm, reach


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm({})


def armed(setting: str) -> None:
    arm({"CONSUMERKIT_FAILPOINT": setting})


def visits_until_it_fires(name: str, most: int) -> int | None:
    for visit in range(1, most + 1):
        try:
            reach(name)
        except FailpointError:
            return visit
    return None


def test_nothing_fires_unless_armed() -> None:
    for name in failpoints.NAMES:
        reach(name)


def test_a_failpoint_fires_at_its_first_visit_or_at_the_one_named_and_only_then() -> None:
    armed("in_handler:raise,after_commit:raise:3")
    assert visits_until_it_fires("in_handler", 10) == 1
    assert visits_until_it_fires("in_handler", 10) is None
    assert visits_until_it_fires("after_commit", 10) == 3
    assert visits_until_it_fires("after_poll", 10) is None


def test_a_failpoint_fires_by_chance() -> None:
    armed("in_handler:raise:~1")
    assert visits_until_it_fires("in_handler", 1) == 1
    assert visits_until_it_fires("in_handler", 1) == 1
    armed("in_handler:raise:~0.05")
    assert visits_until_it_fires("in_handler", 5000) is not None


def test_arming_again_forgets_what_was_armed() -> None:
    armed("in_handler:raise")
    armed("after_commit:raise")
    assert visits_until_it_fires("in_handler", 3) is None


@pytest.mark.parametrize(
    "item",
    [
        "nowhere:raise",
        "in_handler",
        "in_handler:explode",
        "in_handler:raise:x",
        "in_handler:raise:0",
        "in_handler:raise:-1",
        "in_handler:raise:1.5",
        "in_handler:raise:~",
        "in_handler:raise:~x",
        "in_handler:raise:~0",
        "in_handler:raise:~1.1",
        "in_handler:raise:~nan",
        "in_handler:raise:1:2",
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_and_arms_nothing(item: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        armed(f"after_commit:raise,{item}")
    assert str(caught.value) == (
        f"CONSUMERKIT_FAILPOINT: {item!r} is not name:kill|raise|hang|exit[:n|:~p] with a known name, n >= 1 and "
        "0 < p <= 1"
    )
    assert visits_until_it_fires("after_commit", 1) is None


def test_each_that_fires_appends_a_line_to_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "fired"
    monkeypatch.setenv("CONSUMERKIT_FAILPOINT_LOG", str(log))
    armed("in_handler:raise:~1")
    for _ in range(2):
        with pytest.raises(FailpointError, match="in_handler"):
            reach("in_handler")
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [line[:3] for line in lines] == [["in_handler", "raise", str(os.getpid())]] * 2


def test_hang_holds_the_thread_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    armed("in_handler:hang")
    with pytest.raises(FailpointError):
        reach("in_handler")
    assert slept == [3600]


@pytest.mark.parametrize("action, status", [("kill", -9), ("exit", 70)])
def test_kill_and_exit_end_the_process_at_once(action: str, status: int) -> None:
    program = "from consumerkit.failpoints import arm, reach; arm(); reach('in_handler'); print('still here')"
    environment = {**os.environ, "CONSUMERKIT_FAILPOINT": f"in_handler:{action}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (status, b"")


def test_a_watcher_is_called_at_each_place_within_its_block_and_may_raise_there() -> None:
    seen: list[str] = []
    with failpoints.watched(seen.append):
        failpoints.reach("before_commit")
    failpoints.reach("after_commit")
    assert seen == ["before_commit"]

    def refuse(name: str) -> None:
        raise failpoints.FailpointError(name)

    with pytest.raises(failpoints.FailpointError, match="before_mark"), failpoints.watched(refuse):
        failpoints.reach("before_mark")
    with (
        failpoints.watched(seen.append),
        pytest.raises(RuntimeError, match="watched already"),
        failpoints.watched(refuse),
    ):
        pass
    failpoints.reach("before_mark")
