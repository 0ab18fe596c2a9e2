"""The contents of a report, read from the lake: chain, metrics, sources, gaps and spend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from nq_pipeline.analytics import metrics
from nq_pipeline.analytics.pressure import windows_over
from nq_pipeline.analytics.priced import of_one_moment, priced_chain
from nq_pipeline.analytics.smile import with_moneyness
from nq_pipeline.analytics.snapshot import price_as_set
from nq_pipeline.errors import LakeError
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import GAMMA_LEVELS, SERIES_METRICS, STRIKE_PROFILE, TRADES
from nq_pipeline.market.contracts import roots_of
from nq_pipeline.market.products import PRODUCTS, PROXIES, Product
from nq_pipeline.market.sessions import chain_moment
from nq_pipeline.market.surface import VolatilitySurface
from nq_pipeline.report import snapshots
from nq_pipeline.settings import Settings
from nq_pipeline.spend.ledger import read_ledger
from nq_pipeline.spend.statement import Statement
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    import duckdb


SURFACE_REACH = 0.15
"""Largest distance of a strike from the future in the surface, as a fraction of the future's price."""
SURFACE_STRIKES = 61
TRADE_DATES_BACK = 10
"""Captured trade dates that are searched for the newest trades of a product."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A snapshot with which the page compares its own."""

    name: str  # previous (the snapshot before), or close (the last one of the trade date before)
    snapshot_ts: datetime
    trade_date: date


@dataclass(frozen=True, slots=True)
class Measures:
    """The options on one product at one moment, as rows of the tables of these names."""

    quotes: pl.DataFrame  # the priced contracts, with `is_otm` for those of `iv_smile`
    profile: pl.DataFrame
    series: pl.DataFrame
    levels: pl.DataFrame

    @property
    def front(self) -> dict[str, Any]:
        """The row of the first series to expire with a forward, as in `market_history`; else the first."""
        known = self.series.filter(pl.col("forward").is_not_null())
        return (known if known.height else self.series).row(0, named=True)


@dataclass(frozen=True, slots=True)
class ProductFacts:
    """The options on one product, now and at the earlier moments that have any."""

    product: Product
    underlying: str
    now: Measures
    earlier: dict[str, Measures]
    pressure: pl.DataFrame  # of the newest trade date with trades, which may be before that of the chain
    history: pl.DataFrame  # `market_history` of the trade date so far, of the source with the most contracts
    changes: pl.DataFrame  # `open_interest_change` of the newest trade date that has any, from one vendor
    surface: pl.DataFrame  # the fitted volatility at evenly spaced strikes of every series

    def of_moments(self, name: str) -> pl.DataFrame:
        """Rows of all moments of one field of `Measures`, by the column `moment`."""
        moments = {"now": self.now, **self.earlier}
        rows: dict[str, pl.DataFrame] = {moment: getattr(own, name) for moment, own in moments.items()}
        return pl.concat(own.with_columns(moment=pl.lit(moment)) for moment, own in rows.items())


@dataclass(frozen=True, slots=True)
class Facts:
    """A snapshot, and everything that its report shows."""

    environment: str
    snapshot_ts: datetime  # of the chain's newest rows; a series from the cache may be minutes older
    as_of: tuple[datetime, datetime]  # oldest and newest time of its quotes, at the latest the close
    trade_date: date
    chain: pl.DataFrame
    pricing: pl.DataFrame
    moments: tuple[Moment, ...]
    products: tuple[ProductFacts, ...]
    sources: pl.DataFrame
    agreement: pl.DataFrame
    gaps: pl.DataFrame
    captured: tuple[date, ...]  # whose trades and gaps are shown, oldest first; the chain's if there are none
    month: Statement


def load_facts(settings: Settings, snapshot_ts: datetime | None) -> Facts:
    """Load the facts of the newest snapshot, or of the chain as it stood at a moment.

    Raises `LakeError` when the lake has no chain at that moment.
    """
    with catalog.connect(Workspace.of(settings).existing_lake) as lake:
        chain = catalog.chain(lake, snapshot_ts)
        if chain.is_empty():
            if snapshot_ts is None:
                raise LakeError("the lake has no chain to report on; `nq run` fetches one")
            raise LakeError(
                f"the lake has no chain as of {snapshot_ts:%Y-%m-%d %H:%M %Z} to report on; "
                "`nq report --list` shows the snapshots that it has"
            )
        newest: datetime = chain["snapshot_ts"].max()  # type: ignore[assignment]
        day: date = chain["trade_date"].max()  # type: ignore[assignment]
        pricing = _pricing(lake, settings, chain, day)
        moments = tuple(Moment(*row) for row in snapshots.earlier(lake, newest, day).iter_rows())
        earlier = {}
        for moment in moments:
            then = catalog.chain(lake, moment.snapshot_ts)
            earlier[moment.name] = _measures(then, _pricing(lake, settings, then, moment.trade_date))
        windows = _pressure_windows(lake, settings, day, snapshot_ts and newest)
        history = lake.sql(_HISTORY, params={"day": day, "until": newest}).pl()
        changes = lake.sql(_CHANGES, params={"day": day, "until": newest}).pl()
        products = tuple(
            _product_facts(product, chain, measures, earlier, windows, history, changes)
            for product, measures in _measures(chain, pricing).items()
        )
        captured = {one.pressure.item(0, "trade_date") for one in products if one.pressure.height} or {day}
        run = _run(lake, chain, day)
        oldest, youngest = chain.select(pl.col("as_of").min(), pl.col("as_of").max().alias("max")).row(0)
        return Facts(
            environment=settings.environment,
            snapshot_ts=newest,
            as_of=(chain_moment(oldest, "globex"), chain_moment(youngest, "globex")),
            trade_date=day,
            chain=chain,
            pricing=pricing,
            moments=moments,
            products=products,
            sources=lake.sql(_SOURCES, params={"run": run, "day": day}).pl(),
            agreement=lake.sql(_AGREEMENT, params={"run": run, "day": day}).pl(),
            gaps=lake.sql(_GAPS, params={"days": sorted(captured)}).pl(),
            captured=tuple(sorted(captured)),
            month=read_ledger(settings).month(),
        )


