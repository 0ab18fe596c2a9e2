"""Polygon's pages: from the exact body to rows of the chain schema. Pure.

A page is decoded in columns; a bad cell costs that cell, a bad row that row, and each is counted.
What a refusal means is decided here too: by HTTP status first, then by the vendor's words.

Units were checked against Black-Scholes on the vendor's published AAPL payload: implied volatility
is a fraction, theta is per calendar day, vega per one per cent (times 100 here, to be per 1.00).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

import polars as pl

from nq_pipeline.clock import to_ns
from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    NotConfigured,
    NotEntitled,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.lake.tables import INSTANT
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.products import Product
from nq_pipeline.market.symbology import contract_keys, occ_rows, series_keys
from nq_pipeline.sources.base import ChainRequest, chain_frame
from nq_pipeline.sources.plausibility import MOST_CONTRACTS
from nq_pipeline.transport.json_columns import decode, number, texts
from nq_pipeline.transport.vendor_session import SECRET_NAMES, Reply, relative

SOURCE = "polygon"
VEGA_PER_UNIT = 100
MOST_SHARES = 1_000_000
"""A contract is never for as many."""
NEW_YORK = ZoneInfo("America/New_York")
YEARS = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
"""A timestamp outside is no timestamp in nanoseconds."""

_TERMS = texts(
    "ticker", "contract_type", "exercise_style", "expiration_date", "shares_per_contract", "strike_price"
)
_ITEM = pl.Struct(
    [
        *_TERMS.fields,  # a reference contract has its terms here, a snapshot's item below `details`
        pl.Field("details", _TERMS),
        pl.Field("last_quote", texts("bid", "bid_size", "ask", "ask_size", "last_updated")),
        pl.Field("last_trade", texts("price", "sip_timestamp")),
        pl.Field("day", texts("open", "high", "low", "close", "change", "volume", "last_updated")),
        pl.Field("greeks", texts("delta", "gamma", "theta", "vega")),
        pl.Field("underlying_asset", texts("price", "value", "last_updated")),
        *texts("implied_volatility", "open_interest", "error").fields,
    ]
)
_PAGE = pl.Struct(
    [*texts("status", "error", "message", "next_url").fields, pl.Field("results", pl.List(_ITEM))]
)


def _member(block: str, name: str) -> pl.Expr:
    return pl.col(block).struct.field(name)


_PRICES = {
    "multiplier": pl.coalesce(_member("details", "shares_per_contract"), "shares_per_contract"),
    "bid": _member("last_quote", "bid"),
    "ask": _member("last_quote", "ask"),
    "last": _member("last_trade", "price"),
    "open": _member("day", "open"),
    "high": _member("day", "high"),
    "low": _member("day", "low"),
    "close": _member("day", "close"),
    "change": _member("day", "change"),
    "implied_volatility": pl.col("implied_volatility"),
    "delta": _member("greeks", "delta"),
    "gamma": _member("greeks", "gamma"),
    "theta": _member("greeks", "theta"),
    "vega": _member("greeks", "vega"),
    "underlying_price": pl.coalesce(
        _member("underlying_asset", "value"), _member("underlying_asset", "price")
    ),
}
_COUNTS = {
    "bid_size": _member("last_quote", "bid_size"),
    "ask_size": _member("last_quote", "ask_size"),
    "volume": _member("day", "volume"),
    "open_interest": pl.col("open_interest"),
}
INSTANTS = {
    "quote_ts": _member("last_quote", "last_updated"),
    "last_ts": _member("last_trade", "sip_timestamp"),
    "day_ts": _member("day", "last_updated"),
    "underlying_ts": _member("underlying_asset", "last_updated"),
}


class NoSuchAddress(Unavailable):
    """HTTP 404: the server, or the plan, does not have this endpoint or ticker."""


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """One page of either endpoint: its rows by contract and the address of the next page."""

    rows: pl.DataFrame
    next_url: str | None
    dropped: Counter[str]


# ── a page ───────────────────────────────────────────────────────────────────────────────────────


def next_page(next_url: str, base_url: str) -> tuple[str, dict[str, object]]:
    """Path below our base address and query of a `next_url`, without its host or any key it echoes."""
    parts = urlsplit(relative(next_url, base_url))
    query = parse_qsl(parts.query, keep_blank_values=True)
    return parts.path, {name: value for name, value in query if name.lower() not in SECRET_NAMES}


def refusal(reply: Reply) -> SourceError:
    """What an answer with another status than 200 means, by status first, then by its words."""
    try:
        words = decode(reply.body, _PAGE, Counter(), what=reply.operation)
        said = _said(words)
    except BadPayload:
        said = ""
    quoted = f' ("{said}")' if said else ""
    match reply.status:
        case 401:
            return NotConfigured(f"Polygon does not accept the API key{quoted}; check POLYGON_API_KEY")
        case 403 if said:
            return NotEntitled(f"the Polygon plan does not include this{quoted}")
        case 403:
            return Blocked("Polygon refused with HTTP 403 and no words of its own: a firewall, not the plan")
        case 404:
            return NoSuchAddress(f"Polygon has no such endpoint or ticker{quoted}; check NQ_POLYGON_URL")
        case 429:
            return RateLimited(
                f"too many requests for the Polygon plan{quoted}; set NQ_POLYGON_RPM to its limit"
            )
        case status if status is not None and status >= 500:
            return Unavailable(f"Polygon answered HTTP {status}; it may work again later")
    return BadPayload(f"Polygon answered HTTP {reply.status}{quoted}, which it does not document")


def parse_page(body: bytes, product: Product, *, what: str) -> SnapshotPage:
    """Read one page of the snapshot or of the reference contracts.

    A row is one contract: terms from its ticker, everything else a number, an instant or null.
    Prices and sizes of 0 are nulls: the vendor writes 0 where nobody bids or offers.

    Counted as dropped: `malformed_row` (no readable ticker), `malformed_cell`, `fractional_size`,
    `unknown_symbol` (adjusted contracts, other roots), `contradictory_row` (ticker and terms
    disagree), `vendor_error` and `vendor_not_entitled` (an error in place of a contract).

    Raises
    ------
    BadPayload
        Not JSON, or no `results` where the status does not explain it.
    NotEntitled, RateLimited, Unavailable
        An error body in spite of HTTP 200, or one in place of every row.
    """
    dropped: Counter[str] = Counter()
    page = decode(body, _PAGE, dropped, what=what)
    results = page.struct.field("results")
    if results.null_count():
        raise _error_body(page, what)
    items = results.explode(empty_as_null=False).struct.unnest()
    errors = items["error"]
    refused = int((errors == "NOT_ENTITLED").sum())
    if refused and refused == items.height:
        raise NotEntitled(f"{what}: the plan includes none of the {refused} contracts")
    dropped["vendor_not_entitled"] += refused
    dropped["vendor_error"] += errors.len() - errors.null_count() - refused
    rows = _numbers(items.filter(pl.col("error").is_null()), dropped)
    rows = _readable(rows, product, dropped)
    next_url = page.struct.field("next_url").item()
    return SnapshotPage(rows, next_url or None, +dropped)


def _error_body(page: pl.Series, what: str) -> SourceError:
    status, said = page.struct.field("status").item() or "", _said(page)
    match status:
        case "NOT_AUTHORIZED":
            return NotEntitled(f'the Polygon plan does not include this ("{said}")')
        case "ERROR" if "maximum requests" in said:
            return RateLimited(f'too many requests for the Polygon plan ("{said}")')
        case "ERROR":
            return Unavailable(f'Polygon reports an error ("{said}")')
        case "NOT_FOUND":
            return NoSuchAddress(f'Polygon has no such ticker ("{said}")')
    return BadPayload(f"{what}: no `results` in the answer")


def _said(page: pl.Series) -> str:
    """The vendor's own words, made harmless to print."""
    text = page.struct.field("message").item() or page.struct.field("error").item() or ""
    return "".join(c for c in text if c.isprintable())[:160]


