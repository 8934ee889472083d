"""One run of the shop: processes, customers, kills, and the books."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import Session

from examples.shop.__main__ import stocked
from examples.shop.tables import Order
from tests.services import KafkaServer
from tests.services.process import free_port
from tests.shop.books import Line, Seen, check, waiting
from tests.shop.customers import Customers
from tests.shop.processes import Part, Parts

PARTITIONS = 6
_STANDSTILL = 180.0  # seconds without any change after which a run is given up


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        orders: How many; each is clicked for five times.
        kills: How many processes are killed with SIGKILL, one after another, anywhere.
        seed: Of what is ordered, of who is killed, and of what fails outside.
        web, workers: How many processes of them there are.
        at_once: How many customers there are at a time.
        failpoint: Where the first worker kills itself once.
    """

    orders: int
    kills: int
    seed: int = 1
    web: int = 2
    workers: int = 2
    at_once: int = 10
    failpoint: str = ""


@dataclass
class Result:
    """What became of it."""

    lines: list[Line]
    killed: Counter[str]
    faults: Counter[str]
    seconds: float
    requests: int
    refunds: int = 0

    @property
    def is_well(self) -> bool:
        """Whether everything is right."""
        return not any(line.wrong for line in self.lines)


@dataclass
class Run:
    """A run on servers that are there.

    Attributes:
        plan: What is run.
        database: An empty PostgreSQL database.
        kafka: The broker.
        directory: Where the other side writes down what it does, and the processes' logs are.
        tell: Called with how many orders are placed and settled, and how many processes were killed.
    """

    plan: Plan
    database: str
    kafka: KafkaServer
    directory: Path
    tell: Callable[[int, int, int], None] = lambda *_: None
    stock: dict[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        # Two orders in three have an average of two pieces: the last item is sold out halfway.
        pieces = self.plan.orders
        self.stock = {"green": pieces, "black": pieces, "rare": max(1, pieces // 3)}

    def play(self) -> Result:
        """Run it to its end, whatever that is."""
        engine = create_engine(self.database)
        try:
            return asyncio.run(self._play(engine))
        finally:
            engine.dispose()

    async def _play(self, engine: Engine) -> Result:
        prefix = f"t{uuid4().hex[:8]}."
        with Session(engine) as session, session.begin():
            stocked(session, [(name, 750, left) for name, left in self.stock.items()])
        for name in ("placed", "reserved", "paid"):
            await asyncio.to_thread(self.kafka.create_topic, f"{prefix}shop.{name}", PARTITIONS)
        ports = [free_port() for _ in range(self.plan.web)]
        parts = Parts(self._parts(prefix, ports), self.plan.seed)
        customers = Customers([f"http://127.0.0.1:{port}" for port in ports], self.plan.seed, list(self.stock))
        begun = time.monotonic()
        parts.start()
        try:
            ordering = asyncio.create_task(customers.order(self.plan.orders, self.plan.at_once))
            await self._until_settled(engine, parts, ordering)
            await ordering
        finally:
            parts.end()
        seconds = time.monotonic() - begun
        lines = list(check(engine, self.directory, customers.clicked, self.stock))
        seen = Seen.read(self.directory)
        return Result(lines, parts.killed, seen.faults, seconds, customers.tried, seen.refunds.total())

    def _parts(self, prefix: str, ports: Sequence[int]) -> list[Part]:
        http, smtp = free_port(), free_port()
        environment = {
            **os.environ,
            "CONSUMERKIT_DATABASE": self.database,
            "CONSUMERKIT_TOPIC_PREFIX": prefix,
            **{f"CONSUMERKIT_HANDLERS__SHOP_{name}__GROUP": f"{prefix}{name.lower()}" for name in _HANDLERS},
            "KAFKA": self.kafka.bootstrap,
            "SHOP_OUTSIDE": f"http://127.0.0.1:{http}",
            "SHOP_SMTP": str(smtp),
        }
        armed = {**environment, "CONSUMERKIT_FAILPOINT": self.plan.failpoint} if self.plan.failpoint else environment
        logs = self.directory / "logs"
        logs.mkdir(exist_ok=True)
        outside = ["outside", str(self.directory), str(http), str(smtp), str(self.plan.seed)]
        return [
            Part("outside", outside, environment, logs / "outside"),
            *(Part("web", ["web", str(port)], environment, logs / f"web-{port}") for port in ports),
            *(
                Part("worker", ["worker"], environment if n else armed, logs / f"worker-{n}")
                for n in range(self.plan.workers)
            ),
        ]

    async def _until_settled(self, engine: Engine, parts: Parts, ordering: "asyncio.Task[None]") -> None:
        """Kill, one after another, as the orders get on; return when nothing is on its way any more."""
        looked: tuple[int, int, tuple[int, ...]] | None = None
        since, killed = time.monotonic(), 0
        while True:
            await asyncio.sleep(0.5)
            if ordering.done():
                ordering.result()
            parts.restart_killed()
            now = await asyncio.to_thread(_counted, engine)
            placed, settled, left = now
            self.tell(placed, settled, parts.killed.total())
            if ordering.done() and not any(left) and killed >= self.plan.kills:
                return
            # Each kill has its share of the way, which is half placing and half settling.
            if killed < self.plan.kills and (placed + settled) * (self.plan.kills + 1) >= 2 * self.plan.orders * (
                killed + 1
            ):
                parts.kill_one()
                killed += 1
            if now != looked:
                looked, since = now, time.monotonic()
            assert time.monotonic() - since < _STANDSTILL, f"nothing has moved for {_STANDSTILL:.0f} s: {now}"


_HANDLERS = ("STOCK", "PAYMENT", "MAIL", "POINTS")


def _counted(engine: Engine) -> tuple[int, int, tuple[int, ...]]:
    with Session(engine) as session:
        placed = session.scalars(select(func.count()).select_from(Order)).one()
        left = waiting(session)
        return placed, placed - left[0], left
