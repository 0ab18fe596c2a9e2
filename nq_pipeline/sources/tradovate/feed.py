"""Quotes over Tradovate's market-data websocket: the conversation, and what its transcript says.

Frames of the server: `o` at the start, `h` heartbeat, `a[…]` a list of messages, `c[code,"…"]` the
end. Frames of the client: endpoint, request id, query and body on four lines, and `[]` every 2.5
seconds. Updates of a quote are partial: every entry, and price or size in it, may be missing.

`converse` holds the conversation and returns its transcript: every frame of the server as it came,
one a line, and between them our own subscriptions on lines that start with `>`. `QuoteBook` reads a
transcript, while it grows and again from the archive. The token is in neither.

The protocol is documented by the vendor and was seen in public projects; that options can be
subscribed to by contract id like futures is our assumption.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    DeadlineReached,
    NotEntitled,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.lake.tables import INSTANT
from nq_pipeline.sources.plausibility import FUTURE, MOST_CONTRACTS, OTHER
from nq_pipeline.transport.json_columns import loads

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

AUTHORIZE_ID = 1
"""Request ids are unique per connection; the login is always the first."""
QUIET_S = 0.3
"""Once every subscription is answered and quoted, this long without a frame ends the collecting."""
MAX_FRAME_BYTES = 4 * 1024 * 1024
MAX_TRANSCRIPT_BYTES = 16 * 1024 * 1024
_LOG = logging.getLogger(f"{__name__}.frames")
_LOG.setLevel(logging.INFO)  # at DEBUG the library writes down every frame, and one of them is the token
YEARS = range(2000, 2100)
"""A timestamp outside is no timestamp."""

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
class QuoteBook:
    """What a transcript says.

    Attributes
    ----------
    subscribed
        Contract id by id of the request that subscribed to it.
    answered, refused
        Ids of requests that were answered, and of those that were refused with the reason.
    quotes
        Newest value of every cell by contract id.
    error
        What ended the conversation early; None while nothing did.
    dropped
        `malformed_frame`, `malformed_message`, `malformed_cell`, `fractional_size`, `future_instant`
        (a time later than `latest`), `other_series` (a quote of a contract that was not subscribed
        to), `unknown_event`.
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
    def read(cls, transcript: bytes, latest: datetime | None = None) -> QuoteBook:
        """The book of a whole transcript; nothing in it raises."""
        book = cls(latest=latest)
        for line in transcript.decode(errors="replace").split("\n"):
            book.take(line)
        return book

    def take(self, line: str) -> None:
        """Read one more line."""
        match line[:1]:
            case ">":
                self._ours(line[1:])
            case "a":
                self._messages(line[1:])
            case "c":
                self.error = self.error or Unavailable("Tradovate closed the connection")
            case "o" | "h" | "":
                pass
            case _:
                self.dropped["malformed_frame"] += 1

    @property
    def unreadable(self) -> BadPayload | None:
        """Why there is no quote though the vendor sent some; None while one cell of one can be read."""
        if any(self.quotes.values()) or not self.unusable:
            return None
        return BadPayload(f"none of {self.unusable} parts of the quotes could be used")

    @property
    def unusable(self) -> int:
        """Parts of what was asked for that could not be used."""
        return self.dropped.total() - self.dropped[OTHER]

    @property
    def all_answered(self) -> bool:
        """Whether every subscription was answered or refused."""
        return self.subscribed.keys() <= self.answered

    @property
    def waiting(self) -> bool:
        """Whether a subscription was neither refused nor answered and followed by a quote."""
        return any(
            number not in self.answered or (number not in self.refused and contract_id not in self.quotes)
            for number, contract_id in self.subscribed.items()
        )

    def price(self, contract_id: int | None) -> float | None:
        """The last price of a contract, or the middle of its quote."""
        quote = self.quotes.get(contract_id or 0, {})
        bid, ask = quote.get("bid"), quote.get("ask")
        middle = (bid + ask) / 2 if bid and ask else None
        price = quote.get("last") or middle  # 0 is no price
        return None if price is None else float(price)

    def frame(self) -> pl.DataFrame:
        """One row per contract that was quoted; columns as `QUOTES`. Prices of 0 are nulls."""
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

    def _ours(self, line: str) -> None:
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

    def _messages(self, text: str) -> None:
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
                self._response(message)
            elif message.get("e") == "md":
                self._market_data(message.get("d"))
            elif message.get("e") == "shutdown":
                self.error = _shutdown(message.get("d"))
            else:
                self.dropped["unknown_event"] += 1

    def _response(self, message: Mapping[str, Any]) -> None:
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

    def _market_data(self, data: object) -> None:
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
                self._cell(cells, name, entries.get(entry), "price")
            for name, entry in SIZES.items():
                self._cell(cells, name, entries.get(entry), "size")

    def _cell(self, cells: dict[str, Any], name: str, entry: object, member: str) -> None:
        """Take over one number of an update, if it is there and is one."""
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
        """An instant as the vendor writes it, with or without seconds; null and counted otherwise."""
        if text is None:
            return None
        try:
            instant = datetime.fromisoformat(str(text))
            if instant.tzinfo is not None and instant.year in YEARS:
                if self.latest is None or instant <= self.latest:
                    return instant.astimezone(UTC)
                self.dropped[FUTURE] += 1
                return None
        except (ValueError, OverflowError):
            pass
        self.dropped["malformed_cell"] += 1
        return None


