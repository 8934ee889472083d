"""A block that takes effect once per key, for cron jobs and scripts."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import date
from hashlib import blake2b
from types import TracebackType
from typing import Final, overload
from uuid import UUID

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from consumerkit.errors import ConfigurationError, KeyReused
from consumerkit.handlers.message_id import DIGEST_BYTES, encode_field, possible_digests, shown
from consumerkit.handlers.value_bytes import NoStableBytes, canonical
from consumerkit.jobs.own_transaction import SessionTables, commit, found_for, is_callers, is_open, mark, misused
from consumerkit.redaction.plain_words import shown_word
from consumerkit.storage.keys import UNTOLD, Key
from consumerkit.storage.tables import DEFAULT_TABLES, Tables

Part = str | bytes | int | UUID | date
JOB: Final = "job:"
_NAME: Final = re.compile(r"[A-Za-z0-9._:-]{1,200}")


@overload
def once(
    session: AsyncSession,
    name: str,
    *key: Part,
    fingerprint: object = None,
    wait: float | None = None,
    tables: Tables = DEFAULT_TABLES,
) -> AbstractAsyncContextManager[bool]: ...


@overload
def once(
    session: Session,
    name: str,
    *key: Part,
    fingerprint: object = None,
    wait: float | None = None,
    tables: Tables = DEFAULT_TABLES,
) -> AbstractContextManager[bool]: ...


def once(
    session: AsyncSession | Session,
    name: str,
    *key: Part,
    fingerprint: object = None,
    wait: float | None = None,
    tables: Tables = DEFAULT_TABLES,
) -> AbstractAsyncContextManager[bool] | AbstractContextManager[bool]:
    """Run a block whose changes are committed once per key, however often and in however many processes it runs.

    The key is claimed in the ledger, in the transaction of the block's changes. That transaction is
    committed when the block ends, and rolled back when it raises; the key is then free. Within
    `session.begin()`, a savepoint or a handler, the block is part of that transaction: its changes
    and its key are committed with the rest, or rolled back together when it raises.

    While another transaction holds the same key, the block waits until that transaction has ended.

    Args:
        session: A session with READ COMMITTED transactions. Use `async with` for an `AsyncSession`,
            and `with` for a plain one.
        name: The job's name: up to 200 letters, digits and `. _ : -`. Keys of different names are different keys.
        key: What the job runs for, such as a date; several parts form one key.
        fingerprint: The job's input, where the same key with another input is an error: any value
            that JSON has, a model or a dataclass. Only its digest is stored. None compares nothing.
        wait: Seconds to wait for another run of the same key, 0 for an immediate error; on
            PostgreSQL only. None waits as long as the session's connection waits for any lock.
        tables: The table definitions, if they are not the default ones; as for `outbox.publish`.

    Returns:
        A context manager. It yields True in the run that has the key, and False after an earlier
        run has committed.

    Raises:
        InProgress: Another run of the same key did not end in time. Nothing was done.
        KeyReused: The key was used before, with another fingerprint.
        TransactionMisused: The block committed or rolled back the session.
        ConfigurationError: An argument cannot be used, the session does not find consumerkit's
            tables, or its connection is in autocommit.

    Example:
        async with once(session, "nightly-invoices", "2026-11-24") as first:
            if first:
                session.add_all(invoices)
    """
    if wait is not None and not wait >= 0:
        raise ConfigurationError(f"once({shown_word(name)}): wait={wait!r} is no number of seconds; give 0 or more")
    block = _Block(_key(name, key, fingerprint), wait, tables)
    return _Coroutine(session, block) if isinstance(session, AsyncSession) else _Plain(session, block)


def owner_name(kind: str, name: str) -> str:
    """Return a job's name among the handlers.

    Raises:
        ConfigurationError: The name is not valid.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{kind}name {shown_word(str(name))}: use up to 200 letters, digits and . _ : - for the name of a job"
        )
    return f"{kind}{name}"


