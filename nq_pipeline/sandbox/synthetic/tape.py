"""The tape: everything the synthetic market publishes, as DBN records in order of publication.

The gateway and the historical stand-in share one tape, so a record is the same bytes whether it is
streamed, replayed or bought later. The tape is a pure function of (seed, instant).

As at CME, an aggressor that meets several resting orders produces several trades with one `ts_event`
and one `sequence`, often equal in every field. The option and the futures channel number their events
separately. Records are received in the order the venue stamped them, some microseconds later.

Options trade as `Market.trades` says, futures around their fair price. Books appear where something
trades and at random contracts in between. Every schema shows those same events, except that `bbo-1m`
has the books of all contracts and `mbo` only the orders that trade.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from functools import lru_cache
from threading import RLock
from typing import Any

import numpy as np
import polars as pl

from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.dbn.layout import UNDEF_PRICE, UNDEF_TIMESTAMP, Array
from nq_pipeline.market import sessions
from nq_pipeline.sandbox.synthetic import price_path
from nq_pipeline.sandbox.synthetic.hashed_random import mix, normal, uniform
from nq_pipeline.sandbox.synthetic.instruments import future_ids, universe
from nq_pipeline.sandbox.synthetic.market import AnyMarket, Market
from nq_pipeline.sandbox.synthetic.price_path import DAY_NS
from nq_pipeline.sandbox.synthetic.records import (
    SCHEMAS,
    blank_records,
    definition_records,
    encode_text,
    fixed_prices,
    minute_quote_records,
    statistics_records,
)

LAST, SNAPSHOT, BAD_TS_RECV = 128, 32, 8
"""DBN flags: last record of an event, from a snapshot, `ts_recv` of the gateway."""
INTERVALS_NS = {
    "bbo-1s": NS_PER_S,
    "bbo-1m": 60 * NS_PER_S,
    "ohlcv-1s": NS_PER_S,
    "ohlcv-1m": 60 * NS_PER_S,
    "ohlcv-1h": 3600 * NS_PER_S,
    "ohlcv-1d": DAY_NS,
}
FUTURE_EVENTS = 60_000
"""Aggressors in the futures per session, at activity 1."""
QUOTES_PER_TRADE = 2
# Streams of random numbers, apart from those of the market (10 to 12) and the path (below 10).
_FUTURES, _FILLS, _LATENCY, _QUOTES = range(20, 24)


class Tape:
    """The tape of a market.

    Parameters
    ----------
    activity
        How busy the futures are: 1 is about 100,000 trades a session.
    """

    schemas = SCHEMAS
    step_ns = 3600 * NS_PER_S
    """Nanoseconds that a replay reads at once; pieces begin at multiples of it."""
    max_blocks = 24
    """Blocks cached, over all schemas."""

    def __init__(self, market: AnyMarket, activity: float = 1.0) -> None:
        self.market, self.activity = market, activity
        self._lock = RLock()
        self._memory: dict[tuple[str, int], tuple[Array, Array]] = {}

    def records(self, schema: str, start: int, end: int) -> Array:
        """Records published in [start, end), nanoseconds UTC, in order. Do not change them in place.

        A record is published at its `ts_recv`, a bar when it ends.
        """
        if schema == "bbo-1m":  # of every contract: too many for a session at once
            return minute_quote_records(self.market, None, start, end)
        parts = [blank_records(schema)]
        for block in self.blocks(start, end):
            array, times = self._block(schema, block)
            first, last = np.searchsorted(times, np.array([start, end], np.uint64))
            parts.append(array[first:last])
        return parts[1] if len(parts) == 2 else np.concatenate(parts)

    def resting_orders(self, at: int) -> Array:
        """The orders at the top of every book just before an instant, as an mbo snapshot."""
        begin = next(iter(self.blocks(at - 1, at)))
        book = self.records("mbp-1", begin, at)
        _, newest = np.unique(book["instrument_id"][::-1], return_index=True)
        return _snapshot(book[len(book) - 1 - newest], at)

    def blocks(self, start: int, end: int) -> Iterable[int]:
        """The starts of the blocks that a span touches. A block lasts from one session's open to the next."""
        if start >= end:
            return []
        first, last = (sessions.trade_date(from_ns(ts)) for ts in (start, end - 1))
        return [to_ns(s.open) for s in sessions.sessions(first, last)]

    def _block(self, schema: str, block: int) -> tuple[Array, Array]:
        """A block's records and publication times, cached."""
        with self._lock:
            if (schema, block) not in self._memory:
                array = self._build(schema, block)
                while len(self._memory) >= self.max_blocks:
                    del self._memory[next(iter(self._memory))]
                self._memory[schema, block] = array, publication_times(schema, array)
            return self._memory[schema, block]

    def _build(self, schema: str, block: int) -> Array:
        day = sessions.trade_date(from_ns(block))
        if schema == "mbp-1":
            return _session_events(self.market, day, self.activity)
        if schema == "definition":
            return definition_records(new_instruments(self.market, day), ts_event=block, ts_recv=block)
        following = to_ns(sessions.next_open(sessions.session(day).close))
        if schema == "statistics":
            return statistics_records(self.market, universe(self.market, day), block, following)
        if schema == "ohlcv-1d":  # a UTC day spans parts of two sessions
            midnights = range(-(-block // DAY_NS) * DAY_NS, following, DAY_NS)
            days = [_bars(schema, self.records("trades", end - DAY_NS, end)) for end in midnights]
            return np.concatenate(days)
        book = self._block("mbp-1", block)[0]
        if schema == "bbo-1s":
            return _last_books(schema, book)
        trades = book[book["action"] == b"T"]
        return _bars(schema, trades) if schema in INTERVALS_NS else as_schema(schema, trades)


@lru_cache(maxsize=4)
def tape(market: AnyMarket) -> Tape:
    """The tape of a market at its usual activity, one object per process so that its cache is shared."""
    return Tape(market)


def publication_times(schema: str, array: Array) -> Array:
    """When each record was published, nanoseconds UTC."""
    if schema.startswith("ohlcv"):
        return np.asarray(array["ts_event"] + np.uint64(INTERVALS_NS[schema]))
    return np.ascontiguousarray(array["ts_recv"])


def filter_instruments(array: Array, ids: Array | pl.Series) -> Array:
    """The records of some instruments."""
    return np.asarray(array[np.isin(array["instrument_id"], ids)])


# ── events of a session ────────────────────────────────────────────────────────────


def _session_events(market: AnyMarket, day: date, activity: float) -> Array:
    """Trades and book changes of options and futures, which number their events separately."""
    options = np.concatenate([_option_trades(market, day), _option_quotes(market, day)])
    futures = np.concatenate([_future_events(one, day, activity) for one in market.markets])
    events = np.concatenate([_number_events(options, day, 0), _number_events(futures, day, 1)])
    return events[np.argsort(events["ts_recv"], kind="stable")]


def _option_trades(market: AnyMarket, day: date) -> Array:
    """The market's trades, some of them filled by more than one resting order."""
    done = market.trades(day)
    size = done["size"].to_numpy()
    key = mix(market.seed, _FILLS, done["instrument_id"].to_numpy(), done["ts_event"].to_numpy())
    fills = np.where(key % 3 == 0, np.minimum(size, 1 + (key >> np.uint64(8)) % 4), 1).astype(np.int64)
    row, ordinal = _repeat_rows(fills)
    a = _option_books(market.quotes(market.listed(day)[done["row"][row]], done["ts_event"].to_numpy()[row]))
    a["instrument_id"] = done["instrument_id"].to_numpy()[row]
    a["ts_event"] = done["ts_event"].to_numpy()[row]
    a["price"], a["side"] = fixed_prices(done["price"])[row], encode_text(done["side"])[row]
    # Every fill but the last takes an equal share; the last takes the rest.
    share = size[row] // fills[row]
    a["size"] = np.where(ordinal == fills[row] - 1, size[row] - share * (fills[row] - 1), share)
    a["action"] = b"T"
    return a


def _option_quotes(market: AnyMarket, day: date) -> Array:
    """Changed books of contracts drawn at random, most of which never trade."""
    listed, n = market.listed(day), QUOTES_PER_TRADE * market.trades(day).height
    key = (market.seed, _QUOTES, price_path.day_number(day))
    row = np.sort((mix(*key, 0, np.arange(n)) % max(listed.height, 1)).astype(np.int64))
    knots, share = price_path.session_knots(sessions.session(day))
    at = np.interp(uniform(*key, 1, np.arange(n)), share, knots).astype(np.int64)
    a = _option_books(market.quotes(listed[row], at))
    a["instrument_id"], a["ts_event"] = listed["instrument_id"].to_numpy()[row], at
    bids = (mix(*key, 2, np.arange(n)) % 2 == 0) & (a["bid_px_00"] != UNDEF_PRICE)
    _set_changed_side(a, bids)
    alive = at < listed["expiration"].cast(pl.Int64).to_numpy()[row]
    return np.asarray(a[alive & (a["price"] != UNDEF_PRICE)])


def _future_events(market: Market, day: date, activity: float) -> Array:
    """Trades of a product's two nearest futures that live to the close, and the book after each."""
    session = sessions.session(day)
    listed = market.futures(session.open).filter(pl.col("expiration") > session.close)
    key = (market.seed, _FUTURES, price_path.day_number(day))
    n = max(int(FUTURE_EVENTS * activity), 1)
    knots, share = price_path.session_knots(session)
    at = np.sort(np.interp(uniform(*key, 0, np.arange(n)), share, knots).astype(np.int64))
    second = uniform(*key, 1, np.arange(n)) < 0.03
    fair = np.where(second, *(market.future(listed["symbol"][rank], at) for rank in (1, 0)))
    numbers = listed.select(future_ids(pl.col("product"), pl.col("expiration").dt)).to_series()
    ids = np.where(second, numbers[1], numbers[0])
    tick = market.profile.future_tick

    draw = mix(*key, 2, np.arange(n))
    fills = 1 + np.minimum(np.floor(np.abs(normal(draw)) * 1.2), 5).astype(np.int64)
    row, ordinal = _repeat_rows(fills)
    a = _future_books(fair[row], draw[row], tick)
    a["instrument_id"], a["ts_event"], a["action"] = ids[row], at[row], b"T"
    buys = (draw % 2 == 0)[row]
    # A long sweep reaches the next price with its last fill.
    through = ((ordinal >= 3) & (ordinal == fills[row] - 1)) * round(tick * NS_PER_S)
    a["price"] = np.where(buys, a["ask_px_00"] + through, a["bid_px_00"] - through)
    a["side"] = np.where(buys, b"B", b"A")
    a["size"] = 1 + np.floor(np.abs(normal(mix(*key, 3, row, ordinal))) * 1.5)

    after = _future_books(fair, mix(*key, 4, np.arange(n)), tick)
    after["instrument_id"], after["ts_event"] = ids, at
    _set_changed_side(after, draw % 2 == 1)
    return np.concatenate([a, after])


def _option_books(quotes: pl.DataFrame) -> Array:
    """Records with the books of `Market.quotes` and no other fields set."""
    a = blank_records("mbp-1", np.zeros(quotes.height, np.int64))
    for side in ("bid", "ask"):
        a[f"{side}_px_00"] = fixed_prices(quotes[side])
        a[f"{side}_sz_00"] = quotes[f"{side}_size"].fill_null(0).to_numpy()
        a[f"{side}_ct_00"] = -(-a[f"{side}_sz_00"].astype(np.int64) // 4)
    return a


def _future_books(fair: Any, draw: Any, tick: float) -> Array:
    """Books one tick wide around fair prices."""
    a = blank_records("mbp-1", np.zeros(len(fair), np.int64))
    a["bid_px_00"] = np.floor(fair / tick).astype(np.int64) * round(tick * NS_PER_S)
    a["ask_px_00"] = a["bid_px_00"] + round(tick * NS_PER_S)
    for side, bits in (("bid", 8), ("ask", 16)):
        a[f"{side}_sz_00"] = 1 + (draw >> np.uint64(bits)) % 12
        a[f"{side}_ct_00"] = -(-a[f"{side}_sz_00"].astype(np.int64) // 3)
    return a


def _set_changed_side(a: Array, bids: Any) -> None:
    """Mark the bid of each book as changed, or else its ask."""
    a["action"], a["side"] = b"M", np.where(bids, b"B", b"A")
    a["price"] = np.where(bids, a["bid_px_00"], a["ask_px_00"])
    a["size"] = np.where(bids, a["bid_sz_00"], a["ask_sz_00"])


def _repeat_rows(counts: Any) -> tuple[Any, Any]:
    """Each index repeated by its count, and the number of each repetition."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)


def _number_events(a: Array, day: date, channel: int) -> Array:
    """One channel in time order, with sequence numbers, last-of-event flags and times of receipt."""
    a = a[np.argsort(a["ts_event"], kind="stable")]
    new = np.ones(len(a), bool)
    new[1:] = (np.diff(a["ts_event"]) != 0) | (np.diff(a["instrument_id"]) != 0)
    event = np.cumsum(new)
    a["sequence"] = event
    a["flags"] = np.where(np.append(new[1:], True), LAST, 0)
    key = mix(_LATENCY, price_path.day_number(day), channel, event)
    a["ts_in_delta"] = 9_000 + (key % 9_000).astype(np.int64)
    a["ts_recv"] = np.maximum.accumulate(a["ts_event"] + 14_000 + (key >> np.uint64(20)) % 60_000)
    return a


def new_instruments(market: AnyMarket, day: date) -> pl.DataFrame:
    """All instruments on the first trade date of a week, on later ones those that are new."""
    before, today = sessions.previous_trade_date(day), universe(market, day)
    if before.isocalendar().week != day.isocalendar().week:
        return today
    return today.join(universe(market, before), on="instrument_id", how="anti", maintain_order="left")


# ── other schemas of the same session ────────────────────────────────────────────────────────────


def as_schema(schema: str, book: Array) -> Array:
    """Records of another schema with the fields it shares with mbp-1; in mbo each trade has its own order."""
    a = blank_records(schema, book["instrument_id"])
    for name in set(a.dtype.names or ()) & set(book.dtype.names or ()) - {"length", "rtype"}:
        a[name] = book[name]
    if schema == "mbo":
        a["order_id"] = mix(a["instrument_id"], a["ts_event"], a["sequence"], np.arange(len(a)))
    return a


def _snapshot(books: Array, at: int) -> Array:
    """An mbo snapshot: each book is cleared, then its orders are added.

    The last record of an instrument has the flag `LAST`.
    """
    adds = []
    for side, letter in (("bid", b"B"), ("ask", b"A")):
        size, orders = (books[f"{side}_{what}_00"].astype(np.int64) for what in ("sz", "ct"))
        row, ordinal = _repeat_rows(np.where(books[f"{side}_px_00"] == UNDEF_PRICE, 0, orders))
        a = as_schema("mbo", books[row])
        a["price"], a["side"] = books[f"{side}_px_00"][row], letter
        # Every order but the first has an equal share of the size; the first has the rest.
        share = size[row] // orders[row]
        a["size"] = np.where(ordinal == 0, size[row] - share * (orders[row] - 1), share)
        a["order_id"] = mix(a["instrument_id"], a["price"], row, ordinal)
        adds.append(a)
    clears = as_schema("mbo", books)
    clears["price"], clears["side"], clears["action"] = UNDEF_PRICE, b"N", b"R"
    for name in ("size", "order_id", "sequence", "ts_in_delta"):
        clears[name] = 0
    whole = np.concatenate([clears, *adds])
    whole["action"][len(clears) :] = b"A"
    whole = whole[np.argsort(whole["instrument_id"], kind="stable")]
    last = np.append(whole["instrument_id"][1:] != whole["instrument_id"][:-1], True)[: len(whole)]
    whole["flags"] = SNAPSHOT | BAD_TS_RECV | np.where(last, LAST, 0)
    whole["ts_recv"] = at
    return whole


def _bars(schema: str, trades: Array) -> Array:
    """OHLCV bars stamped with the start of the interval; an interval without a trade has none."""
    step = np.uint64(INTERVALS_NS[schema])
    start = trades["ts_recv"] - trades["ts_recv"] % step
    order = np.lexsort((start, trades["instrument_id"]))
    trades, start = trades[order], start[order]
    first = _first_of_each(trades["instrument_id"], start)
    a = blank_records(schema, trades["instrument_id"][first])
    a["ts_event"], a["open"] = start[first], trades["price"][first]
    if len(first):
        a["close"] = trades["price"][np.append(first[1:], len(trades)) - 1]
        a["high"] = np.maximum.reduceat(trades["price"], first)
        a["low"] = np.minimum.reduceat(trades["price"], first)
        a["volume"] = np.add.reduceat(trades["size"].astype(np.uint64), first)
    return a[np.argsort(a["ts_event"], kind="stable")]


def _last_books(schema: str, book: Array) -> Array:
    """The book at the end of each interval in which it changed, with the last trade up to then."""
    step = np.uint64(INTERVALS_NS[schema])
    ends = book["ts_recv"] - book["ts_recv"] % step + step
    order = np.lexsort((ends, book["instrument_id"]))
    book, ends = book[order], ends[order]
    first = _first_of_each(book["instrument_id"], ends)
    last = np.append(first[1:], len(book)).astype(np.int64) - 1
    position = np.arange(len(book))
    trade = np.maximum.accumulate(np.where(book["action"] == b"T", position, -1))[last]
    opening = _first_of_each(book["instrument_id"])
    traded = trade >= opening[np.searchsorted(opening, last, side="right") - 1]
    a = as_schema(schema, book[last])
    a["ts_recv"] = ends[last]
    a["ts_event"] = np.where(traded, book["ts_event"][trade], np.uint64(UNDEF_TIMESTAMP))
    a["price"] = np.where(traded, book["price"][trade], UNDEF_PRICE)
    a["size"] = np.where(traded, book["size"][trade], 0)
    a["side"] = np.where(traded, book["side"][trade], b"N")
    a["flags"] = LAST
    return a[np.argsort(a["ts_recv"], kind="stable")]


def _first_of_each(*keys: Array) -> Any:
    """Indexes at which runs of equal keys begin."""
    new = np.ones(len(keys[0]), bool)
    new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return np.flatnonzero(new)
