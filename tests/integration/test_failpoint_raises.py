"""An error at any place on a message's way: the messages go on, each takes effect once, and no commit seems lost."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy.orm import Session

from consumerkit import Context, DeadLetter, Handler, Reject, Retry, failpoints, fixed, header
from consumerkit.events import CommitsLost
from consumerkit.handlers.handler import AnyHandler
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, line
from tests.integration.stage import Run
from tests.services import PostgresServer

COUNT = 12
REFUSED = {"7", "12"}
ON_THE_WAY = sorted(
    failpoints.NAMES
    # These are passed by steps, by requests, by clients of a real broker, or once at the end.
    - {name for name in failpoints.NAMES if name.startswith(("step_", "undo_", "request_"))}
    - {"offset_commit_sent", "in_shutdown_drain", "in_on_revoke"}
    # An error in it ends the process by design.
    - {"in_on_assign"}
)
CASES = [
    pytest.param(name, visit, plain, marks=[pytest.mark.matrix] if plain or visit > 1 else [])
    for name in ON_THE_WAY
    for visit in (1, 2)
    for plain in (False, True)
    if not (plain and name == "commit_sent")  # a thread has nothing between sending COMMIT and waiting for its answer
]


class Plain(Handler[bytes]):
    name = "write"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=3, wait=fixed(0))
    dead_letter = DeadLetter("dead")
    batch_size = 3

    def handle(self, event: bytes, context: Context[Session]) -> None:
        if context.message_id in REFUSED:
            raise Reject("refused")
        context.session.add(line(context))


async def refuse(context: Context[Any]) -> None:
    if context.message_id in REFUSED:
        raise Reject("refused")


def made(*, plain: bool) -> AnyHandler:
    return Plain() if plain else Write(refuse, dead_letter=DeadLetter("dead"), batch_size=3)


@pytest.fixture
async def place(postgres: PostgresServer, database: str) -> AsyncIterator[MemoryStage]:
    stage = MemoryStage(postgres.url(database), partitions=2)
    stage.broker.create_topic("dead", 2)
    await stage.create_tables()
    for number in range(COUNT):
        stage.append(number, key=b"%d" % (number % 5))
    yield stage
    await stage.close()


class Fault(Exception): ...


@pytest.mark.parametrize("name, visit, plain", CASES)
async def test_after_an_error_at_any_place_everything_goes_on(
    place: MemoryStage, name: str, visit: int, plain: bool
) -> None:
    visits: Counter[str] = Counter()
    sent = {str(number) for number in range(COUNT)}

    def raise_once(passed: str) -> None:
        visits[passed] += 1
        if passed == name and visits[name] == visit:
            raise Fault(name)

    async def everything(run: Run) -> None:
        await run.until(lambda: place.committed() == place.ends(), "all is committed", within=60)
        await run.until(lambda: len(place.broker.records("dead")) > 0, "its dead letter is sent", within=60)
        assert not run.seen(CommitsLost)

    with failpoints.watched(raise_once):
        # An error in our own code may end the worker; a supervisor then starts it again.
        with suppress(Fault):
            async with place.run(made(plain=plain)) as run:
                await everything(run)
                sent.add(_one_more(place, COUNT))
                await everything(run)
        async with place.run(made(plain=plain)) as run:
            sent.add(_one_more(place, COUNT + 1))
            await everything(run)
    assert visits[name] >= visit, f"{name} was passed {visits[name]} times"
    assert Counter(one.message_id for one in await place.lines()) == Counter(sent - REFUSED)


def _one_more(place: MemoryStage, number: int) -> str:
    place.append(number, key=b"another")
    return str(number)
