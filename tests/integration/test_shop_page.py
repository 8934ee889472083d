"""The shop's page in a real Chromium: five clicks are one order, and the page shows what becomes of it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from consumerkit.http import status_page
from examples.shop.__main__ import opened
from examples.shop.outside import NONE, lines_of
from tests.services.chromium import Chromium, Page

COUNTED = """
    window.streams = window.polls = 0;
    const Source = window.EventSource, fetched = window.fetch;
    window.EventSource = class extends Source { constructor(...given) { super(...given); window.streams += 1; } };
    window.fetch = (url, how) => { window.polls += String(url).includes("/status/"); return fetched(url, how); };
"""
PICTURES = Path("build/shop")


def ended(page: Page, text: str) -> dict[str, str]:
    """Wait until the page says how it ended; return what each line of it says."""
    page.until(f"document.querySelector('#outcome').textContent.includes({text!r})")
    told: dict[str, str] = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('#steps li')].map(row =>"
        " [row.querySelector('b').textContent, row.querySelector('em').textContent]))"
    )
    return told


def play(url: str, directory: Path) -> None:
    """What a person does in the browser."""
    with Chromium.start(directory) as browser:
        page = browser.new_page(COUNTED)
        for address, by_events in ((url, True), (f"{url}/?poll", False)):
            page.open(address)
            page.click("button[type=submit]", times=5)
            rows = ended(page, "Thank you!")
            assert page.evaluate("document.querySelector('#count').textContent") == "5 clicks, 1 order"
            assert (rows["Stock"], rows["Payment"], rows["Mail"]) == ("reserved", "paid", "sent")
            assert rows["Points"] == ("7 points" if by_events else "14 points")
            assert (page.evaluate("streams > 0"), page.evaluate("polls > 0")) == (by_events, not by_events)
            picture(page, "paid" if by_events else "polled")
        page.open(url)
        page.click("input[value=rare]")
        page.click("button[type=submit]", times=5)
        rows = ended(page, "Sold out. You were not charged.")
        assert rows == {"Stock": "sold out", "Payment": "not needed", "Mail": "not needed", "Points": "not needed"}
        picture(page, "sold-out")


def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(PICTURES / f"{name}.png")


@pytest.mark.timeout(1200)
async def test_five_clicks_are_one_order_and_the_page_shows_what_became_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = 0, status_page._Page._look

    async def sometimes(self: Any, name: str, message_id: str) -> Any:
        nonlocal looks
        looks += 1
        if looks % 3 == 1:  # which no stream of events may end with, nor the page stand still at
            raise OperationalError("SELECT", {}, ConnectionError())
        return await look(self, name, message_id)

    monkeypatch.setattr(status_page._Page, "_look", sometimes)
    goods = [("green", 750, 10), ("rare", 4_800, 0)]
    async with opened(tmp_path, NONE, goods=goods) as url:
        await asyncio.to_thread(play, url, tmp_path)
    assert looks > 3
    assert (len(lines_of(tmp_path / "charges")), len(lines_of(tmp_path / "mails"))) == (2, 2)
    assert lines_of(tmp_path / "refunds") == []
