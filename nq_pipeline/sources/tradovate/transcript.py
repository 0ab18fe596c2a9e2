"""Read the transcript of a conversation with Tradovate's market-data websocket. Pure.

A transcript has every frame of the server as it came, one a line, and between them our own
subscriptions on lines that start with `>`. Frames of the server: `o` at the start, `h` heartbeat, `a[…]`
a list of messages, `c[code,"…"]` the end. Updates of a quote are partial: every entry, and the price
or size in it, may be missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl

from nq_pipeline.errors import BadPayload, DeadlineReached, NotEntitled, RateLimited, SourceError, Unavailable
from nq_pipeline.lake.tables import INSTANT
from nq_pipeline.sources.failures import quoted
from nq_pipeline.sources.rows import FUTURE, MOST_CONTRACTS, OTHER
from nq_pipeline.sources.tradovate.parse import parse_instant
from nq_pipeline.transport.json_columns import loads

AUTHORIZE_ID = 1
"""Request ids are unique per connection; the login is always the first."""

PRICES = {
    "bid": "Bid",
    "ask": "Offer",
    "last": "Trade",
    "open": "OpeningPrice",
    "high": "HighPrice",
    "low": "LowPrice",
    "settlement": "SettlementPrice",
}
SIZES = {
    "bid_size": "Bid",
    "ask_size": "Offer",
    "volume": "TotalTradeVolume",
    "open_interest": "OpenInterest",
}
QUOTES = pl.Schema(
    {
        "contract_id": pl.Int64(),
        "quote_ts": INSTANT,
        **dict.fromkeys(PRICES, pl.Float64()),
        **dict.fromkeys(SIZES, pl.Int64()),
    }
)


@dataclass
class Transcript:
    """What the lines read so far say.

    Attributes
    ----------
    subscribed
        Contract id by id of the request that subscribed to it.
    answered, refused
        Ids of requests that were answered, and of those that were refused with the reason.
    quotes
        Newest value of every cell by contract id.
    error
        What ended the conversation early.
    dropped
        `malformed_frame`, `malformed_message`, `malformed_cell`, `fractional_size`, `future_instant`
        (later than `latest`), `other_series` (a contract that was not subscribed to), `unknown_event`.
    """

    subscribed: dict[int, int] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    refused: dict[int, SourceError] = field(default_factory=dict)
    quotes: dict[int, dict[str, Any]] = field(default_factory=dict)
    authorized: bool = False
    error: SourceError | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    latest: datetime | None = None

    @classmethod
    def read(cls, lines: bytes, latest: datetime | None = None) -> Transcript:
        """Read a whole transcript; nothing in it raises."""
        transcript = cls(latest=latest)
        for line in lines.decode(errors="replace").split("\n"):
            transcript.add(line)
        return transcript

    def add(self, line: str) -> None:
        """Read one more line."""
        match line[:1]:
            case ">":
                self._add_own(line[1:])
            case "a":
                self._add_messages(line[1:])
            case "c":
                self.error = self.error or Unavailable("Tradovate closed the connection")
            case "o" | "h" | "":
                pass
            case _:
                self.dropped["malformed_frame"] += 1

    @property
    def unreadable(self) -> BadPayload | None:
        """The error when quotes came and not one cell could be read; else None."""
        if any(self.quotes.values()) or not self.unusable:
            return None
        return BadPayload(f"none of {self.unusable} parts of the quotes could be used")

    @property
    def unusable(self) -> int:
        """How many parts of the requested quotes could not be used."""
        return self.dropped.total() - self.dropped[OTHER]

    @property
    def all_answered(self) -> bool:
        """Whether every subscription was answered or refused."""
        return self.subscribed.keys() <= self.answered

    @property
    def waiting(self) -> bool:
        """Whether a subscription is still without an answer, or was accepted and is without a quote."""
        return any(
            number not in self.answered or (number not in self.refused and contract_id not in self.quotes)
            for number, contract_id in self.subscribed.items()
        )

    def price(self, contract_id: int | None) -> float | None:
        """The last price of a contract, or else its mid; None without either."""
        quote = self.quotes.get(contract_id or 0, {})
        bid, ask = quote.get("bid"), quote.get("ask")
        mid = (bid + ask) / 2 if bid and ask else None
        price = quote.get("last") or mid  # 0 is no price
        return None if price is None else float(price)

    def frame(self) -> pl.DataFrame:
        """One row per quoted contract; columns as `QUOTES`. Prices of 0 are null."""
        rows = [
            {"contract_id": contract_id, **quote}
            for contract_id, quote in self.quotes.items()
            if -(2**63) <= contract_id < 2**63
        ]
        frame = pl.DataFrame(rows, schema=QUOTES)
        return frame.with_columns(
            **{name: pl.when(pl.col(name) != 0).then(name) for name in PRICES},
            bid_size=pl.when(pl.col("bid") != 0).then("bid_size"),
            ask_size=pl.when(pl.col("ask") != 0).then("ask_size"),
        )

    def _add_own(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "deadline":
            self.error = DeadlineReached("the time allowed for Tradovate ran out while quotes came in")
        elif word == "lost":
            self.error = self.error or Unavailable("the connection to Tradovate was lost")
        elif word == "unanswered":
            left = len(self.subscribed.keys() - self.answered)
            self.error = self.error or Unavailable(
                f"Tradovate left {left} of {len(self.subscribed)} subscriptions unanswered"
            )
        else:
            number, _, contract_id = rest.partition(" ")
            if number.isdecimal() and contract_id.isdecimal():
                self.subscribed[int(number)] = int(contract_id)

    def _add_messages(self, text: str) -> None:
        try:
            messages = loads(text)
        except ValueError:
            messages = None
        if not isinstance(messages, list):
            self.dropped["malformed_frame"] += 1
            return
        for message in messages:
            if not isinstance(message, dict):
                self.dropped["malformed_message"] += 1
            elif "s" in message:
                self._add_response(message)
            elif message.get("e") == "md":
                self._add_quotes(message.get("d"))
            elif message.get("e") == "shutdown":
                self.error = _error_of_shutdown(message.get("d"))
            else:
                self.dropped["unknown_event"] += 1

    def _add_response(self, message: Mapping[str, Any]) -> None:
        number, status = message.get("i"), message["s"]
        if not isinstance(number, int) or not isinstance(status, int):
            self.dropped["malformed_message"] += 1
            return
        data = message.get("d")
        words = data.get("errorText") if isinstance(data, dict) else data
        if status == 200 and not (isinstance(data, dict) and words):
            self.authorized = self.authorized or number == AUTHORIZE_ID
        elif status in (423, 429):
            self.error = RateLimited(
                "Tradovate answers 429 on its websocket: too many requests; wait an hour"
            )
        else:
            kind = NotEntitled if status in (401, 403) else Unavailable
            self.refused[number] = kind(f"Tradovate refuses ({status}){quoted(words)}")
        self.answered.add(number)

    def _add_quotes(self, data: object) -> None:
        quotes = data.get("quotes") if isinstance(data, dict) else None
        for quote in quotes if isinstance(quotes, list) else []:
            contract_id = quote.get("contractId") if isinstance(quote, dict) else None
            entries = quote.get("entries") if isinstance(quote, dict) else None
            if type(contract_id) is not int or not isinstance(entries, dict):
                self.dropped["malformed_message"] += 1
                continue
            if contract_id not in self.quotes and contract_id not in self.subscribed.values():
                self.dropped[OTHER] += 1
                continue
            cells = self.quotes.setdefault(contract_id, {})
            stamp = self._instant(quote.get("timestamp"))
            if stamp is not None:
                cells["quote_ts"] = max(stamp, cells.get("quote_ts", stamp))
            for name, entry in PRICES.items():
                self._add_cell(cells, name, entries.get(entry), "price")
            for name, entry in SIZES.items():
                self._add_cell(cells, name, entries.get(entry), "size")

    def _add_cell(self, cells: dict[str, Any], name: str, entry: object, member: str) -> None:
        """Store one number of an update, if it is there and is one."""
        value = entry.get(member) if isinstance(entry, dict) else entry
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(entry, dict):
            self.dropped["malformed_cell"] += 1
        elif member == "price":
            cells[name] = float(value)
        elif value != int(value):
            self.dropped["fractional_size"] += 1
        elif not 0 <= value <= MOST_CONTRACTS:
            self.dropped["malformed_cell"] += 1
        else:
            cells[name] = int(value)

    def _instant(self, text: object) -> datetime | None:
        """An instant with a time zone, in UTC; null and counted otherwise."""
        if text is None:
            return None
        instant = parse_instant(str(text))
        if instant is None or instant.tzinfo is None:
            self.dropped["malformed_cell"] += 1
            return None
        if self.latest is not None and instant > self.latest:
            self.dropped[FUTURE] += 1
            return None
        return instant.astimezone(UTC)


def _error_of_shutdown(data: object) -> SourceError:
    code = data.get("reasonCode") if isinstance(data, dict) else None
    if code in ("ConnectionQuotaReached", "IPQuotaReached"):
        return RateLimited(f"Tradovate ends the connection: {code}")
    return Unavailable(f"Tradovate ends the connection{quoted(code)}")
