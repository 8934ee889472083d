"""A TCP proxy in front of a server, that loses what a test wants lost: PostgreSQL's COMMIT, or the answer to it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

Lose = Literal["nothing", "commit", "answer", "silence"]
_CHUNK = 65536


class CommitProxy:
    """Forwards connections to PostgreSQL; an async context manager.

    Attributes:
        lose: What becomes of the next COMMIT: "commit" never reaches the server, "answer" is carried out and its answer
            is lost, both with the connection closed; "silence" is carried out and nobody ever answers. After one it is
            "nothing" again, unless `plan` says otherwise.
        lost: How many were lost.
    """

    def __init__(self, host: str, port: int, plan: Callable[[int], Lose] = lambda _: "nothing") -> None:
        self.lost = 0
        self.commits = 0
        self._target = (host, port)
        self._plan = plan
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        connection = _Connection(self, reader, writer, far_reader, far_writer)
        await connection.run()

    def decide(self) -> Lose:
        """Say what becomes of a COMMIT that has just come by."""
        self.commits += 1
        lose = self._plan(self.commits)
        self.lost += lose != "nothing"
        return lose


class _Connection:
    """One client's connection, both ways."""

    def __init__(
        self,
        proxy: CommitProxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._near = (reader, writer)
        self._far = (far_reader, far_writer)
        self._mode: Lose = "nothing"

    async def run(self) -> None:
        ways = [asyncio.ensure_future(self._up()), asyncio.ensure_future(self._down())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for _, writer in (self._near, self._far):
                with suppress(OSError):
                    writer.close()
                    await writer.wait_closed()

    async def _up(self) -> None:
        while data := await self._near[0].read(_CHUNK):
            # Both drivers send COMMIT as a simple query of its own: 'Q', length, the text, NUL.
            if self._mode == "nothing" and b"COMMIT" in data:
                self._mode = self._proxy.decide()
                if self._mode == "commit":
                    return
            self._far[1].write(data)
            await self._far[1].drain()

    async def _down(self) -> None:
        while data := await self._far[0].read(_CHUNK):
            if self._mode == "silence":
                continue
            if self._mode == "answer":
                # The server has answered, so it has committed; the client sees its connection end.
                return
            self._near[1].write(data)
            await self._near[1].drain()