def _key(name: str, parts: tuple[Part, ...], fingerprint: object) -> Key:
    owner = owner_name(JOB, name)
    raw = [_encoded(owner, part) for part in parts]
    if not raw or not all(raw):
        raise ConfigurationError(f"{owner}: give a key of at least one part, none of them empty")
    digest = possible_digests(*raw)[0]
    return Key(owner, digest, "/".join(map(shown, raw)), _fingerprint(owner, fingerprint))


def _encoded(owner: str, part: Part) -> bytes:
    if not isinstance(part, str | bytes | int | UUID | date):
        raise ConfigurationError(
            f"{owner}: a {type(part).__name__} is no key; give text, bytes, a number, UUID or date"
        )
    return encode_field(part) or b""


def _fingerprint(owner: str, value: object) -> bytes:
    if value is None:
        return UNTOLD
    try:
        return blake2b(canonical(value), digest_size=DIGEST_BYTES).digest()
    except NoStableBytes as error:
        raise ConfigurationError(f"{owner}: the fingerprint {error}") from None


class _Block:
    """The block's begin and end, on the plain session."""

    def __init__(self, key: Key, wait: float | None, tables: Tables) -> None:
        self._key = key
        self._wait = wait
        self._tables = tables
        self._found: SessionTables | None = None
        self._began: SessionTransaction | None = None
        self._savepoint: SessionTransaction | None = None

    def begin(self, session: Session) -> bool:
        if self._found is not None:
            raise RuntimeError(f"{self._key.owner}: this block has begun before; call once() for each")
        try:
            return self._begin(session)
        except BaseException:
            self.undo(session)
            raise

    def _begin(self, session: Session) -> bool:
        callers = is_callers(session)
        self._found = found_for(session, self._tables, self._key.owner)
        keys = self._found.keys
        if callers:
            keys.lock_writer(session.connection())
            self._savepoint = session.begin_nested()
        else:
            self._began = session.get_transaction()
            event.listen(session, "before_commit", self._refuse)
            mark(session)
        kept = keys.claim(session.connection(), self._key, self._wait)
        known = (self._key.fingerprint, kept.fingerprint) if kept is not None else ()
        if len(set(known)) > 1 and UNTOLD not in known:
            raise KeyReused(f"{self._key.owner}: the key {self._key.shown} was used before for something else")
        return kept is None

    def end(self, session: Session) -> None:
        assert self._found is not None
        if self._savepoint is not None:
            if session.get_nested_transaction() is not self._savepoint:
                raise misused(self._key.owner)
            self._savepoint.commit()
            return
        assert self._began is not None
        self._allow(session)
        try:
            commit(session, self._began, self._found.dialect, self._key.owner)
        except BaseException:
            session.rollback()
            raise

    def undo(self, session: Session) -> None:
        if self._savepoint is None:
            if self._began is not None:
                self._allow(session)
                session.rollback()
        elif is_open(session, self._savepoint):
            self._savepoint.rollback()

    def _refuse(self, session: Session) -> None:
        # A commit within the block would keep the key, and a crash would then lose the rest of the block.
        if not session.in_nested_transaction():
            raise misused(self._key.owner)

    def _allow(self, session: Session) -> None:
        if event.contains(session, "before_commit", self._refuse):
            event.remove(session, "before_commit", self._refuse)


class _Plain(AbstractContextManager[bool]):
    def __init__(self, session: Session, block: _Block) -> None:
        self._session = session
        self._block = block

    def __enter__(self) -> bool:
        return self._block.begin(self._session)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        (self._block.end if error is None else self._block.undo)(self._session)


class _Coroutine(AbstractAsyncContextManager[bool]):
    def __init__(self, session: AsyncSession, block: _Block) -> None:
        self._session = session
        self._block = block

    async def __aenter__(self) -> bool:
        return await self._session.run_sync(self._block.begin)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._session.run_sync(self._block.end if error is None else self._block.undo)