def _pricing(
    lake: duckdb.DuckDBPyConnection, settings: Settings, chain: pl.DataFrame, day: date
) -> pl.DataFrame:
    """The chain's rows of `option_pricing`; if any is missing, the chain priced now."""
    asked = chain["snapshot_ts"].unique().to_physical().to_list()
    stored: pl.DataFrame = lake.sql(_PRICING, params={"day": day, "asked": asked}).pl()
    key = ["source", "snapshot_ts", "contract_key"]
    stored = stored.with_columns(
        pl.col("snapshot_ts_ns").cast(chain.schema["snapshot_ts"]).alias("snapshot_ts")
    )
    stored = stored.join(chain.select(key), on=key, how="semi")
    if stored.height == chain.height:
        return stored
    return price_as_set(settings, chain)


def _measures(chain: pl.DataFrame, pricing: pl.DataFrame) -> dict[Product, Measures]:
    """What a chain says of each product that it has, in the order of the product table."""
    priced = priced_chain(chain, pricing)
    rows, quoted = metrics.measure(priced), _quotes(priced, pricing)
    found = {}
    for product in (*PRODUCTS.values(), *PROXIES.values()):
        own = pl.col("root").is_in(list(roots_of([product])))
        series = rows[SERIES_METRICS].filter(own).sort("expiration", "series")
        if series.height:
            levels = rows[GAMMA_LEVELS].filter(pl.col("product") == product.code)
            found[product] = Measures(
                quotes=quoted.filter(own),
                profile=rows[STRIKE_PROFILE].filter(own),
                series=series,
                levels=levels.sort("contracts", descending=True),
            )
    return found


def _quotes(priced: pl.DataFrame, pricing: pl.DataFrame) -> pl.DataFrame:
    """The contracts with a volatility, as `iv_smile` has those that are out of the money; and their delta."""
    key = ["source", "snapshot_ts", "contract_key"]
    instant = pl.col("snapshot_ts").cast(pl.Datetime("ns", "UTC"))
    deltas = pricing.select(*key, "delta").with_columns(instant)
    return with_moneyness(of_one_moment(priced)).join(deltas, on=key)


def _newest(changes: pl.DataFrame) -> pl.DataFrame:
    """The rows of the newest trade date, and of the vendor with the most of them."""
    key = ["trade_date", "source"]
    newest = changes.group_by(key).len().sort("trade_date", "len", "source").tail(1)
    return changes.join(newest.select(key), on=key, how="semi")


def _surface(quotes: pl.DataFrame, forward: float | None) -> pl.DataFrame:
    """The fitted surface at `SURFACE_STRIKES` strikes near the future, for every listed expiration."""
    fitted = VolatilitySurface(quotes.filter("is_otm"))
    slices = fitted.slices
    if forward is None or slices.is_empty():
        return pl.DataFrame()
    low, high = slices.select(pl.col("strike_min").min(), pl.col("strike_max").max()).row(0)
    low, high = max(low, forward * (1 - SURFACE_REACH)), min(high, forward * (1 + SURFACE_REACH))
    strikes = np.linspace(low, high, SURFACE_STRIKES).reshape(-1, 1)
    listed = slices.select("series", "expiration")
    rows = fitted.implied_volatility(strikes, listed["expiration"].to_list())
    # The order of the pairs is that of `listed`, over and over: two series may expire at one instant.
    series = listed["series"].to_list() * SURFACE_STRIKES
    return rows.with_columns(series=pl.Series(series), environment=pl.lit(quotes.item(0, "environment")))


