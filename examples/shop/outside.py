"""The other side: a payment provider and a mail server that fail in every way that is known of such services.

What they do is written to files that only grow, before they answer, and without a unique key: a double charge shows.
They are written by hand on bare sockets, since no library answers twice.
"""

import asyncio
import contextlib
import json
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Faults:
    """How often which fault happens, of a hundred requests.

    Attributes:
        fails: Answers 500 without having done anything.
        fails_late: Does it, and answers 500.
        hangs: Does nothing, and never answers.
        hangs_late: Does it once the client has hung up.
        twice: Answers twice on one connection.
        tries_later: The mail server answers 451.
        cut: The mail server takes the mail, and the connection ends before it has said so.
    """

    fails: int = 4
    fails_late: int = 4
    hangs: int = 1
    hangs_late: int = 1
    twice: int = 4
    tries_later: int = 10
    cut: int = 3
    seed: int | None = None


NONE = Faults(0, 0, 0, 0, 0, 0, 0)


@dataclass
class Outside:
    """The provider, the mail server, and what they have done."""

    directory: Path
    faults: Faults = field(default_factory=Faults)
    done: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    def __post_init__(self) -> None:
        self._random = random.Random(self.faults.seed)
        self._busy: dict[str, asyncio.Lock] = {}
        for kind in ("charge", "refund", "mail"):
            lines = lines_of(self.directory / f"{kind}s")
            self.done[kind] = {line.split()[0]: line.split()[1] for line in lines}

    def write(self, kind: str, *words: str) -> None:
        """Write down what is done, before anybody is told."""
        with (self.directory / f"{kind}s").open("a") as file:
            file.write(" ".join(words) + "\n")

    async def serve(self, http: int = 0, smtp: int = 0) -> tuple[asyncio.Server, asyncio.Server]:
        """Serve until the servers are closed."""
        started = await asyncio.start_server(self._quietly(self._http), "127.0.0.1", http)
        return started, await asyncio.start_server(self._quietly(self._smtp), "127.0.0.1", smtp)

    @staticmethod
    def _quietly(serve: Serve) -> Serve:
        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await serve(reader, writer)
            writer.close()

        return served

    def _fault(self, *names: str) -> str:
        """Draw what goes wrong with one request; nothing, mostly."""
        drawn = self._random.uniform(0, 100)
        for name in names:
            drawn -= float(getattr(self.faults, name))
            if drawn < 0:
                self.write("fault", name)
                return name
        return ""

    # The provider.

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.partition("\r\n")[0].split()
        fields = dict(re.findall(r"(?m)^([\w-]+): *(.*?)\r$", head.lower()))
        body = json.loads(await reader.readexactly(int(fields.get("content-length", 0))) or b"{}")
        if method == "GET":
            _, kind, key = path.split("/")
            if self._fault("fails"):
                return await self._answer(writer, 500, {})
            found = self.done[kind[:-1]].get(key)
            return await self._answer(writer, 404 if found is None else 200, {"number": found, "id": found})
        key = fields["idempotency-key"]
        fault = self._fault("fails", "fails_late", "hangs", "hangs_late", "twice")
        if fault == "fails":
            return await self._answer(writer, 500, {})
        if fault == "hangs":
            await reader.read()  # until the client hangs up
            return None
        async with self._busy.setdefault(key, asyncio.Lock()):
            if fault == "hangs_late":
                await reader.read()
                await asyncio.sleep(0.2)
            answer = self._charged(key, body) if path == "/charges" else self._refunded(key, body)
        for _ in range(2 if fault == "twice" else 1):
            await self._answer(writer, 500 if fault == "fails_late" else 200, answer)
        return None

    def _charged(self, key: str, body: dict[str, str]) -> dict[str, str]:
        if key not in self.done["charge"]:
            number = f"ch_{len(self.done['charge']) + 1}"
            self.write("charge", key, number, body["order"], str(body["cents"]))
            self.done["charge"][key] = number
        return {"number": self.done["charge"][key]}

    def _refunded(self, key: str, body: dict[str, str]) -> dict[str, str]:
        if key not in self.done["refund"]:
            self.write("refund", key, body["charge"])
            self.done["refund"][key] = body["charge"]
        return {"refunded": body["charge"]}

    @staticmethod
    async def _answer(writer: asyncio.StreamWriter, status: int, content: Mapping[str, str | None]) -> None:
        body = json.dumps(content)
        kind = "Content-Type: application/json\r\nConnection: close"
        writer.write(f"HTTP/1.1 {status} .\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()

    # The mail server.

    async def _smtp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example\r\n")
        while line := (await reader.readline()).decode().strip():
            command = line[:4].upper()
            if command == "QUIT":
                writer.write(b"221 bye\r\n")
                return
            if command == "DATA":
                writer.write(b"354 go on\r\n")
                mail = (await reader.readuntil(b"\r\n.\r\n")).decode()
                if self._taken(mail, writer):
                    return
            elif command == "MAIL" and self._fault("tries_later"):
                writer.write(b"451 try again later\r\n")
            else:
                writer.write(b"250 ok\r\n")
            await writer.drain()

    def _taken(self, mail: str, writer: asyncio.StreamWriter) -> bool:
        """Take a mail; return whether the connection ends before that is said."""
        found, order = re.search(r"(?i)message-id: <([^@]+)@", mail), re.search(r"for order (\S+)\.", mail)
        assert found is not None
        assert order is not None
        self.write("mail", found[1], order[1])
        self.done["mail"][found[1]] = order[1]
        if self._fault("cut"):
            return True
        writer.write(b"250 taken\r\n")
        return False


def lines_of(file: Path) -> list[str]:
    """Return the whole lines of a file; a line without its end was never told to anybody."""
    text = file.read_text() if file.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