def _shutdown(data: object) -> SourceError:
    code = data.get("reasonCode") if isinstance(data, dict) else None
    if code in ("ConnectionQuotaReached", "IPQuotaReached"):
        return RateLimited(f"Tradovate ends the connection: {code}")
    return Unavailable(f"Tradovate ends the connection{quoted(code)}")


def quoted(words: object) -> str:
    """The vendor's own words in brackets, made harmless to print; empty when there are none."""
    if not isinstance(words, str):
        return ""
    text = "".join(c for c in words if c.isprintable()).strip(' "\\')[:160]
    return f' ("{text}")' if text else ""


# ── the conversation ────────────────────────────────────────────────────────────────────────────

Choose = Callable[[QuoteBook], Sequence[int]]


def converse(
    url: str,
    token: str,
    futures: Sequence[int],
    choose: Choose,
    *,
    wait_s: float,
    heartbeat_s: float,
    timeout_s: float,
    remaining: Callable[[], float],
) -> bytes:
    """Log in, subscribe to the futures, then to what `choose` makes of their quotes, and listen.

    Parameters
    ----------
    choose
        Contract ids of the options to subscribe to, given the book with the futures' quotes.
    wait_s
        Seconds to listen after the last subscription was answered; it ends earlier when all is
        quoted and the line is quiet.
    timeout_s
        Seconds in which the next answer must come.
    remaining
        Seconds left until the deadline.

    Returns
    -------
    The transcript. It ends with a line `>lost`, `>deadline` or `>unanswered` when the conversation
    was cut short after something was quoted.

    Raises
    ------
    NotEntitled, RateLimited, Blocked, Unavailable, DeadlineReached, BadPayload
        When nothing at all was quoted.
    """
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
    from websockets.sync.client import connect

    if remaining() <= 0:
        raise DeadlineReached("no time was left to ask Tradovate for quotes")
    try:
        # No proxy from the environment: a token goes where the settings say and nowhere else.
        socket = connect(
            url,
            open_timeout=min(timeout_s, remaining()),
            close_timeout=0.2,
            max_size=MAX_FRAME_BYTES,
            proxy=None,
            logger=_LOG,
        )
    except InvalidStatus as error:
        raise _refused_handshake(error.response.status_code) from None
    except (OSError, InvalidHandshake, TimeoutError, EOFError) as error:
        raise Unavailable(f"no websocket at NQ_TRADOVATE_MD_URL ({type(error).__name__})") from None
    talk = _Talk(socket, token, heartbeat_s, timeout_s, remaining)
    try:
        with socket:
            talk.authorize()
            for contract_id in futures:
                talk.subscribe(contract_id)
            talk.listen(wait_s, until=lambda book: all(map(book.price, futures)))
            for contract_id in choose(talk.book):
                talk.subscribe(contract_id)
            talk.listen(wait_s)
    except (ConnectionClosed, OSError):
        talk.note(">lost")
    if remaining() <= 0:
        talk.note(">deadline")
    elif not talk.book.all_answered:
        talk.note(">unanswered")
    if not talk.book.quotes:
        reason = talk.book.error or next(iter(talk.book.refused.values()), None)
        if reason is not None:
            raise reason
    return "\n".join(talk.lines).encode()