def _pressure_windows(
    lake: duckdb.DuckDBPyConnection, settings: Settings, day: date, until: datetime | None
) -> Callable[[pl.Expr], pl.DataFrame]:
    """Finds the windows of pressure of some options on the newest trade date up to `day` that has any.

    Before regular hours that is the trade date before. Each date is computed once.
    """
    files = Workspace.of(settings).lake.manifest(TRADES).files
    captured = {file.trade_date for file in files if file.trade_date <= day}
    days = sorted(captured, reverse=True)[:TRADE_DATES_BACK] or [day]
    windows = cache(lambda day: windows_over(lake, day, until))

    def newest(own: pl.Expr) -> pl.DataFrame:
        counted = (windows(day).filter(own) for day in days)
        return next((rows for rows in counted if rows.height), windows(days[0]).clear())

    return newest


def _product_facts(
    product: Product,
    chain: pl.DataFrame,
    now: Measures,
    earlier: dict[str, dict[Product, Measures]],
    windows: Callable[[pl.Expr], pl.DataFrame],
    history: pl.DataFrame,
    changes: pl.DataFrame,
) -> ProductFacts:
    own = pl.col("root").is_in(list(roots_of([product])))
    series = pl.col("series") == now.front["series"]
    of_product = history.filter(pl.col("product") == product.code).sort("contracts", descending=True)
    return ProductFacts(
        product=product,
        underlying=chain.filter(own, series)["underlying"].drop_nulls().first() or product.code,  # type: ignore[arg-type]
        now=now,
        earlier={name: measures[product] for name, measures in earlier.items() if product in measures},
        pressure=windows(own),
        history=of_product.unique("snapshot_ts", keep="first", maintain_order=True).sort("snapshot_ts"),
        changes=_newest(changes.filter(own)),
        surface=_surface(now.quotes, now.levels["forward"].drop_nulls().first()),  # type: ignore[arg-type]
    )


def _run(lake: duckdb.DuckDBPyConnection, chain: pl.DataFrame, day: date) -> str:
    """The last run that selected rows of the chain."""
    decisions = lake.sql("FROM decisions WHERE won AND trade_date = $day", params={"day": day}).pl()
    chosen = chain.select("series", "source", snapshot_ts_ns=pl.col("snapshot_ts").to_physical()).unique()
    runs = decisions.join(chosen, on=chosen.columns, how="semi").sort("decided_at_ns")["run_id"]
    return str(runs[-1]) if len(runs) else ""


_PRICING = "FROM option_pricing WHERE trade_date = $day AND list_contains($asked, snapshot_ts_ns)"

_HISTORY = "FROM market_history WHERE trade_date = $day AND snapshot_ts <= $until ORDER BY snapshot_ts"

_CHANGES = """
FROM open_interest_change
WHERE trade_date BETWEEN $day - INTERVAL 14 DAYS AND $day AND known_at <= $until
"""

_SOURCES = """
WITH decided AS (
    SELECT source, min(rank) AS rank, count(*) AS series, count(*) FILTER (won) AS won,
           mode(reason) AS reason, count(DISTINCT reason) AS reasons
    FROM decisions WHERE run_id = $run AND trade_date = $day GROUP BY source
), fetched AS (
    SELECT source, count(*) AS requests, count(*) FILTER (cache = 'hit') AS hits,
           sum(cost_usd) AS cost_usd
    FROM fetches WHERE run_id = $run GROUP BY source
), answered AS (
    FROM answers WHERE run_id = $run
)
SELECT coalesce(answered.source, decided.source) AS source,
       answered.outcome, answered.contracts, answered.cached, answered.elapsed_s, answered.dropped,
       answered.dropped_by_reason, decided.series, decided.won, requests, hits, cost_usd,
       coalesce(answered.reason, decided.reason) AS reason,
       CASE WHEN answered.reason IS NULL THEN reasons - 1 ELSE 0 END AS more_reasons
FROM answered FULL JOIN decided ON decided.source = answered.source
LEFT JOIN fetched ON fetched.source = coalesce(answered.source, decided.source)
ORDER BY decided.won > 0 DESC, decided.rank, source
"""

_AGREEMENT = """
WITH offered AS (
    SELECT chain.contract_key, chain.source, chain.bid, chain.ask,
           CASE WHEN chain.bid <= chain.ask THEN (chain.bid + chain.ask) / 2 END AS mid
    FROM source_chain AS chain
    JOIN decisions USING (series, source, snapshot_ts_ns)
    WHERE decisions.run_id = $run AND decisions.trade_date = $day AND chain.trade_date = $day
)
SELECT a.source, b.source AS other_source, b.mid - a.mid AS mid_gap,
       a.bid <= b.ask AND b.bid <= a.ask AS quotes_overlap
FROM offered AS a JOIN offered AS b ON b.contract_key = a.contract_key AND b.source > a.source
"""

_GAPS = """
SELECT first_ts, last_ts, schema, state, cause, reason, records_replayed, filled_by
FROM gaps WHERE list_contains($days, trade_date)
QUALIFY row_number() OVER (PARTITION BY gap_id ORDER BY revision DESC) = 1
ORDER BY first_ts
"""
