"""A worker that is killed at the COMMIT of a call of `on_dead_letter`: `python -m tests.crash.hook_app SETTINGS`."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, TypedDict

from sqlalchemy.orm import Session

from consumerkit import BatchContext, BatchHandler, DeadLetterContext, DeadLetteredMessage, Received, Reject
from consumerkit.transports.memory import Memory, MemoryBroker
from consumerkit.worker import Worker
from tests.integration.memory_stage import TOPIC
from tests.integration.test_on_dead_letter import PlainTold, Told, _Told, told


class BatchTold(_Told, BatchHandler[bytes]):
    """Has whole batches fail."""

    async def handle_batch(self, batch: Sequence[Received[bytes]], context: BatchContext) -> None:
        if not self.healed:
            raise Reject("as asked")

    async def on_dead_letter(self, letter: DeadLetteredMessage, context: DeadLetterContext) -> None:
        context.session.add(told(letter))
        context.publish("told", key=letter.message_id, value={"letter": letter.id})
        self.in_hook(letter, context)


KINDS: dict[str, Any] = {one.__name__: one for one in (Told, PlainTold, BatchTold)}


class Settings(TypedDict):
    """The arguments of the process."""

    database: str
    kind: str
    after: bool


def dies_at_commit(*, after: bool) -> Any:
    """Return what has a call's process end right before its COMMIT, or right after the answer."""

    def in_hook(letter: DeadLetteredMessage, context: Any) -> None:
        session = context.session if isinstance(context.session, Session) else context.session.sync_session
        commit = session.commit

        def committed() -> None:
            if after:
                commit()
            os.kill(os.getpid(), signal.SIGKILL)

        vars(session)["commit"] = committed

    return in_hook


async def main(settings: Settings) -> None:
    """Run until killed."""
    broker = MemoryBroker(topics={TOPIC: 1, "told": 1})
    broker.append(TOPIC, b"bad", headers=(("id", b"0"),))
    handler = KINDS[settings["kind"]](dies_at_commit(after=settings["after"]), publishes=("told",))
    worker = Worker(database=settings["database"], kafka=Memory(broker), handlers=[handler], transaction_timeout=1.0)
    await worker.run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
