"""The shop's ways to the outside: a payment provider over HTTP, and a mail server over SMTP."""

import smtplib
from dataclasses import dataclass
from email.message import EmailMessage

import httpx
from pydantic import BaseModel

TIMEOUT = 2.0  # seconds after which the shop hangs up, whatever the other side does then


class Charge(BaseModel):
    """What the provider says of a charge."""

    number: str


@dataclass(frozen=True)
class PaymentProvider:
    """A provider that knows a repetition by the header `Idempotency-Key`, as most do."""

    url: str
    client: httpx.AsyncClient

    async def charge(self, key: str, order_id: str, cents: int) -> Charge:
        return Charge.model_validate(await self._post("/charges", key, {"order": order_id, "cents": cents}))

    async def find(self, key: str) -> Charge | None:
        """Return the charge that was made under a key."""
        answer = await self.client.get(f"{self.url}/charges/{key}")
        if answer.status_code == 404:
            return None
        return Charge.model_validate(answer.raise_for_status().json())

    async def refund(self, key: str, charge: Charge) -> None:
        await self._post("/refunds", key, {"charge": charge.number})

    async def _post(self, path: str, key: str, body: dict[str, object]) -> object:
        answer = await self.client.post(self.url + path, json=body, headers={"Idempotency-Key": key})
        return answer.raise_for_status().json()


@dataclass(frozen=True)
class MailService:
    """A mail server, and the page of its operator that tells whether a mail was taken.

    SMTP knows no repetition: who sends twice has two mails delivered. So it is asked before a mail is sent again.
    """

    host: str
    port: int
    log: str

    def send(self, key: str, to: str, text: str) -> str:
        mail = EmailMessage()
        mail["Message-ID"] = f"<{key}@shop.example>"
        mail["From"], mail["To"], mail["Subject"] = "shop@shop.example", f"{to}@customers.example", "Your order"
        mail.set_content(text)
        with smtplib.SMTP(self.host, self.port, timeout=TIMEOUT) as server:
            server.send_message(mail)
        return str(mail["Message-ID"])

    def find(self, key: str) -> str | None:
        """Return the ID of a mail that was taken under a key."""
        answer = httpx.get(f"{self.log}/mails/{key}", timeout=TIMEOUT)
        return None if answer.status_code == 404 else str(answer.raise_for_status().json()["id"])
