"""Jobs and backfills on the ledger: a job takes effect once per key, and a backfill once per row.

async with once(session, "nightly-invoices", "2026-11-24") as first:
    if first:
        session.add_all(await invoices_of(session, "2026-11-24"))

async for orders in checkpoints(session, "fill-totals", select(Order), key=Order.id):
    for order in orders:
        order.total = sum(line.cents for line in order.lines)
"""

from consumerkit.errors import InProgress, KeyReused
from consumerkit.jobs.backfill import checkpoints
from consumerkit.jobs.keyed_block import once

__all__ = ["InProgress", "KeyReused", "checkpoints", "once"]
