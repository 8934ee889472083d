"""Tests of handlers without a server: the real engine and ledger, a broker in memory and a SQLite file.

from consumerkit.testing import assert_idempotent, message

def test_a_payment_is_credited_once() -> None:
    payments = [message({"account_id": "alice", "amount": 5}, id=f"p-{n}", key="alice") for n in range(3)]
    assert_idempotent(CreditAccount(), payments, metadata=Base.metadata, setup=add_accounts)

The runtime imports nothing of this.
"""

from consumerkit.testing.idempotent import assert_idempotent, assert_idempotent_async
from consumerkit.testing.messages import message
from consumerkit.testing.proof import IdempotenceReport

__all__ = ["IdempotenceReport", "assert_idempotent", "assert_idempotent_async", "message"]
