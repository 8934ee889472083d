"""The customers: each presses the button five times, repeats what is not answered, and some change their minds."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx

CLICKS = 5
_CUSTOMERS = 40


@dataclass
class Clicked:
    """One order as its customer sees it.

    Attributes:
        customer: Who ordered.
        item: What.
        quantity: How much of it.
        answers: What each click was answered: status and body.
        cancelled: What the customer was answered who changed his mind; None where he did not.
    """

    customer: str
    item: str
    quantity: int
    answers: list[tuple[int, str]] = field(default_factory=list)
    cancelled: str | None = None


@dataclass
class Customers:
    """All of them.

    Attributes:
        urls: The web processes.
        seed: Who orders what.
        items: The names of what is for sale.
        clicked: The orders, as they are placed.
        tried: How many requests it took.
    """

    urls: Sequence[str]
    seed: int
    items: Sequence[str]
    clicked: list[Clicked] = field(default_factory=list)
    tried: int = 0

    async def order(self, count: int, at_once: int) -> None:
        """Place so many orders."""
        drawn = random.Random(self.seed)
        gate = asyncio.Semaphore(at_once)
        async with httpx.AsyncClient(timeout=30) as client, asyncio.TaskGroup() as group:
            for _ in range(count):
                clicked = Clicked(f"c{drawn.randrange(_CUSTOMERS)}", drawn.choice(self.items), drawn.randint(1, 3))
                group.create_task(self._one(client, gate, clicked, drawn.random() < 0.15))

    async def _one(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, clicked: Clicked, cancels: bool) -> None:
        async with gate:
            body = {"item": clicked.item, "quantity": clicked.quantity}
            key = uuid4().hex
            asked = [self._ask(client, "/orders", clicked.customer, key, body) for _ in range(CLICKS)]
            clicked.answers = await asyncio.gather(*asked)
            self.clicked.append(clicked)
            if cancels and clicked.answers[0][0] == 202:
                clicked.cancelled = await self._cancel(client, clicked, key)

    async def _cancel(self, client: httpx.AsyncClient, clicked: Clicked, key: str) -> str:
        """Cancel an order once its stock is reserved, so that its payment is under way."""
        order = httpx.Response(202, text=clicked.answers[0][1]).json()["message_id"]
        cookie = {"Cookie": f"customer={clicked.customer}"}
        for _ in range(100):
            try:
                found = await client.get(f"{random.choice(self.urls)}/orders/{order}", headers=cookie)
            except httpx.HTTPError:
                continue
            if found.status_code == 200 and found.json()["status"] != "placed":
                break
            await asyncio.sleep(0.1)
        answer = await self._ask(client, f"/orders/{order}/cancel", clicked.customer, f"cancel-{key}", {})
        assert answer[0] == 200, answer
        return str(httpx.Response(200, text=answer[1]).json()["status"])

    async def _ask(
        self, client: httpx.AsyncClient, path: str, customer: str, key: str, body: dict[str, Any]
    ) -> tuple[int, str]:
        """Send a request until it is answered, with the same key, to whichever process answers."""
        headers = {"Cookie": f"customer={customer}", "Idempotency-Key": f'"{key}"'}
        while True:
            self.tried += 1
            try:
                answer = await client.post(random.choice(self.urls) + path, json=body, headers=headers)
            except httpx.HTTPError:
                await asyncio.sleep(0.2)
                continue
            if answer.status_code < 500 and answer.status_code != 409:
                return answer.status_code, answer.text
            await asyncio.sleep(0.2)
