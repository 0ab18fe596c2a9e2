"""The synthetic market that all stand-ins serve: a volatility surface, order books and trades.

`Market` is the market of one product, `Exchange` that of several; stand-ins use them alike. Everything
is a pure function of (seed, product, instant). `price_path` moves the index. Options are valued on the
future they exercise into, European ones by Black-76 and American ones with early exercise, on one
smooth surface, so that put-call parity holds and all vendors agree. A closed market shows its last
close. Settlements appear when the exchange would publish them; until then the previous ones are shown.

Prices are calibrated to no real day. Strikes, ticks, quote widths and the shares of untraded contracts
and of contracts without a bid resemble the real market.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime
from functools import lru_cache, wraps
from threading import RLock
from typing import Any, TypeVar, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.market import black76, sessions
from nq_pipeline.market.black76 import round_to_tick
from nq_pipeline.market.contracts import ROOTS
from nq_pipeline.market.products import NQ, PRODUCTS, PROXIES, Product, Ticks
from nq_pipeline.market.settlements import newest_published, settled_at
from nq_pipeline.sandbox.synthetic import ju_zhong, listings, price_path
from nq_pipeline.sandbox.synthetic.hashed_random import Floats, mix, normal, uniform
from nq_pipeline.sandbox.synthetic.price_path import DAY_NS, LEVEL
from nq_pipeline.sandbox.synthetic.profiles import PROFILES

Ints = NDArray[np.int64]
Build = TypeVar("Build", bound=Callable[..., pl.DataFrame])
RATE = 0.043
MINUTE_NS = 60_000_000_000
YEAR_NS = 365 * DAY_NS
_SEEDS_APART = 1_000_003
_MAX_FRAMES = 64
# Streams of random numbers, from 10 on; those of the price path are below.
_SIZE, _TRADES, _OPEN = range(10, 13)


def _cached(build: Build) -> Build:
    """Build a frame once per arguments, one thread at a time; only the newest frames stay cached."""

    @wraps(build)
    def frame(market: Market, *key: Any) -> pl.DataFrame:
        with market.lock:
            if (build.__name__, *key) not in market.frames:
                while len(market.frames) >= _MAX_FRAMES:
                    del market.frames[next(iter(market.frames))]
                market.frames[build.__name__, *key] = build(market, *key)
            return market.frames[build.__name__, *key]

    return cast("Build", frame)


class Market:
    """The synthetic market of one seed and product. Frames are cached: do not change them in place."""

    def __init__(self, seed: int = 7, product: Product = NQ) -> None:
        self.base_seed, self.product, self.profile = seed, product, PROFILES[product.code]
        self.seed = seed + _SEEDS_APART * self.profile.number
        self.markets: tuple[Market, ...] = (self,)
        self._ticks: Ticks = ((float("inf"), self.profile.future_tick),)
        self.lock = RLock()
        self.frames: dict[tuple[Any, ...], pl.DataFrame] = {}

    # Time

    def moment(self, instant: datetime) -> datetime:
        """The instant that is shown: the start of its minute while open, else the last close."""
        if sessions.is_open(instant):
            return instant.replace(second=0, microsecond=0)
        current = sessions.current_session(instant)
        return max(close for _, close in current.segments if close <= instant)

    # Prices

    def index(self, ts_ns: Any) -> Floats:
        """The index under the futures at instants (nanoseconds UTC); still while the market is closed."""
        return np.asarray(price_path.index(self.seed, ts_ns) * (self.profile.level / LEVEL), np.float64)

    def future(self, symbol: str, ts_ns: Any) -> Floats:
        """The fair price of a listed future (`NQM5`) at instants, unrounded: the index plus its carry."""
        first = from_ns(int(np.min(ts_ns))).date()
        return self._forward(ts_ns, to_ns(listings.future_expirations(self.product, first)[symbol]))

    def futures(self, instant: datetime) -> pl.DataFrame:
        """The listed futures that options exercise into, nearest first.

        Columns: product, symbol, expiration, the book, last, last_ts, open, high, low, volume, settlement
        (the newest published) with settlement_date, previous_settlement, open_interest.
        """
        moment, settled = self.moment(instant), newest_published(instant, self.product)
        return self._futures(moment, settled)

    # Options on the futures

    def listed(self, trade_date: date) -> pl.DataFrame:
        """All contracts that trade on a trade date, by expiration, root, side and strike.

        Columns: contract_key, raw_symbol, series, root, expiration, expiration_date,
        settlement_style, exercise_style, underlying, underlying_expiration, strike,
        option_type, instrument_id (stable for a contract's life), listed_on, scale (1.0).
        """
        return self._contracts(None, trade_date)

    def chain(self, instant: datetime) -> pl.DataFrame:
        """The whole chain at an instant: `listed` and the state of every contract.

        Adds: bid, bid_size, ask, ask_size (null where there is none), value (fair price),
        implied_volatility, delta, gamma, theta (per day), vega (per 1.00), quote_ts; last,
        last_ts, open, high, low, volume of the session (volume 0 and the rest null without
        a trade); prior_last, prior_last_ts, prior_open, prior_high, prior_low, prior_volume
        of the session before; settlement (the newest published) with settlement_date,
        previous_settlement; open_interest; expired.
        """
        return self._state(None, self.moment(instant), newest_published(instant, self.product))

    def quotes(self, contracts: pl.DataFrame, ts_ns: Any) -> pl.DataFrame:
        """Books of contracts (rows of `listed`) at one instant each (or one for all).

        Columns: bid, bid_size, ask, ask_size, value, implied_volatility, forward.
        """
        ts = np.broadcast_to(np.asarray(ts_ns, np.int64), contracts.height)
        return self._quotes(contracts, ts, self.product.ticks)

    def trades(self, trade_date: date) -> pl.DataFrame:
        """All option trades of a session in time order.

        Columns: row (index into `listed`), instrument_id, ts_event (ns UTC), price, size, side
        ('A': a seller hit the bid, 'B': a buyer lifted the ask).
        """
        return self._trades(None, trade_date, trade_date)

    # Options on the index and the fund

    def proxy_chain(self, underlying: str, instant: datetime) -> pl.DataFrame:
        """The chain of an index (NDX and NDXP), or of a fund (QQQ), at an instant of regular trading hours.

        Outside them it shows the last regular close. Columns as `chain`, with `ticker`
        (OCC style) in place of the Globex names.
        """
        moment = self.rth_moment(instant)
        return self._state(underlying, moment, sessions.previous_trade_date(sessions.trade_date(moment)))

    def rth_moment(self, instant: datetime) -> datetime:
        """What the index and its options show: the minute in regular hours, else the last regular close."""
        day = sessions.trade_date(instant)
        while True:
            rth = sessions.session(day).rth
            if rth is not None and rth[0] <= instant:
                return min(instant, rth[1]).replace(second=0, microsecond=0)
            day = sessions.previous_trade_date(day)

    def proxy_price(self, underlying: str, instant: datetime) -> float:
        """The index, or the fund's price, as last computed in regular hours."""
        level = float(self.index(to_ns(self.rth_moment(instant)))[0])
        return round(level * self.profile.scale_of(underlying), 2)

    # Construction

    @_cached
    def _contracts(self, proxy: str | None, trade_date: date) -> pl.DataFrame:
        """The contracts of a trade date: those on the futures, or on a proxy."""
        if proxy is None:
            return listings.options_on_futures(self.product, trade_date, self._closes)
        return listings.options_on_proxy(proxy, trade_date, self._closes)

    def _ticks_of(self, proxy: str | None) -> Ticks:
        return self.product.ticks if proxy is None else PROXIES[proxy].ticks

    def _closes(self, first: date, last: date) -> Floats:
        days = np.arange(price_path.day_number(first) - 1, price_path.day_number(last))
        closes = np.exp(price_path.log_close(self.seed, days))
        return np.asarray(closes * (self.profile.level / LEVEL), np.float64)

    def _forward(self, ts: Any, until: Any, index: Floats | None = None) -> Floats:
        """The index at instants with its carry; `index` where it is known already."""
        ts = np.asarray(ts, np.int64)
        years = np.maximum(np.asarray(until, np.int64) - ts, 0) / YEAR_NS
        spot = self.index(ts) if index is None else index
        return np.asarray(spot * np.exp(self.profile.carry * years), np.float64)

    @_cached
    def _futures(self, moment: datetime, settled: date) -> pl.DataFrame:
        today = sessions.current_session(moment)
        minutes = np.arange(to_ns(today.open), to_ns(moment) + 1, MINUTE_NS)
        days = (settled, sessions.previous_trade_date(settled))
        closes = np.array([to_ns(settled_at(day, self.product)) for day in days])
        index, index_at_close = self.index(minutes), self.index(closes)  # the same for every future
        rows, tick = [], self.profile.future_tick
        listed = listings.futures(self.product, today.trade_date, listings.STANDARDS + 1)
        for rank, (symbol, expiration) in enumerate(listed):
            until = to_ns(expiration)
            if until <= to_ns(moment):
                continue
            walk = round_to_tick(self._ticks, self._forward(minutes, until, index))
            key = mix(self.seed, _SIZE, until, to_ns(moment))
            gap, sizes = (1, 2, 8, 20, 20)[rank] * tick, 1 + mix(key, np.arange(2)) % 12
            share, weight = min(len(minutes) / 1380, 1.0), (0.97, 0.03, 0.0004, 0.0001, 0.0001)[rank]
            settle = round_to_tick(self._ticks, self._forward(closes, until, index_at_close)).tolist()
            bid = float(round_to_tick(self._ticks, walk[-1:] - gap / 2, "below")[0])
            ask = float(round_to_tick(self._ticks, np.array([bid + gap]))[0])
            rows.append(
                {
                    "product": self.product.code,
                    "symbol": symbol,
                    "expiration": expiration,
                    "bid": bid,
                    "bid_size": int(sizes[0]),
                    "ask": ask,
                    "ask_size": int(sizes[1]),
                    "last": walk[-1],
                    "last_ts": moment,
                    "open": walk[0],
                    "high": walk.max(),
                    "low": walk.min(),
                    "volume": int(self.profile.future_volume * share * weight),
                    "settlement": settle[0],
                    "settlement_date": settled,
                    "previous_settlement": settle[1],
                    "open_interest": int(260_000 * weight) + int(uniform(self.seed, _OPEN, until)[0] * 900),
                }
            )
        return pl.DataFrame(rows).with_columns(listings.utc("expiration", "last_ts"))

    def _model(self, contracts: pl.DataFrame, ts: Any) -> dict[str, Floats]:
        """Fair price and Greeks of contracts at instants, on the surface.

        Options on the fund are valued as European ones: it stands for a future here.
        """
        strike = contracts["strike"].to_numpy()
        expiration = contracts["expiration"].cast(pl.Int64).to_numpy()
        until = contracts["underlying_expiration"].cast(pl.Int64).to_numpy()
        forward = self._forward(ts, until) * contracts["scale"].to_numpy()
        years = np.maximum((expiration - ts) / YEAR_NS, 1e-7)
        sigma = self._surface(np.log(strike / forward), years, ts)
        is_call = (contracts["option_type"] == "C").to_numpy()
        fair = black76.value(forward, strike, years, sigma, is_call, RATE)
        american_style, on_future = contracts["exercise_style"] == "american", contracts["scale"] == 1.0
        early = (american_style & on_future).to_numpy()
        if early.any():
            f, k, t, vol, call = (x[early] for x in (forward, strike, years, sigma, is_call))
            for column, values in zip(fair, ju_zhong.value(f, k, t, vol, call, RATE), strict=True):
                column[early] = values
        greeks = {name: getattr(fair, name) for name in ("delta", "gamma", "theta", "vega")}
        value = np.maximum(fair.price, 0.0)
        return {"forward": forward, "value": value, "implied_volatility": sigma, **greeks}

    def _surface(self, moneyness: Floats, years: Floats, ts: Any) -> Floats:
        """Volatility by log-moneyness and time: higher for near expirations, skewed to the downside."""
        far = self.profile.volatility * price_path.volatility(self.seed, ts)
        level = far * (1 + 0.12 * np.exp(-years / 0.05))
        deviations = moneyness / (level * np.sqrt(years + 0.001))
        return np.asarray(level * (1 - 0.075 * deviations + 0.055 * (np.sqrt(1 + deviations**2) - 1)))

    def _quotes(self, contracts: pl.DataFrame, ts: Any, ticks: Ticks) -> pl.DataFrame:
        model = self._model(contracts, ts)
        value, forward, strike = model["value"], model["forward"], contracts["strike"].to_numpy()
        sign = np.where(contracts["option_type"].to_numpy() == "C", 1.0, -1.0)
        days = (contracts["expiration"].cast(pl.Int64).to_numpy() - ts) / DAY_NS
        scale = forward / LEVEL
        depth = np.maximum(sign * (forward - strike), 0.0) / forward
        # Nobody competes deep in the money: near series quote wide, far ones sometimes not at all.
        width = (0.15 + 0.1 * np.sqrt(value / scale)) * scale
        width += np.where(days <= 3.5, 60.0, 8.0) * scale * np.clip((depth - 0.012) / 0.015, 0.0, 1.0)
        width *= np.where(price_path.in_rth(ts), 1.0, 1.7)
        bid = round_to_tick(ticks, np.maximum(value - width / 2, 0.0), "below")
        ask = round_to_tick(ticks, value + width / 2, "above")
        ask = np.where(ask <= bid, round_to_tick(ticks, bid + 1e-6, "above"), ask)
        unquoted = (days <= 0) | ((days > 3.5) & (depth > 0.08))
        sizes = mix(self.seed, _SIZE, contracts["instrument_id"].to_numpy(), ts // MINUTE_NS)
        frame = pl.DataFrame(
            {
                "bid": np.where(unquoted | (bid <= 0), np.nan, bid),
                "bid_size": (1 + sizes % 40).astype(np.int64),
                "ask": np.where(unquoted, np.nan, ask),
                "ask_size": (1 + (sizes >> np.uint64(20)) % 40).astype(np.int64),
                **model,
            }
        ).with_columns(pl.col("bid", "ask").fill_nan(None))
        return frame.with_columns(
            pl.when(pl.col(side).is_not_null()).then(pl.col(f"{side}_size")).alias(f"{side}_size")
            for side in ("bid", "ask")
        )

    @_cached
    def _trades(self, proxy: str | None, listed_on: date, trade_date: date) -> pl.DataFrame:
        """The session's trades in the contracts that are listed on a day; a proxy's in regular hours only."""
        done = self._simulate_trades(self._contracts(proxy, listed_on), trade_date, self._ticks_of(proxy))
        return done if proxy is None else done.filter(price_path.in_rth(done["ts_event"].to_numpy()))

    def _simulate_trades(self, contracts: pl.DataFrame, trade_date: date, ticks: Ticks) -> pl.DataFrame:
        """Few contracts trade, most of them near the money and expiration and at round strikes."""
        session = sessions.session(trade_date)
        ids, day = contracts["instrument_id"].to_numpy(), price_path.day_number(trade_date)
        appeal = np.abs(self._model(contracts, to_ns(session.open))["delta"]) / 0.25
        days = contracts["expiration_date"].to_physical().to_numpy() - day
        rate = 11.0 * appeal * np.exp(1 - appeal) / (0.7 + days / 2.5) * _roundness(contracts)
        expected = -np.log(uniform(self.seed, _TRADES, day, ids)) * rate
        count = np.minimum(expected, 80).astype(np.int64)
        row = np.repeat(np.arange(contracts.height), count)
        ordinal = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        knots, share = price_path.session_knots(session)
        at = np.interp(uniform(self.seed, _TRADES, day, ids[row], ordinal), share, knots).astype(np.int64)
        alive = at < contracts["expiration"].cast(pl.Int64).to_numpy()[row]
        row, at, ordinal = row[alive], at[alive], ordinal[alive]
        book = self._quotes(contracts[row], at, ticks)
        draw = mix(self.seed, _TRADES, ids[row], at)
        buys = (draw % 2).astype(bool)
        frame = pl.DataFrame(
            {
                "row": row.astype(np.int64),
                "instrument_id": ids[row],
                "ts_event": at,
                "price": np.where(buys, book["ask"].to_numpy(), book["bid"].fill_null(np.nan).to_numpy()),
                "size": np.floor(np.exp(0.8 * np.abs(normal(draw)))).astype(np.int64),
                "side": np.where(buys, "B", "A"),
            }
        )
        return frame.drop_nans("price").sort("ts_event", "instrument_id", maintain_order=True)

    @_cached
    def _state(self, proxy: str | None, moment: datetime, settled: date) -> pl.DataFrame:
        """Contracts at a moment: book, this session so far, the session before, settlements."""
        now, trade_date = to_ns(moment), sessions.trade_date(moment)
        before = sessions.previous_trade_date(trade_date)
        contracts = self._contracts(proxy, trade_date)
        book = self._quotes(contracts, now, self._ticks_of(proxy)).drop("forward")
        frame = pl.concat([contracts, book], how="horizontal").with_columns(
            quote_ts=pl.lit(now).cast(pl.Datetime("ns", "UTC")),
            expired=pl.col("expiration").cast(pl.Int64) <= now,
            open_interest=pl.Series(self._open_interest(contracts, trade_date)),
        )
        today = self._trades(proxy, trade_date, trade_date).filter(pl.col("ts_event") <= now)
        # All contracts of the session before are those of its own listing; of a proxy those of today's.
        yesterday = self._trades(proxy, before if proxy is None else trade_date, before)
        for prefix, done in (("", today), ("prior_", yesterday)):
            frame = frame.join(
                _session_so_far(done, prefix), on="instrument_id", how="left", maintain_order="left"
            )
        day_before = sessions.previous_trade_date(settled)
        return frame.with_columns(
            settlement=self._settlement(proxy, trade_date, settled, now),
            previous_settlement=self._settlement(proxy, trade_date, day_before, now),
            settlement_date=pl.lit(settled),
        ).with_columns(pl.col("volume", "prior_volume").fill_null(0))

    def _settlement(self, proxy: str | None, trade_date: date, day: date, now: int) -> pl.Series:
        """Settlements of a day: the fair price at settlement, null for contracts not yet listed.

        An expired contract settles at its intrinsic value to the cent when in the money, as the
        exchange's fixing does. Out of the money it keeps the previous settlement.
        """
        contracts = self._contracts(proxy, trade_date)
        value = self._closing_values(proxy, trade_date, day)["value"].to_numpy().copy()
        expiration = contracts["expiration"].cast(pl.Int64).to_numpy()
        expired = expiration <= now
        if expired.any() and day == trade_date:
            past = contracts.filter(pl.Series(expired))
            fixing = self._model(past, expiration[expired])
            sign = np.where(past["option_type"].to_numpy() == "C", 1.0, -1.0)
            intrinsic = np.round(sign * (fixing["forward"] - past["strike"].to_numpy()), 2)
            before = self._closing_values(proxy, trade_date, sessions.previous_trade_date(day))
            value[expired] = np.where(intrinsic > 0, intrinsic, before["value"].to_numpy()[expired])
        unlisted = (contracts["listed_on"] > day).to_numpy()
        return pl.Series(np.where(unlisted, np.nan, np.round(value, 4))).fill_nan(None)

    @_cached
    def _closing_values(self, proxy: str | None, trade_date: date, day: date) -> pl.DataFrame:
        at = to_ns(settled_at(day, self.product))
        fair, ticks = self._model(self._contracts(proxy, trade_date), at)["value"], self._ticks_of(proxy)
        return pl.DataFrame({"value": np.maximum(round_to_tick(ticks, fair), ticks[0][1])})

    def _open_interest(self, contracts: pl.DataFrame, trade_date: date) -> Ints:
        """Open interest of the previous trade date: more at round strikes, growing with age, often 0."""
        age = price_path.day_number(trade_date) - contracts["listed_on"].to_physical().to_numpy()
        index = contracts["strike"].to_numpy() / contracts["scale"].to_numpy()
        spread = np.exp(-((np.log(index / self.profile.level) / 0.12) ** 2)) * _roundness(contracts)
        target = np.exp(1.6 + 1.2 * normal(self.seed, _OPEN, contracts["instrument_id"].to_numpy())) * spread
        return np.asarray(np.floor(target * (1 - np.exp(-np.maximum(age, 0) / 25))), np.int64)


class Exchange:
    """The markets of several products, with the methods of one.

    A frame has the rows of one product after the other; trades are in time order, quotes in that of the
    contracts. All products open and close together.
    """

    def __init__(self, seed: int, products: Sequence[str]) -> None:
        self.seed = seed
        self.markets: tuple[Market, ...] = tuple(market(seed, (code,)).markets[0] for code in products)

    def moment(self, instant: datetime) -> datetime:
        return self.markets[0].moment(instant)

    def rth_moment(self, instant: datetime) -> datetime:
        return self.markets[0].rth_moment(instant)

    def futures(self, instant: datetime) -> pl.DataFrame:
        return pl.concat([one.futures(instant) for one in self.markets])

    def listed(self, trade_date: date) -> pl.DataFrame:
        return pl.concat([one.listed(trade_date) for one in self.markets])

    def chain(self, instant: datetime) -> pl.DataFrame:
        return pl.concat([one.chain(instant) for one in self.markets])

    def quotes(self, contracts: pl.DataFrame, ts_ns: Any) -> pl.DataFrame:
        ts = np.broadcast_to(np.asarray(ts_ns, np.int64), contracts.height)
        of = contracts["root"].replace_strict({root: info.product.code for root, info in ROOTS.items()})
        places = [(of == one.product.code).arg_true() for one in self.markets]
        books = [
            one.quotes(contracts[place], ts[place.to_numpy()])
            for one, place in zip(self.markets, places, strict=True)
            if len(place)
        ]
        return pl.concat(books)[np.argsort(np.concatenate([place.to_numpy() for place in places]))]

    def trades(self, trade_date: date) -> pl.DataFrame:
        done, first = [], 0
        for one in self.markets:
            done.append(one.trades(trade_date).with_columns(pl.col("row") + first))
            first += one.listed(trade_date).height
        return pl.concat(done).sort("ts_event", "instrument_id", maintain_order=True)

    def proxy_chain(self, underlying: str, instant: datetime) -> pl.DataFrame:
        return self._of(PROXIES[underlying].stands_for).proxy_chain(underlying, instant)

    def proxy_price(self, underlying: str, instant: datetime) -> float:
        return self._of(PROXIES[underlying].stands_for).proxy_price(underlying, instant)

    def _of(self, code: str) -> Market:
        return next(one for one in self.markets if one.product.code == code)


AnyMarket = Market | Exchange


@lru_cache(maxsize=16)
def market(seed: int, products: tuple[str, ...] = (NQ.code,)) -> AnyMarket:
    """The market of a seed and products, one object per process so that its cache is shared.

    Raises KeyError for a product without a profile.
    """
    if len(products) == 1:
        return Market(seed, PRODUCTS[products[0]])
    return Exchange(seed, products)


def _session_so_far(trades: pl.DataFrame, prefix: str) -> pl.DataFrame:
    price = pl.col("price")
    return trades.group_by("instrument_id").agg(
        price.last().alias(f"{prefix}last"),
        pl.col("ts_event").last().cast(pl.Datetime("ns", "UTC")).alias(f"{prefix}last_ts"),
        price.first().alias(f"{prefix}open"),
        price.max().alias(f"{prefix}high"),
        price.min().alias(f"{prefix}low"),
        pl.col("size").sum().alias(f"{prefix}volume"),
    )


def _roundness(contracts: pl.DataFrame) -> Floats:
    """A factor per contract: the rounder the strike in index points, the more it trades."""
    strike = np.round(contracts["strike"].to_numpy() / contracts["scale"].to_numpy())
    factor = np.full(len(strike), 0.35)
    for step, weight in ((25, 0.6), (50, 1.0), (100, 1.8), (500, 3.0), (1000, 4.0)):
        factor[strike % step == 0] = weight
    return factor
