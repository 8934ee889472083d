"""A handler that fails as the message says, and counts its calls."""

import time
from collections import Counter
from typing import Any

from sqlalchemy.orm import Session

from consumerkit import Context, DeadLetter, Handler, Identity, Reject, Retry, fixed, header
from tests.crash.model import Payment
from tests.integration.kafka_stage import KafkaStage, effect


class _Counts:
    """The part that both forms of the handler share; declarations may be overridden."""

    name = "credit"
    message_id: Identity = header("message-id")
    retry = Retry(attempts=3, wait=fixed(0.02))

    def __init__(self, stage: KafkaStage, **declarations: Any) -> None:
        self.topic = stage.topic
        self.group = stage.topic
        self.dead_letter: DeadLetter | None = DeadLetter(stage.dead_letter_topic)
        self.invocations: Counter[str] = Counter()
        self.moments: dict[str, list[float]] = {}
        vars(self).update(declarations)

    def invoked(self, context: Context[Any]) -> None:
        """Count a call."""
        self.invocations[context.message_id] += 1
        self.moments.setdefault(context.message_id, []).append(time.monotonic())

    def work(self, event: Payment, context: Context[Any]) -> None:
        """Add the effect, then do what the payment's kind says."""
        self.invoked(context)
        context.session.add(effect(event, context))
        if event.kind == "reject":
            raise Reject("as asked")
        if event.kind == "value":
            raise ValueError("outside of `on`")
        if event.kind == "fail" or (event.kind == "flaky" and context.attempt < 3):
            raise TimeoutError("the provider does not answer")


class Credit(_Counts, Handler[Payment]):
    """With a coroutine."""

    shares_transaction = True  # what tests wait for has no effect

    async def handle(self, event: Payment, context: Context) -> object:
        self.work(event, context)
        return None


class PlainCredit(_Counts, Handler[Payment]):
    """With a plain function, in a thread."""

    def handle(self, event: Payment, context: Context[Session]) -> object:
        self.work(event, context)
        return None
