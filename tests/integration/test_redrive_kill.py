"""A thousand dead letters on the real Kafka, redriven by two commands at once, one of them killed and resumed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import chain

import pytest
from pydantic import BaseModel

from consumerkit import Brake, Context, Handler, Reject, Retry, header
from tests.crash.model import Payment
from tests.integration.kafka_stage import Given, KafkaStage, effect

pytestmark = pytest.mark.calm

LETTERS = 1000
KEYS = 20


class Strict(BaseModel):
    """What a broken release takes for a payment: most have no `kind`."""

    account: str
    amount: int
    kind: str


class _Credit:
    message_id = header("message-id")
    brake = Brake(allowance=2 * LETTERS)
    retry = Retry(attempts=1)

    def __init__(self, topic: str) -> None:
        self.name = f"credit-{topic}"
        self.topic = topic


class Broken(_Credit, Handler[Strict]):
    async def handle(self, event: Strict, context: Context) -> None:
        raise Reject("a broken release")


class Repaired(_Credit, Handler[Payment]):
    async def handle(self, event: Payment, context: Context) -> None:
        context.session.add(effect(event, context))


def _payment(number: int) -> Given:
    """Every 25th is rejected, and so has a row in the ledger; the others cannot be decoded."""
    key = number % KEYS
    value: dict[str, object] = {"account": f"k{key}", "amount": 1}
    if number % 25 == 0:
        value["kind"] = "reject"
    return Given(json.dumps(value).encode(), f"p-{number}".encode(), b"k%d" % key, partition=key % 2)


def _command(stage: KafkaStage, by: str) -> subprocess.Popen[bytes]:
    command = ["dead-letters", "redrive", "--all", "--rate", "150", "--by"]
    return subprocess.Popen(
        [sys.executable, "-m", "consumerkit", *command, by, "--database", stage.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _redriven_by(stage: KafkaStage, actor: str) -> list[int]:
    rows = stage.rows(f"SELECT details FROM consumerkit_operator_actions WHERE actor = '{actor}'")
    return [number for row in rows for number in json.loads(row["details"])["letters"]]


def _states(stage: KafkaStage) -> Counter[str]:
    rows = stage.rows("SELECT state, count(*) AS n FROM consumerkit_dead_letters GROUP BY state")
    return Counter({row["state"]: row["n"] for row in rows})


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_each_comes_back_once_and_in_order_though_a_run_is_killed_and_another_goes_on(stage: KafkaStage) -> None:
    stage.send([_payment(number) for number in range(LETTERS)])
    async with stage.run(Broken(stage.topic)) as run:
        await run.until(lambda: _states(stage) == {"dead": LETTERS}, "a thousand dead letters", within=120)

    running: list[subprocess.Popen[bytes]] = []
    try:
        async with stage.run(Repaired(stage.topic)) as run:
            running += [_command(stage, "killed"), _command(stage, "other")]
            await run.until(lambda: bool(_redriven_by(stage, "killed")), "the first batches", within=120)
            os.kill(running[0].pid, signal.SIGKILL)
            assert await asyncio.to_thread(running[0].wait) == -signal.SIGKILL
            assert 0 < len(_redriven_by(stage, "killed")) < LETTERS
            running.append(_command(stage, "resumed"))
            for process in running[1:]:
                assert await asyncio.to_thread(process.wait, 120) == 0
            await run.until(lambda: _states(stage) == {"resolved": LETTERS}, "a thousand successes", within=120)
    finally:
        for process in running:
            process.kill()
            process.communicate()

    by = {actor: _redriven_by(stage, actor) for actor in ("killed", "other", "resumed")}
    assert sorted(chain.from_iterable(by.values())) == sorted(row["id"] for row in stage.dead()), (
        "each letter redriven once"
    )
    assert {row["redrives"] for row in stage.dead()} == {1}
    in_order = defaultdict(list)
    for row in stage.effects():
        in_order[row["account"]].append(int(row["message_id"].removeprefix("p-")))
    assert in_order == {f"k{key}": [*range(key, LETTERS, KEYS)] for key in range(KEYS)}, "each once, in order"
    assert Counter(row["outcome"] for row in stage.ledger()) == {1: LETTERS}
    assert stage.rows("SELECT id FROM consumerkit_parked_messages") == []
