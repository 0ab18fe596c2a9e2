"""What browsers receive: everything once, the newest values, and less if they are slow."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import orjson

from nq_pipeline.board import feed as module
from nq_pipeline.board.feed import Feed


class Browser:
    """A browser of a feed, and what it was sent."""

    def __init__(self, feed: Feed, last_event_id: str = "") -> None:
        self._messages: AsyncIterator[bytes] = feed.messages(last_event_id)
        self.last_event_id = last_event_id
        self.prices: list[float] = []

    async def receive(self) -> dict[str, Any]:
        """The next message."""
        text = await asyncio.wait_for(anext(self._messages), 10)
        found = re.fullmatch(rb"id: (.*)\ndata: (.*)\n\n", text)
        assert found, text
        self.last_event_id = found[1].decode()
        message: dict[str, Any] = orjson.loads(found[2])
        for batch in message.get("tape", []):
            self.prices += batch["price"]
        return message


def add_trades(feed: Feed, *prices: float) -> None:
    feed.add_trades({"price": list(prices)}, len(prices))


def test_a_new_browser_gets_all_sections_and_the_newest_trades() -> None:
    async def play() -> None:
        feed = Feed("a")
        feed.set("future", 1)
        feed.set("gaps", {"open": 0})
        add_trades(feed, 1.0, 2.0)
        message = await Browser(feed).receive()
        assert message == {"future": 1, "gaps": {"open": 0}, "tape": [{"first": 0, "price": [1.0, 2.0]}]}

    asyncio.run(play())


def test_only_what_changed_is_sent() -> None:
    async def play() -> None:
        feed = Feed("a")
        feed.set("future", 1)
        feed.set("gaps", 0)
        browser = Browser(feed)
        await browser.receive()
        feed.set("future", 1)
        feed.set("gaps", 1)
        assert await browser.receive() == {"gaps": 1}
        add_trades(feed, 3.0)
        assert await browser.receive() == {"tape": [{"first": 0, "price": [3.0]}]}

    asyncio.run(play())


def test_a_slow_browser_gets_the_newest_value_and_every_trade_of_the_ring() -> None:
    async def play() -> None:
        feed = Feed("a")
        slow, fast = Browser(feed), Browser(feed)
        add_trades(feed, -1.0)
        await slow.receive()
        for number in range(20):
            feed.set("future", number)
            add_trades(feed, float(number))
            await fast.receive()
        assert fast.prices == [-1.0, *map(float, range(20))]
        message = await slow.receive()
        assert message["future"] == 19 and slow.prices == fast.prices

    asyncio.run(play())


def test_the_ring_is_bounded_and_a_hole_shows_in_the_numbers() -> None:
    async def play() -> None:
        feed = Feed("a")
        browser = Browser(feed)
        add_trades(feed, 0.0)
        await browser.receive()
        batch = [1.0] * 1_000
        for _ in range(50):
            add_trades(feed, *batch)
        message = await browser.receive()
        assert len(message["tape"]) == module.TAPE_TRADES // 1_000
        assert message["tape"][0]["first"] == 50_001 - module.TAPE_TRADES > 1
        assert message["tape"][-1]["first"] == 49_001

    asyncio.run(play())


def test_a_browser_that_reconnects_continues_where_it_was() -> None:
    async def play() -> None:
        feed = Feed("a")
        add_trades(feed, 1.0)
        browser = Browser(feed)
        await browser.receive()
        add_trades(feed, 2.0)
        again = Browser(feed, browser.last_event_id)
        await again.receive()
        assert again.prices == [2.0]
        for unknown in ("b:1", "a:99", "a:x", "nonsense"):
            other = Browser(feed, unknown)
            await other.receive()
            assert other.prices == [1.0, 2.0], unknown

    asyncio.run(play())
