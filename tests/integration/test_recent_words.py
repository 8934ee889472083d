"""Texts of recent database errors are cut from later texts, after the error itself is gone."""

import html
import json
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from consumerkit.engine.transaction import failures
from consumerkit.storage.database import Database
from tests.services import PostgresServer

VALUE = "078-05-1120"


def _refuse(session: Session) -> None:
    # No phrase and no form distinguishes this from other words.
    session.execute(text(f"DO $$ BEGIN RAISE 'no' USING DETAIL = 'the number {VALUE}, again'; END $$"))


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_detail_that_a_handler_kept_is_cut_where_it_is_raised_later(driver: str, postgres: PostgresServer) -> None:
    database = Database(postgres.admin_dsn.replace("postgresql://", f"postgresql+{driver}://"))
    kept = ""
    try:
        database.run_blocking(_refuse)
    except Exception as error:
        driver_error: Any = getattr(error, "orig", None)
        driver_error = driver_error.__cause__ or driver_error
        kept = getattr(driver_error, "detail", None) or driver_error.diag.message_detail
    finally:
        for engine in database._owned:
            getattr(engine, "sync_engine", engine).dispose()
    assert VALUE in kept
    for told in (kept, json.dumps({"d": kept}), html.escape(json.dumps([kept]))):
        said = failures.recorded_text(RuntimeError(told))
        assert VALUE not in said
        assert "***" in said
