"""`consumerkit retry preview`, as a user calls it: arguments in, exit status and output out."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumerkit import Retry, exponential, fixed
from consumerkit.cli.main import run
from consumerkit.cli.retry import steps_of

SHOP = """
from consumerkit import Context, Handler, Retry, Worker, exponential, fixed, header
from consumerkit.policies.retry import uniform
from consumerkit.transports.memory import Memory, MemoryBroker

class Credit(Handler[bytes]):
    name = "credit-account"
    topic = "payments"
    message_id = header("message-id")
    retry = Retry(attempts=4, wait=exponential(1, max=3, jitter=0.5), in_place=2)

    async def handle(self, event: bytes, context: Context) -> None: ...

class Rules(Credit):
    name = "rules"
    retry = Retry(
        attempts=2,
        retry_after="seconds",
        on={TimeoutError: fixed(2), OSError: Retry(deadline=25, wait=uniform(5, 10)), KeyError: None},
    )

class Endless(Credit):
    name = "endless"
    retry = Retry(deadline=5, wait=fixed(0))

class Needs(Credit):
    def __init__(self, limit): self.limit = limit

class Fails(Credit):
    def __init__(self): raise ValueError("no settings")

class Misdeclared(Credit):
    topic = ""

needs = Needs(3)
handlers = [Credit(), Rules(), Endless()]
worker = Worker(database="sqlite:///unused.sqlite", kafka=Memory(MemoryBroker()), handlers=handlers)
def build(): return worker
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str


