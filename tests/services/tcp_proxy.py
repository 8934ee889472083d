"""One TCP proxy in front of a server: it can be stalled, cut and mended; PostgreSQL's COMMIT can be lost or late."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from typing_extensions import override

Lose = Literal["nothing", "commit", "answer", "silence"]
_CHUNK = 65536


class Side(NamedTuple):
    """One end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class TcpProxy:
    """Forwards connections; an async context manager.

    Args:
        address: The server's, as `host:port`.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.port = 0
        self._target = (host, int(port))
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._accepted: set[asyncio.Task[None]] = set()
        self._forwarding: set[asyncio.Future[None]] = set()

    @property
    def address(self) -> str:
        """Where clients connect to."""
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections of clients are open."""
        return len(self._accepted)

    @property
    def stalled(self) -> bool:
        return not self._flows.is_set()

    def stall(self) -> None:
        """Pass nothing on, either way; connections stay, and new ones are accepted."""
        self._flows.clear()

    def flow(self) -> None:
        """Pass everything on again, and what was kept."""
        self._flows.set()

    async def cut(self) -> None:
        """Close all connections, and refuse new ones."""
        assert self._server is not None
        self._server.close()
        while self._accepted:
            for forwarding in self._forwarding:
                forwarding.cancel()
            await asyncio.wait(self._accepted)

    async def mend(self) -> None:
        """Accept connections again, at the same address."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._accepted.add(task)
        task.add_done_callback(self._accepted.discard)
        near, far = Side(reader, writer), Side(*await asyncio.open_connection(*self._target))
        forwarding = asyncio.ensure_future(self.forward(near, far))
        self._forwarding.add(forwarding)
        await asyncio.wait({forwarding})
        self._forwarding.discard(forwarding)
        if not forwarding.cancelled():
            forwarding.exception()  # the connection is over, whatever ended it
        for side in (near, far):
            with suppress(OSError):
                side.writer.close()

    async def forward(self, near: Side, far: Side) -> None:
        """Pass on what a client and the server send, until one of them ends the connection."""
        await until_one_ends(self.pass_on(near, far), self.pass_on(far, near))

    async def pass_on(self, source: Side, to: Side) -> None:
        """Pass on one way."""
        with suppress(ConnectionError):
            while data := await source.reader.read(_CHUNK):
                await self._flows.wait()
                to.writer.write(data)
                await to.writer.drain()


async def until_one_ends(*ways: Coroutine[Any, Any, None]) -> None:
    """Run both ways of a connection until one of them ends."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class CommitProxy(TcpProxy):
    """Loses PostgreSQL's COMMIT, or the answer to it.

    What becomes of a COMMIT, by its number, `plan` says: "commit" never reaches the server, "answer" is carried out and
    its answer is lost, both with the connection closed; "silence" is carried out and never answered.

    Attributes:
        lost: How many were lost.
    """

    def __init__(self, address: str, plan: Callable[[int], Lose] = lambda _: "nothing") -> None:
        super().__init__(address)
        self.lost = 0
        self.commits = 0
        self._plan = plan

    @override
    async def forward(self, near: Side, far: Side) -> None:
        mode: Lose = "nothing"

        async def up() -> None:
            nonlocal mode
            while data := await near.reader.read(_CHUNK):
                # Both drivers send COMMIT as a simple query of its own: 'Q', length, the text, NUL.
                if mode == "nothing" and b"COMMIT" in data:
                    mode = self._decided()
                    if mode == "commit":
                        return
                far.writer.write(data)
                await far.writer.drain()

        async def down() -> None:
            while data := await far.reader.read(_CHUNK):
                if mode == "silence":
                    continue
                if mode == "answer":
                    # The server has answered, so it has committed; the client sees its connection end.
                    return
                near.writer.write(data)
                await near.writer.drain()

        await until_one_ends(up(), down())

    def _decided(self) -> Lose:
        """Say what becomes of a COMMIT that has just come by."""
        self.commits += 1
        lose = self._plan(self.commits)
        self.lost += lose != "nothing"
        return lose


class LateCommits(TcpProxy):
    """Has the COMMIT of a transaction arrive late.

    The first transaction whose statements hold `mark` has its COMMIT kept back for `delay` seconds. With `cut`, its
    client sees the connection end at once, while the server's session lives on until the COMMIT has arrived: until then
    it cannot be told how it will end.

    Attributes:
        kept: When the COMMIT was kept back, by the monotonic clock.
        landed: When it was let go.
    """

    def __init__(self, address: str, mark: bytes, delay: float, *, cut: bool) -> None:
        super().__init__(address)
        self.kept: float | None = None
        self.landed: float | None = None
        self._mark = mark
        self._delay = delay
        self._cut = cut

    @override
    async def forward(self, near: Side, far: Side) -> None:
        down = asyncio.ensure_future(self.pass_on(far, near))
        try:
            await self._up(near, far)
        finally:
            down.cancel()
            await asyncio.gather(down, return_exceptions=True)

    async def _up(self, near: Side, far: Side) -> None:
        marked = False
        with suppress(ConnectionError):
            while data := await near.reader.read(_CHUNK):
                marked = marked or self._mark in data
                if marked and self.kept is None and b"COMMIT" in data:
                    self.kept = time.monotonic()
                    if self._cut:
                        near.writer.close()
                    await asyncio.sleep(self._delay)
                    self.landed = time.monotonic()
                far.writer.write(data)
                await far.writer.drain()
