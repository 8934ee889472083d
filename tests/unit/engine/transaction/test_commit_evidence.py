"""The evidence about a COMMIT decides, whatever `session.commit()` raised."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine

from consumerkit.engine.transaction.commit_evidence import CommitEvidence
from consumerkit.errors import SessionUnfit


def test_what_is_raised_after_the_answer_is_told_and_undoes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    engine = create_engine("sqlite://")
    seen = CommitEvidence()
    with engine.connect() as connection, connection.begin():
        seen.begin(connection)
        seen.answered()
        seen.conclude("shop", ValueError("the user's hook"))
    engine.dispose()
    assert "failed after COMMIT; the transaction is durable" in caplog.text


def test_a_commit_that_returned_and_was_not_sent_is_no_commit() -> None:
    with pytest.raises(SessionUnfit, match="without a commit"):
        CommitEvidence().conclude("shop", None)


def test_what_kept_commit_from_being_sent_is_raised() -> None:
    with pytest.raises(ValueError, match="before COMMIT"):
        CommitEvidence().conclude("shop", ValueError("before COMMIT"))