class _Talk:
    """One connection: its transcript so far, the book it makes, and the heartbeat."""

    def __init__(
        self,
        socket: ClientConnection,
        token: str,
        heartbeat_s: float,
        timeout_s: float,
        remaining: Callable[[], float],
    ) -> None:
        self.lines: list[str] = []
        self.book = QuoteBook()
        self._socket, self._token, self._heartbeat_s = socket, token, heartbeat_s
        self._timeout_s, self._remaining = timeout_s, remaining
        self._next_id = AUTHORIZE_ID + 1
        self._beat_at = time.monotonic() + heartbeat_s
        self._bytes = 0

    def authorize(self) -> None:
        self._socket.send(f"authorize\n{AUTHORIZE_ID}\n\n{self._token}")
        self.listen(self._timeout_s, until=lambda book: AUTHORIZE_ID in book.answered)
        if self.book.authorized or self.book.error is not None:
            return
        refusal = self.book.refused.get(AUTHORIZE_ID)
        raise refusal or Unavailable(
            f"Tradovate did not answer the websocket's login within {self._timeout_s:.0f} s"
        )

    def subscribe(self, contract_id: int) -> None:
        if self.book.error is None:
            number, self._next_id = self._next_id, self._next_id + 1
            body = orjson.dumps({"symbol": contract_id}).decode()
            self._socket.send(f"md/subscribeQuote\n{number}\n\n{body}")
            self.note(f">subscribe {number} {contract_id}")

    def listen(self, wait_s: float, until: Callable[[QuoteBook], bool] = lambda book: False) -> None:
        """Take frames until `until` holds, the line is quiet with all quoted, or time is up.

        Time counts from the newest answer, so that many subscriptions may take long and a feed
        that answers nothing more may not.
        """
        answered_at = heard_at = time.monotonic()
        while self.book.error is None and not until(self.book):
            now = time.monotonic()
            patience = wait_s if self.book.all_answered else self._timeout_s
            end = min(answered_at + patience, now + self._remaining())
            idle = bool(self.book.subscribed) and not self.book.waiting
            if now >= end or (idle and now >= heard_at + QUIET_S):
                return
            if now >= self._beat_at:
                self._socket.send("[]")
                self._beat_at = now + self._heartbeat_s
            wake = min(end, self._beat_at, heard_at + QUIET_S if idle else end)
            try:
                frame = self._socket.recv(timeout=max(0.0, wake - now))
            except TimeoutError:
                continue
            heard_at = time.monotonic()
            answers = len(self.book.answered)
            text = frame if isinstance(frame, str) else frame.decode(errors="replace")
            self.note(f"?{text}" if text.startswith(">") else text)
            if len(self.book.answered) > answers:
                answered_at = heard_at

    def note(self, line: str) -> None:
        """Add a line to the transcript. A frame stays one line, and never holds the token."""
        line = line.replace("\n", " ").replace(self._token, "[token]")
        self._bytes += len(line)
        if self._bytes > MAX_TRANSCRIPT_BYTES:
            raise BadPayload(f"more than {MAX_TRANSCRIPT_BYTES >> 20} MiB of quotes were refused")
        self.lines.append(line)
        self.book.take(line)


def _refused_handshake(status: int) -> SourceError:
    match status:
        case 401:
            return NotEntitled("Tradovate refuses the market-data websocket (HTTP 401)")
        case 403:
            return Blocked("Tradovate refuses the market-data websocket (HTTP 403)")
        case 423 | 429:
            return RateLimited(f"Tradovate answers HTTP {status} on its websocket: too many requests")
    return Unavailable(f"Tradovate's market-data address answers HTTP {status}; check NQ_TRADOVATE_MD_URL")