def _numbers(items: pl.DataFrame, dropped: Counter[str]) -> pl.DataFrame:
    """Cells from text to numbers; those that are none are null and counted."""
    terms = {
        "ticker": pl.coalesce(_member("details", "ticker"), "ticker"),
        "said_type": pl.coalesce(_member("details", "contract_type"), "contract_type"),
        "said_style": pl.coalesce(_member("details", "exercise_style"), "exercise_style"),
        "said_date": pl.coalesce(_member("details", "expiration_date"), "expiration_date"),
        "said_strike": pl.coalesce(_member("details", "strike_price"), "strike_price"),
    }
    text = items.select(
        **terms, **_PRICES, **_COUNTS, **INSTANTS, has_quote=pl.col("last_quote").is_not_null()
    )
    # As with prices, 0 is the vendor's word for none.
    text = text.with_columns(
        pl.when((number(name) != 0).fill_null(True)).then(name).alias(name) for name in INSTANTS
    )
    counts = {name: number(name, pl.Int64) for name in _COUNTS}
    instant = {name: number(name, pl.Int64) for name in INSTANTS}
    low, high = (to_ns(year) for year in YEARS)
    rows = text.with_columns(
        **{name: number(name) for name in (*_PRICES, "said_strike")},
        **{name: pl.when(count.is_between(0, MOST_CONTRACTS)).then(count) for name, count in counts.items()},
        **{
            name: pl.when(cell.is_between(low, high)).then(cell).cast(INSTANT)
            for name, cell in instant.items()
        },
    )
    multiplier = pl.col("multiplier")
    rows = rows.with_columns(multiplier=pl.when(multiplier.is_between(0, MOST_SHARES)).then(multiplier))
    for name in (*_PRICES, *_COUNTS, *INSTANTS):
        lost = rows[name].null_count() - text[name].null_count()
        fractions = 0
        if lost and name in _COUNTS:
            fractions = int(text.select((number(name) != number(name).round()).sum()).item())
        dropped["fractional_size"] += fractions
        dropped["malformed_cell"] += lost - fractions
    return rows