class Shop:
    """A directory with a user's module, `shop`."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        (directory / "shop.py").write_text(SHOP)
        self._directory = directory
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def preview(self, *arguments: str) -> Answer:
        """Call the command in this process."""
        self._monkeypatch.setattr(sys, "argv", ["consumerkit", "retry", "preview", *arguments])
        with pytest.raises(SystemExit) as ended:
            run()
        code = ended.value.code
        return Answer(code if isinstance(code, int) else 0, *self._capsys.readouterr())

    def preview_elsewhere(self, *arguments: str) -> Answer:
        """Call the command in a process of its own."""
        return _preview(self._directory, *arguments)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delenv("CONSUMERKIT_APP", raising=False)
    sys.modules.pop("shop", None)
    yield Shop(tmp_path, monkeypatch, capsys)
    sys.modules.pop("shop", None)


def _preview(directory: Path, *arguments: str) -> Answer:
    done = subprocess.run(
        [sys.executable, "-m", "consumerkit", "retry", "preview", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def _objects(answer: Answer) -> list[dict[str, Any]]:
    assert (answer.code, answer.err) == (0, "")
    return [json.loads(line) for line in answer.out.splitlines()]


def test_a_handlers_schedule_is_printed_with_its_bounds(shop: Shop) -> None:
    answer = shop.preview_elsewhere("shop:Credit")
    assert answer == Answer(
        0,
        "credit-account, errors: any\n"
        "attempt  after a wait of  since the first failure  where     if it fails\n"
        "1                         0 s                      in place  retry\n"
        "2        1 - 1.5 s        1 - 1.5 s                in place  retry\n"
        "3        2 - 3 s          3 - 4.5 s                parked    retry\n"
        "4        3 s              6 - 7.5 s                parked    dead letter\n",
        "",
    )


def test_each_rule_has_a_schedule_of_its_own(shop: Shop) -> None:
    timeout, system, key, other = _objects(shop.preview("shop:Rules", "--json"))
    assert timeout == {
        "handler": "rules",
        "errors": "TimeoutError",
        "attempts": 2,
        "deadline": None,
        "retry_after_max": 3600.0,
        "schedule": [
            {"attempt": 1, "wait": None, "elapsed": [0, 0], "where": "in place", "then": "retry"},
            {"attempt": 2, "wait": [2, 2], "elapsed": [2, 2], "where": "parked", "then": "dead letter"},
        ],
        "complete": True,
    }
    assert (system["errors"], system["attempts"], system["deadline"]) == ("OSError", None, 25)
    assert [(s["elapsed"], s["then"]) for s in system["schedule"]] == [
        ([0, 0], "retry"),
        ([5, 10], "retry"),
        ([10, 20], "either"),
        ([15, 25], "either"),
        ([20, 25], "either"),
        ([25, 25], "dead letter"),
    ]
    assert [(one["errors"], len(one["schedule"]), one["attempts"]) for one in (key, other)] == [
        ("KeyError", 1, 1),
        ("any other", 1, 1),
    ]


def test_limits_that_are_not_in_the_table_are_told(shop: Shop) -> None:
    told = shop.preview("shop:Rules").out
    assert "where an error asks for a longer wait than these, it gets it, up to 3600 s\n" in told
    assert "no attempt begins later than 25 s after the first failure\n" in told
    assert "retry or dead letter\n" in told


def test_a_schedule_without_an_end_is_cut_and_says_so(shop: Shop) -> None:
    lines = shop.preview("shop:Endless", "--limit", "3").out.splitlines()
    assert lines[-1] == "and so on; --limit N prints more"
    assert lines[-3].startswith("3  ")
    (one,) = _objects(shop.preview("shop:Endless", "--json"))
    assert (len(one["schedule"]), one["complete"]) == (30, False)


@pytest.mark.parametrize("target", ["shop:worker", "shop:build"])
def test_a_worker_has_all_its_handlers_previewed(shop: Shop, target: str) -> None:
    found = [one["handler"] for one in _objects(shop.preview(target, "--json"))]
    assert [name for name, _ in itertools.groupby(found)] == ["credit-account", "rules", "endless"]


def test_handlers_of_a_worker_can_be_chosen(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUMERKIT_APP", "shop:worker")
    found = _objects(shop.preview("--json", "--only", "endless"))
    assert [one["handler"] for one in found] == ["endless"]


def test_an_instance_is_previewed(shop: Shop) -> None:
    assert shop.preview("shop:needs").out.startswith("credit-account, errors: any\n")


@pytest.mark.parametrize(
    "arguments, told",
    [
        (
            ["shop:Needs"],
            "target 'shop:Needs': Needs() takes arguments (missing a required argument: 'limit'); give an instance ",
        ),
        (["shop:Fails"], "target 'shop:Fails': Fails(): ValueError: no settings"),
        (["shop:worker", "--only", "x"], "--only 'x' names no handler; there are credit-account, rules, endless"),
        (["shop:Creditt"], "target 'shop:Creditt': shop has no attribute 'Creditt'; did you mean 'Credit'?"),
        (["shop:Misdeclared"], "Misdeclared (name 'credit-account'): topic='' is not a topic name"),
        ([], "no worker is named; give module:attribute"),
    ],
)
def test_what_cannot_be_previewed_is_one_line(shop: Shop, arguments: list[str], told: str) -> None:
    answer = shop.preview(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"error: {told}")
    assert answer.err.count("\n") == 1


def test_a_process_of_its_own_fails_with_one_line_and_its_status(shop: Shop) -> None:
    told = "error: target 'shop:Fails': Fails(): ValueError: no settings\n"
    assert shop.preview_elsewhere("shop:Fails") == Answer(2, "", told)


@given(
    st.integers(1, 8) | st.none(), st.floats(0.5, 100), st.floats(0.1, 5), st.floats(0, 2), st.integers(1, 4), st.data()
)
def test_what_happens_is_within_what_is_previewed(
    attempts: int | None, deadline: float, initial: float, jitter: float, in_place: int, data: st.DataObject
) -> None:
    wait = exponential(initial, max=initial * 4, jitter=jitter) + fixed(0.1)
    policy = Retry(attempts=attempts, deadline=deadline, wait=wait, in_place=in_place)
    steps = list(itertools.islice(steps_of(policy), 2000))
    elapsed = 0.0
    for attempt in itertools.count(1):
        step = steps[attempt - 1]
        assert step.attempt == attempt
        assert step.elapsed[0] <= elapsed <= step.elapsed[1]
        waited = policy.next_wait(ValueError(), attempt=attempt, elapsed=elapsed)
        assert step.then in (("dead letter", "either") if waited is None else ("retry", "either"))
        if waited is None:
            break
        elapsed += waited
