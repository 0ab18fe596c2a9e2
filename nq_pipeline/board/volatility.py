"""ATM IV and expected move of each product's front series, from live quotes.

A feed sends a quote when it changes, so the quotes of a series are of different moments. Each is valued with
the price that the future had then, and the smile of these volatilities is read at the future's price now.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl

from nq_pipeline.analytics import metrics
from nq_pipeline.charts.theme import series_label_text
from nq_pipeline.clock import to_ns
from nq_pipeline.market import sessions
from nq_pipeline.market.black76 import DAYS_PER_YEAR
from nq_pipeline.market.contracts import PRODUCT_OF, ROOTS, Series
from nq_pipeline.market.listing import underlying_future
from nq_pipeline.market.pricing import price_chain

MOST_AGE_MS = 3_600_000
"""Quotes that are older are not used."""
LEAST_LEFT_S = 900
"""A series that expires within this many seconds is not a front series: its volatility says little."""
LEAST_QUOTES = 6
"""Two-sided quotes that a front series needs."""

_COLUMNS = ("series", "contract_key", "root", "option_type", "strike", "bid", "ask", "time")
_INSTANT = pl.Datetime("ns", "UTC")


def quote_rows(books: pl.DataFrame) -> pl.DataFrame:
    """The newest quote of each option in rows of `mbp_1`, with `bid`, `ask` and `time` (ms UTC)."""
    return (
        books.filter(pl.col("contract_key").is_not_null())
        .with_columns(bid="bid_px_00", ask="ask_px_00", time=pl.col("ts_recv").dt.epoch("ms"))
        .select(_COLUMNS)
        .unique("contract_key", keep="last", maintain_order=True)
    )


class LiveQuotes:
    """The newest quote of every option.

    Parameters
    ----------
    rate
        Continuously compounded, per year.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._frames: list[pl.DataFrame] = []

    def add(self, quotes: pl.DataFrame) -> None:
        """Add rows of `quote_rows`, which are newer than those before."""
        self._frames.append(quotes)

    def measure(self, now: datetime, points: pl.DataFrame) -> dict[str, Any]:
        """ATM IV and expected move of the front series of each product, as formulas of `series_metrics`.

        Parameters
        ----------
        now
            The market's time.
        points
            `FuturePrices.points`.

        Returns
        -------
        By product: `series`, `label`, `expiration` (ms UTC), `atm_iv` (a fraction), `expected_move` (points,
        to expiration), `forward` (the future's price), `quotes` (how many were used) and `newest` (ms UTC),
        the time of the newest one. Products without a front series, or without a strike on either side of the
        future, are left out.
        """
        quotes = self._newest(now)
        front = _front_series(quotes, now)
        chain = _as_chain(quotes, front, points, now)
        if chain.is_empty():
            return {}
        priced = metrics.priced_chain(chain, price_chain(chain, rate=self._rate)).filter(
            pl.col("iv").is_not_null()
        )
        current = chain.select("contract_key", "price_now", "years_now")
        current = priced.join(current, on="contract_key", maintain_order="left")
        current = current.with_columns(forward="price_now", years="years_now")
        used = quotes.group_by("series").agg(quotes=pl.len(), newest=pl.col("time").max())
        measured = (
            metrics.series_metrics(current).join(used, on="series").filter(pl.col("atm_iv").is_not_null())
        )
        return {
            PRODUCT_OF[row["root"]]: {
                "series": row["series"],
                "label": series_label_text(row["series"]),
                "expiration": row["expiration"].timestamp() * 1e3,
                "atm_iv": row["atm_iv"],
                "expected_move": row["expected_move_iv"],
                **{name: row[name] for name in ("forward", "quotes", "newest")},
            }
            for row in measured.iter_rows(named=True)
        }

    def _newest(self, now: datetime) -> pl.DataFrame:
        frames, self._frames = self._frames, []  # another thread may add meanwhile
        if not frames:
            return pl.DataFrame(schema=dict.fromkeys(_COLUMNS, pl.String))
        quotes = pl.concat(frames).unique("contract_key", keep="last", maintain_order=True)
        quotes = quotes.filter(pl.col("time") >= now.timestamp() * 1e3 - MOST_AGE_MS)
        self._frames.insert(0, quotes)
        return quotes.filter(pl.col("bid") > 0, pl.col("ask") >= pl.col("bid"))


def _front_series(quotes: pl.DataFrame, now: datetime) -> list[Series]:
    """The first series to expire of each product that has enough quotes."""
    counts = quotes["series"].value_counts().filter(pl.col("count") >= LEAST_QUOTES)
    parsed = [Series.parse(key) for key in counts["series"]]
    front: dict[str, Series] = {}
    for series in sorted(parsed, key=lambda one: (one.expiration, one.root)):
        if series.root in ROOTS and (series.expiration - now).total_seconds() >= LEAST_LEFT_S:
            front.setdefault(PRODUCT_OF[series.root], series)
    return list(front.values())


def _as_chain(quotes: pl.DataFrame, front: list[Series], points: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """Quotes of some series as rows of a chain, each of its own moment, with the future's prices."""
    if not front or points.is_empty():
        return pl.DataFrame()
    last = dict(points.group_by("symbol").agg(pl.col("price").last()).iter_rows())
    of_series = pl.DataFrame(
        [
            {
                "series": series.key,
                "symbol": underlying_future(series),
                "expiration": to_ns(series.expiration),
                "exercise_style": series.root_info.family.exercise_style,
                "multiplier": series.root_info.product.multiplier,
                "years_now": (series.expiration - now).total_seconds() / (DAYS_PER_YEAR * 86_400),
            }
            for series in front
        ],
    ).with_columns(
        pl.col("expiration").cast(_INSTANT),
        price_now=pl.col("symbol").replace_strict(last, default=None, return_dtype=pl.Float64),
    )
    rows = quotes.join(of_series.drop_nulls("price_now"), on="series").sort("time")
    rows = rows.join_asof(
        points.rename({"price": "underlying_price"}), on="time", by="symbol", check_sortedness=False
    )
    absent: dict[str, pl.DataType | type[pl.DataType]] = {
        **dict.fromkeys(("last", "settlement"), pl.Float64),
        **dict.fromkeys(("open_interest", "volume"), pl.Int64),
        **dict.fromkeys(("last_ts", "quote_ts"), _INSTANT),
        "settlement_date": pl.Date,
    }
    return rows.with_columns(
        source=pl.lit("live"),
        environment=pl.lit(""),
        snapshot_ts=pl.lit(to_ns(now)).cast(_INSTANT),
        as_of=pl.from_epoch("time", "ms").dt.cast_time_unit("ns").dt.replace_time_zone("UTC"),
        trade_date=pl.lit(sessions.trade_date(now)),
        underlying_class=pl.lit("future"),
        is_settlement=pl.lit(False),
        **{name: pl.lit(None, kind) for name, kind in absent.items()},
    )