def _readable(rows: pl.DataFrame, product: Product, dropped: Counter[str]) -> pl.DataFrame:
    """Rows whose ticker is one of the product's and agrees with the terms beside it."""
    rows = rows.with_columns(occ_rows(pl.col("ticker")).alias("term")).unnest("term")
    unreadable = pl.any_horizontal(pl.col("root", "expiration_date", "option_type").is_null()) | ~(
        pl.col("strike") > 0
    )
    roots = [root for family in product.families for root in family.roots]
    side = pl.col("said_type").replace_strict({"call": "C", "put": "P"}, default=None, return_dtype=pl.String)
    agrees = pl.all_horizontal(
        (side == pl.col("option_type")).fill_null(pl.col("said_type").is_null()),
        (pl.col("said_date").str.to_date("%Y-%m-%d", strict=False) == pl.col("expiration_date")).fill_null(
            pl.col("said_date").is_null()
        ),
        ((pl.col("said_strike") - pl.col("strike")).abs() < 0.0005).fill_null(
            pl.col("said_strike").is_null()
        ),
    )
    rows = rows.with_columns(
        fault=pl.when(unreadable.fill_null(True))
        .then(pl.lit("malformed_row"))
        .when(~pl.col("root").is_in(roots))
        .then(pl.lit("unknown_symbol"))
        .when(~agrees)
        .then(pl.lit("contradictory_row"))
    )
    dropped.update(dict(rows["fault"].drop_nulls().value_counts().iter_rows()))
    return rows.filter(pl.col("fault").is_null())


# ── rows ───────────────────────────────────────────────────────────────────────────────────────────


def chain_rows(
    contracts: pl.DataFrame, product: Product, snapshot_ns: int, session_date: date, request: ChainRequest
) -> pl.DataFrame:
    """Contracts as rows of the chain schema.

    Every row speaks of the newest quote's moment (`as_of`): at once on a real-time plan, fifteen
    minutes ago on a delayed one. Volume, open, high, low and change are of the day bar, and null
    when that is of another day than `session_date`. Where the plan shows no trades, the last one
    is the close of the day bar.
    """
    series = pl.DataFrame(
        [
            _series_columns(Series(*key))
            for key in contracts.select("root", "expiration_date").unique().iter_rows()
        ]
    )
    rows = contracts.join(series, on=["root", "expiration_date"], how="left", maintain_order="left")
    today = (pl.col("day_ts").dt.convert_time_zone(NEW_YORK.key).dt.date() == session_date).fill_null(False)
    traded = _above_zero("last")
    bid, ask = _above_zero("bid"), _above_zero("ask")
    underlying = _above_zero("underlying_price")
    snapshot_ts = pl.lit(snapshot_ns).cast(INSTANT)
    key = series_keys(pl.col("root"), pl.col("expiration_date"))
    return chain_frame(
        rows.select(
            source=pl.lit(SOURCE),
            environment=pl.lit(request.environment),
            snapshot_ts=snapshot_ts,
            as_of=pl.coalesce(
                pl.col("quote_ts").max(), pl.col("last_ts").max(), pl.col("underlying_ts").max(), snapshot_ts
            ),
            trade_date=pl.lit(request.trade_date),
            underlying_class=pl.lit(product.underlying_class),
            underlying=pl.lit(product.code),
            underlying_price=underlying,
            root="root",
            series=key,
            raw_symbol="ticker",
            vendor_symbol="ticker",
            contract_key=contract_keys(key, pl.col("option_type"), pl.col("strike")),
            expiration="expiration",
            expiration_date="expiration_date",
            settlement_style="settlement_style",
            exercise_style=pl.when(pl.col("said_style").is_in(["american", "european"]))
            .then("said_style")
            .otherwise("exercise_style"),
            strike="strike",
            option_type="option_type",
            multiplier=_above_zero("multiplier").fill_null(product.multiplier),
            bid=bid,
            bid_size=pl.when(bid.is_not_null()).then("bid_size"),
            ask=ask,
            ask_size=pl.when(ask.is_not_null()).then("ask_size"),
            quote_ts="quote_ts",
            last=pl.coalesce(traded, _above_zero("close")),
            last_ts=pl.when(traded.is_not_null())
            .then("last_ts")
            .when(_above_zero("close").is_not_null())
            .then("day_ts"),
            is_settlement=pl.lit(False),
            open=pl.when(today).then("open"),
            high=pl.when(today).then("high"),
            low=pl.when(today).then("low"),
            change=pl.when(today).then("change"),
            volume=pl.when(today).then("volume"),
            open_interest="open_interest",
            implied_volatility="implied_volatility",
            delta="delta",
            gamma="gamma",
            theta="theta",
            vega=pl.col("vega") * VEGA_PER_UNIT,
            run_id=pl.lit(request.run_id),
            request_id="request_id",
            raw_sha256="raw_sha256",
        )
    )


def _series_columns(series: Series) -> dict[str, object]:
    family = series.root_info.family
    return {
        "root": series.root,
        "expiration_date": series.expiration_date,
        "expiration": series.expiration.astimezone(UTC),
        "settlement_style": family.settlement_style,
        "exercise_style": family.exercise_style,
    }


def _above_zero(name: str) -> pl.Expr:
    return pl.when(pl.col(name) != 0).then(name)
