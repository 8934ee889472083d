"""Retry and reject: which errors are tried again, how often, and what goes to the dead letters at once."""

# mypy: disable-error-code="mutable-override"

import asyncio

from pydantic import BaseModel
from sqlalchemy import select

from consumerkit import Context, DeadLetter, Handler, Reject, Retry, Worker, exponential, header
from examples.stage import DATABASE, KAFKA, Account, Send, play, progress


class ProviderTimeout(Exception): ...


class Check(BaseModel):
    account_id: str
    answers_at: int
    closed: bool = False


class CheckAccount(Handler[Check]):
    name = "check-accounts"
    topic = "checks"
    message_id = header("message-id")
    # Three invocations in all; an error that is not a ProviderTimeout is not worth a second one.
    retry = Retry(attempts=3, wait=exponential(0.1, max=1), on=(ProviderTimeout,))
    dead_letter = DeadLetter("checks.dlq")

    async def handle(self, event: Check, context: Context) -> None:
        if event.closed:
            raise Reject("the account is closed")
        if context.attempt < event.answers_at:
            raise ProviderTimeout
        context.session.add(Account(id=event.account_id, balance=context.attempt))


worker = Worker(database=DATABASE, kafka=KAFKA, handlers=[CheckAccount()], observers=[progress])

if __name__ == "__main__":
    sent = [
        Send("checks", "c-1", "a", {"account_id": "answers at the third attempt", "answers_at": 3}),
        Send("checks", "c-2", "b", {"account_id": "never answers", "answers_at": 99}),
        Send("checks", "c-3", "c", {"account_id": "closed", "answers_at": 1, "closed": True}),
        Send("checks", "c-4", "d", b"this is not JSON"),
    ]
    dead = worker.tables.dead_letters.c
    dead_letters = select(dead.message_id, dead.reason, dead.attempts).order_by(dead.message_id)
    asyncio.run(play(worker, sent, select(Account.id, Account.balance), dead_letters))
    # answers at the third attempt  3
    # c-2  exhausted  3
    # c-3  rejected  1
    # c-4  undecodable  0
