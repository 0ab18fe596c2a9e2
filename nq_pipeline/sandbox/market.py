"""One synthetic NQ market that all stand-ins show: a path, a volatility surface, order books, trades.

Everything is a pure function of (seed, instant). The index walks as a Brownian bridge between
the closes of consecutive trade dates, and only while the market is open; closes hang on a
slower walk over calendar days. Options are Black-76 on the quarterly future they exercise
into, with one smooth surface, so that put-call parity holds and all vendors agree. A closed
market shows the state of its last close.

Nothing here is calibrated to a real day. The shape is: strike ladders, ticks, widths of
quotes, the share of untraded contracts and of contracts without a bid.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from functools import lru_cache
from threading import RLock
from typing import Any, Literal

import numpy as np
import polars as pl

from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.market import black76, sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.listing import expirations, underlying_future
from nq_pipeline.market.products import NQ, PROXIES
from nq_pipeline.market.symbology import contract_keys, globex_code, globex_symbols
from nq_pipeline.sandbox.noise import Floats, bridge, mix, normal, uniform

Proxy = Literal["NDX", "QQQ"]

LEVEL = 21_500.0
"""Index points around which the path wanders."""
LISTED_DAYS = 49
"""A weekly or end-of-month series is listed this many days before it expires."""
QUARTERLIES = 4
"""Quarterly series listed at any time."""
RATE, DIVIDEND = 0.043, 0.007
QQQ_PER_INDEX = 1 / 41.0

_DAY_NS = 86_400_000_000_000
_MINUTE_NS = 60_000_000_000
_YEAR_NS = 365 * _DAY_NS
_DAY_SIGMA, _SESSION_SIGMA = 0.009, 0.010
_BLOCK_DAYS = 512
_IDS_SINCE = date(2015, 1, 1)
# Streams of random numbers: each use has its own, so that none repeats another's.
_BLOCK, _DAILY, _INTRADAY, _VOL, _SIZE, _TRADES, _OPEN = range(7)


class Market:
    """The synthetic market of one seed. Frames are cached; do not change them in place."""

    def __init__(self, seed: int = 7) -> None:
        self.seed = seed
        self._lock = RLock()
        self._memory: dict[tuple[Any, ...], pl.DataFrame] = {}

    # Time

    def moment(self, instant: datetime) -> datetime:
        """The market moment shown at an instant: its minute while open, else the last close."""
        if sessions.is_open(instant):
            return instant.replace(second=0, microsecond=0)
        current = sessions.current_session(instant)
        return max(close for _, close in current.segments if close <= instant)

    # The path

    def index(self, ts_ns: Any) -> Floats:
        """The Nasdaq-100 index at instants (nanoseconds UTC); stands still while the market is closed."""
        ts = np.atleast_1d(np.asarray(ts_ns, np.int64))
        knots, elapsed, days = _timeline(from_ns(int(ts.min())).year, from_ns(int(ts.max())).year)
        session, share = np.divmod(np.interp(ts, knots, elapsed), 1.0)
        today = np.minimum(session.astype(np.int64) + 1, len(days) - 1)
        start, end = self._log_close(days[today - 1]), self._log_close(days[today])
        walk = _SESSION_SIGMA * bridge(mix(self.seed, _INTRADAY, days[today]), share, 15)
        return np.asarray(np.exp(start + (end - start) * share + walk), np.float64)

    def future(self, symbol: str, ts_ns: Any) -> Floats:
        """The fair price of a listed future (`NQM5`) at instants, unrounded: the index plus its carry."""
        return self._forward(ts_ns, to_ns(self._future_expirations(ts_ns)[symbol]))

    def underlying(self, instant: datetime) -> float:
        """The last price of the front future at an instant, on its tick."""
        front = self.futures(instant).row(0, named=True)
        return float(front["last"])

    def futures(self, instant: datetime) -> pl.DataFrame:
        """The listed quarterly futures, nearest first.

        Columns: symbol, expiration, bid, bid_size, ask, ask_size, last, last_ts, open, high,
        low, volume, settlement (of the last settled session), previous_settlement,
        open_interest.
        """
        moment = self.moment(instant)
        return self._remember(("futures", moment), lambda: self._futures(moment))

    # Options on the futures

    def listed(self, trade_date: date) -> pl.DataFrame:
        """All contracts that trade on a trade date, by expiration, root, side and strike.

        Columns: contract_key, raw_symbol, series, root, expiration, expiration_date,
        settlement_style, exercise_style, underlying, underlying_expiration, strike,
        option_type, instrument_id (stable for a contract's life), listed_on.
        """
        return self._remember(("listed", trade_date), lambda: self._listed(trade_date))

    def chain(self, instant: datetime) -> pl.DataFrame:
        """The whole chain at an instant: `listed` and the state of every contract.

        Adds: bid, bid_size, ask, ask_size (null where there is none), value (fair price),
        implied_volatility, delta, gamma, theta (per day), vega (per 1.00), quote_ts; last,
        last_ts, open, high, low, volume of the session (volume 0 and the rest null without
        a trade); prior_last, prior_last_ts, prior_open, prior_high, prior_low, prior_volume
        of the session before; settlement of the last settled session with settlement_date,
        previous_settlement; open_interest; expired.
        """
        moment = self.moment(instant)
        return self._remember(("chain", moment), lambda: self._chain(moment))

    def quotes(self, contracts: pl.DataFrame, ts_ns: Any) -> pl.DataFrame:
        """Books of contracts (rows of `listed`) at one instant each (or one for all).

        Columns: bid, bid_size, ask, ask_size, value, implied_volatility, forward.
        """
        return self._quotes(
            contracts, np.broadcast_to(np.asarray(ts_ns, np.int64), contracts.height), NQ.ticks
        )

    def trades(self, trade_date: date) -> pl.DataFrame:
        """All option trades of a session in time order.

        Columns: contract_key, instrument_id, row (index into `listed`), ts_event (ns UTC),
        price, size, side ('A' seller's aggressor hits the bid, 'B' buyer's lifts the ask).
        """
        return self._remember(("trades", trade_date), lambda: self._trades(trade_date))

    # Options on the index and the fund

    def proxy_chain(self, underlying: Proxy, instant: datetime) -> pl.DataFrame:
        """The chain of NDX and NDXP, or of QQQ, at an instant of regular trading hours.

        Outside them it shows the last regular close. Columns as `chain`, with `ticker`
        (OCC style) in place of the Globex names.
        """
        moment = self.regular_moment(instant)
        return self._remember(("proxy", underlying, moment), lambda: self._proxy_chain(underlying, moment))

    def regular_moment(self, instant: datetime) -> datetime:
        """The moment the index and its options show: within 08:30 to 15:00 CT, else the last such close."""
        day = sessions.trade_date(instant)
        while True:
            rth = sessions.session(day).rth
            if rth is not None and rth[0] <= instant:
                return min(instant, rth[1]).replace(second=0, microsecond=0)
            day = previous_trade_date(day)

    def proxy_price(self, underlying: Proxy, instant: datetime) -> float:
        """The index, or the fund's price, as last computed in regular hours."""
        level = float(self.index(to_ns(self.regular_moment(instant)))[0])
        return round(level * (QQQ_PER_INDEX if underlying == "QQQ" else 1.0), 2)

    # How it is made

    def _remember(self, key: tuple[Any, ...], make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """Compute once per key, one thread at a time, and keep the newest few."""
        with self._lock:
            if key not in self._memory:
                while len(self._memory) >= 48:
                    del self._memory[next(iter(self._memory))]
                self._memory[key] = make()
            return self._memory[key]

    def _log_close(self, day: Any) -> Floats:
        """Log of the index at the close of a day, days counted from 1970."""
        block, inside = np.divmod(np.asarray(day, np.int64), _BLOCK_DAYS)
        share = inside / _BLOCK_DAYS
        left, right = normal(self.seed, _BLOCK, block), normal(self.seed, _BLOCK, block + 1)
        walk = bridge(mix(self.seed, _DAILY, block), share, 9) + 0.25 * (left + (right - left) * share)
        return np.asarray(np.log(LEVEL) + _DAY_SIGMA * np.sqrt(_BLOCK_DAYS) * walk, np.float64)

    def _volatility_level(self, ts: Any) -> Floats:
        """At-the-money volatility of the far end of the surface; drifts over weeks."""
        share = np.asarray(ts, np.float64) / (256 * _DAY_NS)
        block = np.floor(share).astype(np.int64)
        return np.asarray(0.20 * np.exp(0.8 * bridge(mix(self.seed, _VOL, block), share - block, 6)))

    def _forward(self, ts: Any, until: Any) -> Floats:
        ts = np.asarray(ts, np.int64)
        years = np.maximum(np.asarray(until, np.int64) - ts, 0) / _YEAR_NS
        return np.asarray(self.index(ts) * np.exp((RATE - DIVIDEND) * years), np.float64)

    def _future_expirations(self, ts_ns: Any) -> dict[str, datetime]:
        first = from_ns(int(np.min(ts_ns))).date()
        return {
            underlying_future(s): s.expiration for s in _quarterlies(first - timedelta(1), QUARTERLIES + 2)
        }

    def _futures(self, moment: datetime) -> pl.DataFrame:
        today = sessions.current_session(moment)
        settled, before = self._settled(moment)
        minutes = np.arange(to_ns(today.open), to_ns(moment) + 1, _MINUTE_NS)
        rows = []
        for rank, series in enumerate(_quarterlies(today.trade_date, QUARTERLIES + 1)):
            until = to_ns(series.expiration)
            if until <= to_ns(moment):
                continue
            path = _on_tick(self._forward(minutes, until), ((np.inf, 0.25),), np.round)
            key = mix(self.seed, _SIZE, until, to_ns(moment))
            gap, sizes = (0.25, 0.50, 2.0, 5.0, 5.0)[rank], 1 + mix(key, np.arange(2)) % 12
            share, weight = len(minutes) / 1380, (0.97, 0.03, 0.0004, 0.0001, 0.0001)[rank]
            settle = [
                float(_on_tick(self._forward(_settle_ns(day), until), ((np.inf, 0.25),), np.round)[0])
                for day in (settled, before)
            ]
            rows.append(
                {
                    "symbol": underlying_future(series),
                    "expiration": series.expiration,
                    "bid": path[-1] - gap / 2 - (path[-1] - gap / 2) % 0.25,
                    "bid_size": int(sizes[0]),
                    "ask": path[-1] - gap / 2 - (path[-1] - gap / 2) % 0.25 + max(gap, 0.25),
                    "ask_size": int(sizes[1]),
                    "last": path[-1],
                    "last_ts": moment,
                    "open": path[0],
                    "high": path.max(),
                    "low": path.min(),
                    "volume": int(560_000 * share * weight),
                    "settlement": settle[0],
                    "previous_settlement": settle[1],
                    "open_interest": int(260_000 * weight) + int(uniform(self.seed, _OPEN, until)[0] * 900),
                }
            )
        return pl.DataFrame(rows).with_columns(_utc("expiration", "last_ts"))

    def _settled(self, moment: datetime) -> tuple[date, date]:
        """The last settled trade date and the one before: a session settles when it closes."""
        today = sessions.current_session(moment)
        last = today.trade_date if moment >= today.close else previous_trade_date(today.trade_date)
        return last, previous_trade_date(last)

    def _listed(self, trade_date: date) -> pl.DataFrame:
        near = expirations(NQ.code, trade_date, trade_date + timedelta(LISTED_DAYS))
        far = [s for s in _quarterlies(trade_date, QUARTERLIES) if s not in near]
        futures = self._future_expirations(to_ns(sessions.session(trade_date).open))
        boards = []
        for series in [*near, *far]:
            root = series.root_info
            days = (series.expiration_date - trade_date).days
            listed_on = series.expiration_date - timedelta(
                400 if root.family.kind == "quarterly" else LISTED_DAYS
            )
            known = min(trade_date, listed_on)
            closes = np.exp(self._log_close(np.arange(_day(known) - 1, _day(trade_date))))
            strikes = _ladder(float(closes.min()), float(closes.max()), days)
            future = underlying_future(series)
            boards.append(
                pl.DataFrame({"strike": np.tile(strikes, 2)}).select(
                    pl.lit(series.key).alias("series"),
                    pl.lit(series.root).alias("root"),
                    pl.lit(globex_code(series)).alias("code"),
                    pl.lit(series.expiration).dt.convert_time_zone("UTC").alias("expiration"),
                    pl.lit(series.expiration_date).alias("expiration_date"),
                    pl.lit(root.family.settlement_style).alias("settlement_style"),
                    pl.lit(root.family.exercise_style).alias("exercise_style"),
                    pl.lit(future).alias("underlying"),
                    pl.lit(futures[future]).dt.convert_time_zone("UTC").alias("underlying_expiration"),
                    "strike",
                    pl.Series("option_type", np.repeat(["C", "P"], len(strikes))),
                    pl.lit(int(root.family.kind != "quarterly"), pl.Int64).alias("slot"),
                    pl.lit(listed_on).alias("listed_on"),
                )
            )
        key, side, strike = pl.col("series"), pl.col("option_type"), pl.col("strike")
        return (
            pl.concat(boards)
            .with_columns(
                _utc("expiration", "underlying_expiration"),
                contract_keys(key, side, strike).alias("contract_key"),
                globex_symbols(pl.col("code"), side, strike).alias("raw_symbol"),
                _instrument_id(5.0),
            )
            .drop("code", "slot")
            .sort("expiration", "root", "option_type", "strike", maintain_order=True)
        )

    def _model(self, contracts: pl.DataFrame, ts: Any) -> dict[str, Floats]:
        """Fair price and Greeks of contracts at instants, by Black-76 on the surface."""
        strike = contracts["strike"].to_numpy()
        expiration = contracts["expiration"].cast(pl.Int64).to_numpy()
        scale = contracts["scale"].to_numpy() if "scale" in contracts.columns else 1.0
        forward = self._forward(ts, contracts["underlying_expiration"].cast(pl.Int64).to_numpy()) * scale
        years = np.maximum((expiration - ts) / _YEAR_NS, 1e-7)
        sigma = self._surface(np.log(strike / forward), years, ts)
        is_call = (contracts["option_type"] == "C").to_numpy()
        fair = black76.value(forward, strike, years, sigma, is_call, RATE)
        return {
            "forward": forward,
            "value": np.maximum(fair.price, 0.0),
            "implied_volatility": sigma,
            "delta": fair.delta,
            "gamma": fair.gamma,
            "theta": fair.theta,
            "vega": fair.vega,
        }

    def _surface(self, moneyness: Floats, years: Floats, ts: Any) -> Floats:
        """Volatility by log-moneyness and time: higher for near expirations, skewed to the downside."""
        level = self._volatility_level(ts) * (1 + 0.12 * np.exp(-years / 0.05))
        deviations = moneyness / (level * np.sqrt(years + 0.001))
        return np.asarray(level * (1 - 0.075 * deviations + 0.055 * (np.sqrt(1 + deviations**2) - 1)))

    def _quotes(
        self, contracts: pl.DataFrame, ts: Any, ticks: tuple[tuple[float, float], ...]
    ) -> pl.DataFrame:
        model = self._model(contracts, ts)
        value, forward, strike = model["value"], model["forward"], contracts["strike"].to_numpy()
        sign = np.where(contracts["option_type"].to_numpy() == "C", 1.0, -1.0)
        days = (contracts["expiration"].cast(pl.Int64).to_numpy() - ts) / _DAY_NS
        scale = forward / LEVEL
        depth = np.maximum(sign * (forward - strike), 0.0) / forward
        # Deep in the money nobody competes: near boards quote wide, far ones at times not at all.
        width = (0.15 + 0.1 * np.sqrt(value / scale)) * scale
        width += np.where(days <= 3.5, 60.0, 8.0) * scale * np.clip((depth - 0.012) / 0.015, 0.0, 1.0)
        width *= np.where(_in_rth(ts), 1.0, 1.7)
        bid = _on_tick(np.maximum(value - width / 2, 0.0), ticks, np.floor)
        ask = _on_tick(value + width / 2, ticks, np.ceil)
        ask = np.where(ask <= bid, bid + _tick_above(bid, ticks), ask)
        dead = (days <= 0) | ((days > 3.5) & (depth > 0.08))
        sizes = mix(self.seed, _SIZE, contracts["instrument_id"].to_numpy(), ts // _MINUTE_NS)
        frame = pl.DataFrame(
            {
                "bid": np.where(dead | (bid <= 0), np.nan, bid),
                "bid_size": (1 + sizes % 40).astype(np.int64),
                "ask": np.where(dead, np.nan, ask),
                "ask_size": (1 + (sizes >> np.uint64(20)) % 40).astype(np.int64),
                **model,
            }
        ).with_columns(pl.col("bid", "ask").fill_nan(None))
        return frame.with_columns(
            pl.when(pl.col(side).is_not_null()).then(pl.col(f"{side}_size")).alias(f"{side}_size")
            for side in ("bid", "ask")
        )

    def _trades(self, trade_date: date) -> pl.DataFrame:
        return self._make_trades(self.listed(trade_date), trade_date, NQ.ticks)

    def _make_trades(
        self, contracts: pl.DataFrame, trade_date: date, ticks: tuple[tuple[float, float], ...]
    ) -> pl.DataFrame:
        """Few contracts trade: most near the money, near expiration, out of the money, at round strikes."""
        session = sessions.session(trade_date)
        ids, day = contracts["instrument_id"].to_numpy(), _day(trade_date)
        strike = contracts["strike"].to_numpy()
        model = self._model(contracts, np.full(contracts.height, to_ns(session.open)))
        days = (contracts["expiration_date"].to_numpy().astype("datetime64[D]").astype(np.int64)) - day
        appeal = np.abs(model["delta"]) / 0.25
        rate = 11.0 * appeal * np.exp(1 - appeal) / (0.7 + days / 2.5)
        rate *= _roundness(strike / (model["forward"] / LEVEL if "scale" in contracts.columns else 1.0))
        count = np.minimum(np.floor(-np.log(uniform(self.seed, _TRADES, day, ids)) * rate), 80).astype(
            np.int64
        )
        row = np.repeat(np.arange(contracts.height), count)
        ordinal = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        knots, share = _session_knots(session)
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
        frame = frame.with_columns(pl.col("price").fill_nan(None)).drop_nulls("price")
        if "contract_key" in contracts.columns:
            frame = frame.with_columns(contract_key=contracts["contract_key"].gather(frame["row"]))
        return frame.sort("ts_event", "instrument_id", maintain_order=True)

    def _chain(self, moment: datetime) -> pl.DataFrame:
        trade_date = sessions.trade_date(moment)
        listed = self.listed(trade_date)
        return self._state(listed, moment, self.trades, NQ.ticks, self._settled(moment))

    def _state(
        self,
        contracts: pl.DataFrame,
        moment: datetime,
        trades: Any,
        ticks: tuple[tuple[float, float], ...],
        settled: tuple[date, date],
    ) -> pl.DataFrame:
        """The state of contracts at a moment: book, session so far, session before, settlements."""
        now, trade_date = to_ns(moment), sessions.trade_date(moment)
        ids = contracts["instrument_id"]
        book = self._quotes(contracts, np.full(contracts.height, now), ticks).drop("forward")
        frame = pl.concat([contracts, book], how="horizontal").with_columns(
            quote_ts=pl.lit(now).cast(pl.Datetime("ns", "UTC")),
            expired=pl.col("expiration").cast(pl.Int64) <= now,
            open_interest=pl.Series(self._open_interest(contracts, trade_date)),
        )
        today = trades(trade_date).filter(pl.col("ts_event") <= now)
        before = trades(previous_trade_date(trade_date))
        for prefix, done in (("", today), ("prior_", before)):
            frame = frame.join(
                _session_so_far(done, prefix), on="instrument_id", how="left", maintain_order="left"
            )
        for name, day in zip(("settlement", "previous_settlement"), settled, strict=True):
            frame = frame.with_columns(self._settlement(contracts, day, now, ticks).alias(name))
        assert frame["instrument_id"].equals(ids)
        return frame.with_columns(
            pl.lit(settled[0]).alias("settlement_date"),
            pl.col("volume", "prior_volume").fill_null(0),
        )

    def _settlement(
        self, contracts: pl.DataFrame, day: date, now: int, ticks: tuple[tuple[float, float], ...]
    ) -> pl.Series:
        """Settlements of a trade date: fair price at its settlement, null for what was not yet listed.

        A contract that expired settles at its intrinsic value to the cent when in the money,
        as the exchange's fixing does; out of the money it keeps the settlement of before.
        """
        at = np.full(contracts.height, _settle_ns(day))
        value = _on_tick(self._model(contracts, at)["value"], ticks, np.round)
        value = np.maximum(value, ticks[0][1])
        expiration = contracts["expiration"].cast(pl.Int64).to_numpy()
        gone = expiration <= now
        if gone.any():
            past = contracts.filter(pl.Series(gone))
            fixing = self._model(past, past["expiration"].cast(pl.Int64).to_numpy())
            sign = np.where(past["option_type"].to_numpy() == "C", 1.0, -1.0)
            intrinsic = np.round(sign * (fixing["forward"] - past["strike"].to_numpy()), 2)
            day_before = np.full(past.height, _settle_ns(previous_trade_date(day)))
            kept = np.maximum(_on_tick(self._model(past, day_before)["value"], ticks, np.round), ticks[0][1])
            at_close = day == sessions.trade_date(from_ns(now))
            value[gone] = np.where(intrinsic > 0, intrinsic, kept) if at_close else value[gone]
        unlisted = contracts["listed_on"].to_numpy().astype("datetime64[D]") > np.datetime64(day)
        return pl.Series(np.where(unlisted, np.nan, np.round(value, 4))).fill_nan(None)

    def _open_interest(self, contracts: pl.DataFrame, trade_date: date) -> Floats:
        """Open contracts of the trade date before: more at round strikes, growing with age, often none."""
        age = _day(trade_date) - contracts["listed_on"].to_numpy().astype("datetime64[D]").astype(np.int64)
        strike, ids = contracts["strike"].to_numpy(), contracts["instrument_id"].to_numpy()
        centre = LEVEL * (contracts["scale"].to_numpy() if "scale" in contracts.columns else 1.0)
        spread = np.exp(-((np.log(strike / centre) / 0.12) ** 2))
        target = (
            np.exp(1.6 + 1.2 * normal(self.seed, _OPEN, ids)) * spread * _roundness(strike * LEVEL / centre)
        )
        return np.asarray(np.floor(target * (1 - np.exp(-np.maximum(age, 0) / 25))), np.int64)

    def _proxy_chain(self, underlying: Proxy, moment: datetime) -> pl.DataFrame:
        trade_date = sessions.trade_date(moment)
        days = [s.trade_date for s in sessions.sessions(trade_date, trade_date + timedelta(35)) if s.rth]
        scale = QQQ_PER_INDEX if underlying == "QQQ" else 1.0
        monthly = _monthly_dates(trade_date, 4)
        if underlying == "QQQ":
            boards = [("QQQ", day) for day in sorted({*days, *monthly})]
        else:
            boards = [*(("NDXP", day) for day in days), *(("NDX", day) for day in monthly)]
        known = np.exp(self._log_close(np.arange(_day(trade_date) - 30, _day(trade_date)))) * scale
        strikes = _proxy_ladder(underlying, float(known.min()), float(known.max()))
        frame = pl.concat(_proxy_board(root, day, strikes, scale) for root, day in boards)
        frame = frame.sort("expiration", "root", "option_type", "strike", maintain_order=True)
        ticks = PROXIES[underlying].ticks

        def trades(day: date) -> pl.DataFrame:
            done = self._make_trades(frame, day, ticks)
            return done.filter(_in_rth(done["ts_event"].to_numpy()))

        settled = previous_trade_date(trade_date)
        return self._state(frame, moment, trades, ticks, (settled, previous_trade_date(settled)))


@lru_cache(maxsize=16)
def market(seed: int) -> Market:
    """The market of a seed; one object per process, so that its caches serve every request."""
    return Market(seed)


def previous_trade_date(day: date) -> date:
    """The trade date before a trade date."""
    return sessions.trade_date(sessions.session(day).open - timedelta(seconds=1))


@lru_cache(maxsize=64)
def _quarterlies(start: date, count: int) -> list[Series]:
    near = expirations(NQ.code, start, start + timedelta(100 * count))
    return [s for s in near if s.root_info.family.kind == "quarterly"][:count]


def _monthly_dates(start: date, count: int) -> list[date]:
    """The next third Fridays (or the trade dates before them), on which index and fund options expire."""
    near = expirations(NQ.code, start, start + timedelta(32 * count))
    days = {s.expiration_date for s in near if s.root == "QN3" or s.root_info.family.kind == "quarterly"}
    return sorted(days)[:count]


@lru_cache(maxsize=16)
def _timeline(first: int, last: int) -> tuple[Any, Any, Any]:
    """Knots of trading time: at each, how many sessions have passed; and the sessions' days.

    Trading time runs three times as fast in regular hours and stands still while closed.
    """
    known = sessions.sessions(date(first - 1, 12, 1), date(last + 1, 1, 15))
    knots, elapsed = [], []
    for ordinal, session in enumerate(known[1:]):
        at, share = _session_knots(session)
        knots.append(at)
        elapsed.append(ordinal + share)
    days = np.array([_day(s.trade_date) for s in known])
    return np.concatenate(knots), np.concatenate(elapsed), days


def _session_knots(session: sessions.Session) -> tuple[Any, Any]:
    """Edges of a session's segments and regular hours, and the share of trading time passed at each."""
    edges = {to_ns(edge) for segment in session.segments for edge in segment}
    if session.rth:
        edges |= {to_ns(edge) for edge in session.rth}
    at = np.array(sorted(edges), np.int64)
    middle = (at[1:] + at[:-1]) // 2
    weight = np.zeros(len(middle))
    for start, end in session.segments:
        weight[(middle >= to_ns(start)) & (middle < to_ns(end))] = 1.0
    if session.rth:
        weight[(middle >= to_ns(session.rth[0])) & (middle < to_ns(session.rth[1]))] = 3.0
    passed = np.concatenate([[0.0], np.cumsum(weight * np.diff(at))])
    return at, passed / passed[-1]


@lru_cache(maxsize=256)
def _settle_ns(day: date) -> int:
    """When a trade date settles: the end of regular hours, or its close where there are none."""
    session = sessions.session(day)
    return to_ns(session.rth[1] if session.rth else session.close)


def _in_rth(ts: Any) -> Any:
    """Whether instants lie in regular hours, looked up once per session."""
    first, last = from_ns(int(ts.min())), from_ns(int(ts.max()))
    spans = [
        s.rth for s in sessions.sessions(first.date() - timedelta(4), last.date() + timedelta(1)) if s.rth
    ]
    edges = np.array([to_ns(edge) for span in spans for edge in span], np.int64)
    return np.searchsorted(edges, ts, side="right") % 2 == 1


def _session_so_far(trades: pl.DataFrame, prefix: str) -> pl.DataFrame:
    summary = trades.group_by("instrument_id").agg(
        pl.col("price").last().alias("last"),
        pl.col("ts_event").last().cast(pl.Datetime("ns", "UTC")).alias("last_ts"),
        pl.col("price").first().alias("open"),
        pl.col("price").max().alias("high"),
        pl.col("price").min().alias("low"),
        pl.col("size").sum().alias("volume"),
    )
    return summary.rename({name: prefix + name for name in summary.columns if name != "instrument_id"})


def _ladder(low: float, high: float, days: int) -> Floats:
    """Strikes of a board given the range of closes since it was listed; near expiration strikes are added."""
    spans = [(500, 0.62, 1.15), (250, 0.83, 1.09), (100, 0.86, 1.08), (50, 0.89, 1.07)]
    if days <= 14:
        spans += [(25, 0.935, 1.04)]
    if days <= 6:
        spans += [(10, 0.955, 1.02)]
    return _multiples(spans, low, high)


def _proxy_ladder(underlying: Proxy, low: float, high: float) -> Floats:
    if underlying == "QQQ":
        return _multiples([(1, 0.93, 1.05), (5, 0.80, 1.12)], low, high)
    return _multiples([(25, 0.985, 1.015), (50, 0.95, 1.04), (100, 0.90, 1.08), (500, 0.70, 1.15)], low, high)


def _multiples(spans: list[tuple[int, float, float]], low: float, high: float) -> Floats:
    strikes = [
        np.arange(np.ceil(low * down / step), np.floor(high * up / step) + 1) * step
        for step, down, up in spans
    ]
    return np.asarray(np.unique(np.concatenate(strikes)), np.float64)


def _proxy_board(root: str, day: date, strikes: Floats, scale: float) -> pl.DataFrame:
    """One expiration of the index or the fund."""
    series = Series(root, day)
    family = series.root_info.family
    slot = {"NDX": 2, "NDXP": 3, "QQQ": 4}[root]
    coded = (pl.col("strike") * 1000).round().cast(pl.Int64).cast(pl.String).str.zfill(8)
    return (
        pl.DataFrame({"strike": np.tile(strikes, 2)})
        .select(
            pl.lit(root).alias("root"),
            pl.lit(series.key).alias("series"),
            pl.lit(series.expiration).alias("expiration"),
            pl.lit(series.expiration).alias("underlying_expiration"),
            pl.lit(day).alias("expiration_date"),
            pl.lit(family.settlement_style).alias("settlement_style"),
            pl.lit(family.exercise_style).alias("exercise_style"),
            pl.lit(series.root_info.product.code).alias("underlying"),
            "strike",
            pl.Series("option_type", np.repeat(["C", "P"], len(strikes))),
            pl.lit(slot, pl.Int64).alias("slot"),
            pl.lit(scale).alias("scale"),
            pl.lit(day - timedelta(60 if root != "NDX" else 400)).alias("listed_on"),
        )
        .with_columns(
            _utc("expiration", "underlying_expiration"),
            pl.concat_str(pl.lit(f"O:{root}{day:%y%m%d}"), "option_type", coded).alias("ticker"),
            _instrument_id(1.0 if root == "QQQ" else 5.0),
        )
        .drop("slot")
    )


def _instrument_id(step: float) -> pl.Expr:
    """A stable id below 2**32: expiration date, family slot, strike and side, each in its own digits."""
    days = (pl.col("expiration_date") - pl.lit(_IDS_SINCE)).dt.total_days()
    strike = (pl.col("strike") / step).round().cast(pl.Int64)
    side = (pl.col("option_type") == "P").cast(pl.Int64)
    return ((days * 5 + pl.col("slot")) * 20_000 + strike * 2 + side).alias("instrument_id")


def _roundness(strike: Any) -> Floats:
    """People trade round strikes: a factor by the largest step that divides the strike."""
    factor = np.full(np.shape(strike), 0.35)
    for step, weight in ((25, 0.6), (50, 1.0), (100, 1.8), (500, 3.0), (1000, 4.0)):
        factor[np.mod(strike, step) == 0] = weight
    return factor


def _on_tick(price: Any, ticks: tuple[tuple[float, float], ...], rounding: Any) -> Floats:
    """Prices on the tick of their range, rounded by `rounding` (np.floor, np.ceil or np.round)."""
    price = np.asarray(price, np.float64)
    tick = np.select([price <= bound for bound, _ in ticks], [step for _, step in ticks])
    nudge = {np.floor: 1e-9, np.ceil: -1e-9}.get(rounding, 0.0)
    return np.asarray(np.round(rounding(price / tick + nudge) * tick, 4), np.float64)


def _tick_above(price: Any, ticks: tuple[tuple[float, float], ...]) -> Floats:
    return np.asarray(np.select([price < bound for bound, _ in ticks], [step for _, step in ticks]))


def _utc(*columns: str) -> Any:
    return pl.col(*columns).dt.convert_time_zone("UTC").dt.cast_time_unit("ns")


def _day(day: date) -> int:
    """Days since 1970-01-01."""
    return (day - date(1970, 1, 1)).days
