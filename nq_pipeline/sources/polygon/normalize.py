"""Polygon's contracts as rows of the chain schema, and the outcome of each series.

Units were checked against Black-Scholes on the vendor's published AAPL payload: implied volatility
is a fraction, theta is per calendar day, and vega is per one per cent (here per 1.00).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from zoneinfo import ZoneInfo

import polars as pl
import polars.selectors as cs

from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.errors import BadPayload, SourceError
from nq_pipeline.lake.tables import INSTANT, SOURCE_CHAIN
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.products import Product
from nq_pipeline.market.sessions import in_chicago
from nq_pipeline.market.symbology import contract_keys
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.base import ChainRequest, SeriesAnswer, chain_frame
from nq_pipeline.sources.failures import MAX_UNUSABLE_SHARE, describe_dropped
from nq_pipeline.sources.polygon.parse import INSTANTS, SnapshotPage
from nq_pipeline.sources.rows import (
    FUTURE,
    OTHER,
    SKEW_NS,
    keep_requested,
    null_future_instants,
    request_columns,
    series_columns,
    within_expirations,
)
from nq_pipeline.transport.vendor_session import Reply

SOURCE = "polygon"
VEGA_PER_UNIT = 100
NEW_YORK = ZoneInfo("America/New_York")
UNUSABLE = (
    "malformed_row", "malformed_cell", FUTURE, "contradictory_row", "vendor_error", "vendor_not_entitled",
)  # fmt: skip
"""Reasons of `dropped` that make a chain `partial`."""


@dataclass(slots=True)
class UnderlyingChain:
    """The chain of one underlying.

    `error` ended its pages early; `refusal` has the vendor's words where the plan does not include its
    snapshot.
    """

    frame: pl.DataFrame = field(default_factory=SOURCE_CHAIN.empty)
    series: dict[str, SeriesAnswer] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    controls: dict[str, bool] = field(default_factory=dict)
    cached: bool = True
    error: SourceError | None = None
    refusal: str = ""


def build_chain(
    product: Product,
    pages: Sequence[tuple[Reply, SnapshotPage]],
    error: SourceError | None,
    refusal: str,
    request: ChainRequest,
    *,
    unpriced: str,
) -> UnderlyingChain:
    """The rows of one underlying's pages, and the outcome of each of its series.

    `unpriced` says why the contracts have no prices; it is empty when they have some.
    """
    chain = UnderlyingChain(error=error, refusal=refusal)
    chain.dropped = sum_counts(page.dropped for _, page in pages)
    chain.cached = all(reply.cached for reply, _ in pages)
    if not pages:
        return chain
    rows = pl.concat(
        page.rows.with_columns(request_id=pl.lit(reply.request_id), raw_sha256=pl.lit(reply.sha256))
        for reply, page in pages
    )
    received_at = max(reply.received_at for reply, _ in pages)
    rows = null_future_instants(rows, INSTANTS, received_at + SKEW_NS, chain.dropped)
    rows = keep_requested(rows, within_expirations(request.series), chain.dropped)
    contracts = rows.unique(
        ["root", "expiration_date", "option_type", "strike"], keep="first", maintain_order=True
    )
    chain.dropped["duplicate"] += rows.height - contracts.height
    chain.dropped = +chain.dropped
    chain.controls = {"terms_agree_with_ticker": not chain.dropped["contradictory_row"]}
    if contracts.is_empty():
        # Contracts that nobody asked for are readable; the chain is bad only when others are not.
        unusable = chain.dropped.total() - chain.dropped[OTHER]
        if unusable > MAX_UNUSABLE_SHARE * chain.dropped[OTHER] and error is None:
            chain.error = BadPayload(
                f"no contract of {product.code} in the answer could be used: "
                f"{describe_dropped(chain.dropped)}"
            )
        return chain
    session = regular_session(request.moment)
    snapshot_ns = max(reply.snapshot_ts for reply, _ in pages)
    chain.frame = chain_rows(contracts, product, snapshot_ns, session.trade_date, request)
    fault = unpriced or _quality_fault(chain.dropped, contracts)
    chain.series = _judge_series(chain, contracts["expiration_date"], session.open, fault)
    return chain


def chain_rows(
    contracts: pl.DataFrame, product: Product, snapshot_ns: int, session_date: date, request: ChainRequest
) -> pl.DataFrame:
    """Contracts as rows of the chain schema.

    Every row's `as_of` is the time of the newest quote: now on a real-time plan, fifteen minutes ago on a
    delayed one. The day bar's columns are null when it is of another day than `session_date`. Where the plan
    shows no trades, `last` is the close of the day bar. Prices and sizes of 0 are null: the vendor writes 0
    for no quote.
    """
    keys = contracts.select("root", "expiration_date").unique().iter_rows()
    series = pl.DataFrame([series_columns(Series(*key)) for key in keys])
    rows = contracts.join(
        series, on=["root", "expiration_date"], how="left", maintain_order="left", suffix="_of_series"
    )
    today = (pl.col("day_ts").dt.convert_time_zone(NEW_YORK.key).dt.date() == session_date).fill_null(False)
    last, close, bid, ask = (_null_if_zero(name) for name in ("last", "close", "bid", "ask"))
    snapshot_ts = pl.lit(snapshot_ns).cast(INSTANT)
    stated_style = pl.col("term_style")
    newest = (pl.col(name).max() for name in ("quote_ts", "last_ts", "underlying_ts"))
    return chain_frame(
        rows.with_columns(
            **request_columns(SOURCE, request),
            snapshot_ts=snapshot_ts,
            as_of=pl.coalesce(*newest, snapshot_ts),
            underlying_class=pl.lit(product.underlying_class),
            underlying=pl.lit(product.code),
            underlying_price=_null_if_zero("underlying_price"),
            raw_symbol="ticker",
            vendor_symbol="ticker",
            contract_key=contract_keys(pl.col("series"), pl.col("option_type"), pl.col("strike")),
            exercise_style=pl.when(stated_style.is_in(["american", "european"]))
            .then(stated_style)
            .otherwise("exercise_style"),
            multiplier=_null_if_zero("multiplier").fill_null(product.multiplier),
            bid=bid,
            bid_size=pl.when(bid.is_not_null()).then("bid_size"),
            ask=ask,
            ask_size=pl.when(ask.is_not_null()).then("ask_size"),
            last=pl.coalesce(last, close),
            last_ts=pl.when(last.is_not_null()).then("last_ts").when(close.is_not_null()).then("day_ts"),
            is_settlement=pl.lit(False),
            vega=pl.col("vega") * VEGA_PER_UNIT,
            **{name: pl.when(today).then(name) for name in ("open", "high", "low", "change", "volume")},
        ).drop(
            "ticker",
            "close",
            "day_ts",
            "underlying_ts",
            "has_quote",
            "multiplier_of_series",
            cs.starts_with("term_"),
        )
    )


def _null_if_zero(name: str) -> pl.Expr:
    return pl.when(pl.col(name) != 0).then(name)


def regular_session(moment: datetime) -> sessions.Session:
    """The last session whose regular hours have begun: index and fund options trade in no others."""
    session = sessions.current_session(moment)
    while session.rth is None or session.rth[0] > moment:
        session = sessions.current_session(from_ns(to_ns(session.open) - 1_000))
    return session


def _judge_series(
    chain: UnderlyingChain, days: pl.Series, session_open: datetime, fault: str
) -> dict[str, SeriesAnswer]:
    """The outcome of each series; `fault` is what makes all of them `partial`."""
    # Pages come by expiration: a cut spoils only the last one, as long as the vendor kept the order.
    cut = set() if chain.error is None else ({days.max()} if days.is_sorted() else set(days))
    newest = chain.frame.group_by("series", "expiration_date").agg(
        newest=pl.max_horizontal(pl.col("quote_ts").max(), pl.col("last_ts").max())
    )
    newest = newest.with_columns(pl.col("newest").fill_null(pl.col("newest").max()))
    answers: dict[str, SeriesAnswer] = {}
    for key, day, moment in newest.sort("expiration_date", "series").iter_rows():
        if moment is not None and moment < session_open:
            reason = f"its newest quote or trade is from {in_chicago(moment)}, before the requested session"
            answers[key] = SeriesAnswer(Outcome.STALE, reason)
        elif fault:
            answers[key] = SeriesAnswer(Outcome.PARTIAL, fault)
        elif day in cut:
            answers[key] = SeriesAnswer(Outcome.PARTIAL, f"its pages were cut short: {chain.error}")
        else:
            answers[key] = SeriesAnswer(Outcome.OK)
    return answers


def _quality_fault(dropped: Counter[str], contracts: pl.DataFrame) -> str:
    """Why the whole chain is `partial`; empty when it is not."""
    if not contracts["has_quote"].any():
        return "the Polygon plan shows no quotes"
    faults = {name: dropped[name] for name in UNUSABLE if dropped[name]}
    if sum(faults.values()) > MAX_UNUSABLE_SHARE * contracts.height:
        return f"unusable parts of the answer: {describe_dropped(faults)}"
    return ""


def sum_counts(counters: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counters, Counter())
