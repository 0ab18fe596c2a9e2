"""What browsers receive: the newest value of every section, and the trades they have not seen.

A browser is sent what changed since its last message. If it reads slowly it gets fewer messages: of a
section only the newest value, of the tape what the ring still holds. So no queue grows, and nothing waits for
a browser. Every value is serialized once, for all browsers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import orjson

TAPE_TRADES = 20_000
"""Trades that the ring holds, ten seconds of 2,000 a second, and the page."""
GREETING_TRADES = 500
"""Trades that a browser which has just come is sent, and that a board which starts reads from the lake."""
PACE_S = 0.04
"""Least seconds between two messages to a browser: more than a screen shows is not sent."""
HEARTBEAT_S = 10.0
"""A browser notices by a missing heartbeat that the board is gone."""


class Feed:
    """The sections and the tape of one board. Use it on the event loop's thread.

    Parameters
    ----------
    epoch
        Identifies this board. A browser that reconnects to another one starts again.
    """

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self._sections: dict[str, tuple[int, bytes]] = {}
        self._tape: deque[tuple[int, int, bytes]] = deque()  # first trade, number of trades, JSON
        self._version = self._trades = 0
        self._changed = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """End the messages of every browser."""
        self._closed = True
        self._wake()

    def set(self, section: str, value: Any) -> None:
        """Replace the value of a section; browsers get it if it differs."""
        text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
        if self._sections.get(section, (0, b""))[1] != text:
            self._version += 1
            self._sections[section] = self._version, text
            self._wake()

    def add_trades(self, columns: dict[str, Any], count: int) -> None:
        """Add a batch of trades to the tape, as columns of equal length."""
        first, self._trades = self._trades, self._trades + count
        text = orjson.dumps({"first": first, **columns}, option=orjson.OPT_SERIALIZE_NUMPY)
        self._tape.append((first, count, text))
        while self._trades - self._tape[0][0] - self._tape[0][1] >= TAPE_TRADES:
            self._tape.popleft()
        self._wake()

    async def messages(self, last_event_id: str = "") -> AsyncIterator[bytes]:
        """Server-sent events for one browser, until the feed is closed.

        `last_event_id` is what a browser that reconnects sends: its tape continues there.
        """
        version, trades = 0, max(0, self._trades - GREETING_TRADES)
        epoch, _, number = last_event_id.partition(":")
        if epoch == self.epoch and number.isdecimal() and int(number) <= self._trades:
            trades = int(number)
        while not self._closed:
            changed = self._changed
            parts = [
                b'"%s":%s' % (n.encode(), text) for n, (v, text) in self._sections.items() if v > version
            ]
            batches = [text for first, count, text in self._tape if first + count > trades]
            if batches:
                parts.append(b'"tape":[%s]' % b",".join(batches))
            version, trades = self._version, self._trades
            if parts:
                yield b"id: %s:%d\ndata: {%s}\n\n" % (self.epoch.encode(), trades, b",".join(parts))
                await asyncio.sleep(PACE_S)
            try:
                await asyncio.wait_for(changed.wait(), HEARTBEAT_S)
            except TimeoutError:
                yield b": alive\n\n"

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
