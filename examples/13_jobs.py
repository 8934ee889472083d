"""Jobs on the ledger: a cron job that takes effect once a day however often it is run, and a backfill that resumes."""

import asyncio

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from consumerkit.jobs import checkpoints, once
from consumerkit.storage import schema
from examples.stage import DATABASE, Account, Base, Payment


async def charge_fees(session: AsyncSession, day: str) -> bool:
    """What cron runs every night; a run after a crash, or by hand, changes nothing more."""
    async with once(session, "nightly-fees", day) as first:
        if first:
            for account in await session.scalars(select(Account).order_by(Account.id)):
                session.add(Payment(id=f"fee-{day}-{account.id}", account_id=account.id, amount=-1))
    return first


async def fill_balances(session: AsyncSession, *, fails_in_batch: int | None = None) -> int:
    """What a script runs once: each batch is committed with how far it has come."""
    batches = 0
    async for payments in checkpoints(session, "fill-balances", select(Payment), key=Payment.id, batch_size=2):
        for payment in payments:
            account = await session.get_one(Account, payment.account_id, with_for_update=True)
            account.balance += payment.amount
        batches += 1
        if batches == fails_in_batch:
            raise ConnectionError("the script's machine was restarted")
    return batches


def prepare(session: Session) -> None:
    schema.apply(session)
    Base.metadata.create_all(session.connection())
    session.add_all(Account(id=name, balance=0) for name in ("alice", "bob", "carol"))
    session.commit()


async def main() -> None:
    engine = create_async_engine(DATABASE.replace("sqlite:", "sqlite+aiosqlite:"))
    sessions = async_sessionmaker(engine)
    async with sessions() as session:
        await session.run_sync(prepare)
    for day in ("2026-11-24", "2026-11-24", "2026-11-25"):
        async with sessions() as session:
            print(day, await charge_fees(session, day))
    try:
        async with sessions() as session:
            await fill_balances(session, fails_in_batch=2)
    except ConnectionError as error:
        print(error)
    async with sessions() as session:
        print(await fill_balances(session), "more batches")
        print(*(await session.scalars(select(Account.balance))).all())
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
    # 2026-11-24 True
    # 2026-11-24 False
    # 2026-11-25 True
    # the script's machine was restarted
    # 2 more batches
    # -2 -2 -2
