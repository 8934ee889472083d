"""A TCP proxy in front of PostgreSQL that has the COMMIT of a transaction arrive late."""

import asyncio
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

_CHUNK = 65536


class LateCommits:
    """Forwards connections; an async context manager.

    The first transaction whose statements hold `mark` has its COMMIT kept back for `delay` seconds. With `cut`, its
    client sees the connection end at once, while the server's session lives on until the COMMIT has arrived: nobody
    who looks meanwhile can tell how it will end.

    Attributes:
        kept: When the COMMIT was kept back, by the monotonic clock.
        landed: When it was let go.
    """

    def __init__(self, host: str, port: int, mark: bytes, delay: float, *, cut: bool) -> None:
        self.kept: float | None = None
        self.landed: float | None = None
        self._target = (host, port)
        self._mark = mark
        self._delay = delay
        self._cut = cut
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
        down = asyncio.ensure_future(_pump(far_reader, writer))
        try:
            await self._up(reader, writer, far_writer)
        finally:
            down.cancel()
            await asyncio.gather(down, return_exceptions=True)
            for one in (writer, far_writer):
                with suppress(OSError):
                    one.close()

    async def _up(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        marked = False
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                marked = marked or self._mark in data
                if marked and self.kept is None and b"COMMIT" in data:
                    self.kept = time.monotonic()
                    if self._cut:
                        near.close()
                    await asyncio.sleep(self._delay)
                    self.landed = time.monotonic()
                far.write(data)
                await far.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
