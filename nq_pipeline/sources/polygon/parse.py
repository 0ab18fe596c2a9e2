"""Polygon's pages: from the exact body to one row per contract, or to the error that it stands for. Pure.

A bad cell becomes null, a bad row is dropped, and both are counted. An error's kind follows from the HTTP
status first, then from the vendor's words.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlsplit

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
from nq_pipeline.market.products import Product
from nq_pipeline.market.symbology import split_occ_tickers
from nq_pipeline.sources.failures import error_of_status, printable, quoted
from nq_pipeline.sources.rows import MOST_CONTRACTS, drop_faulty
from nq_pipeline.transport.json_columns import decode, number, texts
from nq_pipeline.transport.vendor_session import SECRET_NAMES, Reply, relative

MAX_SHARES = 1_000_000
"""No contract is for as many shares."""
FIRST_INSTANT, LAST_INSTANT = (to_ns(datetime(year, 1, 1, tzinfo=UTC)) for year in (2000, 2100))
"""A number outside is not a timestamp in nanoseconds."""

_TERMS = texts(
    "ticker", "contract_type", "exercise_style", "expiration_date", "shares_per_contract", "strike_price"
)
_QUOTE = ("bid", "bid_size", "ask", "ask_size", "last_updated")
_ITEM = pl.Struct(
    [
        *_TERMS.fields,  # a reference contract has its terms here, a snapshot's item below `details`
        pl.Field("details", _TERMS),
        pl.Field("last_quote", texts(*_QUOTE)),
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


def _term(name: str) -> pl.Expr:
    return pl.coalesce(_member("details", name), name)


_PRICES = {
    "multiplier": _term("shares_per_contract"),
    "bid": _member("last_quote", "bid"),
    "ask": _member("last_quote", "ask"),
    "last": _member("last_trade", "price"),
    **{name: _member("day", name) for name in ("open", "high", "low", "close", "change")},
    "implied_volatility": pl.col("implied_volatility"),
    **{name: _member("greeks", name) for name in ("delta", "gamma", "theta", "vega")},
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
    """The path below our base address and the query of a `next_url`, without its host or any key in it."""
    parts = urlsplit(relative(next_url, base_url))
    query = parse_qsl(parts.query, keep_blank_values=True)
    return parts.path, {name: value for name, value in query if name.lower() not in SECRET_NAMES}


def error_of_reply(reply: Reply) -> SourceError:
    """The error of a reply with another status than 200."""
    try:
        words = _vendor_words(decode(reply.body, _PAGE, Counter(), what=reply.operation))
    except BadPayload:
        words = ""
    quote = quoted(words)
    by_plan: SourceError = NotEntitled(f"the Polygon plan does not include this{quote}")
    if not words:
        by_plan = Blocked("Polygon answered HTTP 403 without a reason: a firewall refused it, not the plan")
    known = {
        401: NotConfigured(f"Polygon does not accept the API key{quote}; check POLYGON_API_KEY"),
        403: by_plan,
        404: NoSuchAddress(f"Polygon has no such endpoint or ticker{quote}; check NQ_POLYGON_URL"),
        429: RateLimited(f"too many requests for the Polygon plan{quote}; set NQ_POLYGON_RPM to its limit"),
    }
    return error_of_status("Polygon", reply.status, known)


def parse_page(body: bytes, product: Product, *, what: str) -> SnapshotPage:
    """Read one page of the chain snapshot or of the reference contracts.

    Counted as dropped: `malformed_row` (no readable ticker), `malformed_cell`, `fractional_size`,
    `unknown_symbol` (adjusted contracts, other roots), `contradictory_row` (ticker and terms
    disagree), `vendor_error` and `vendor_not_entitled` (an error in place of a contract).

    Raises `BadPayload` for a body that is not JSON, or has no `results` and no status that explains it.
    Raises `NotEntitled`, `RateLimited` or `Unavailable` for an error in spite of HTTP 200.
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
    rows = _to_numbers(items.filter(pl.col("error").is_null()), dropped)
    rows = _drop_foreign(rows, product, dropped)
    next_url = page.struct.field("next_url").item()
    return SnapshotPage(rows, next_url or None, +dropped)


def _error_body(page: pl.Series, what: str) -> SourceError:
    """The error of a body without results, though its HTTP status is 200."""
    words = _vendor_words(page)
    match page.struct.field("status").item():
        case "NOT_AUTHORIZED":
            return NotEntitled(f"the Polygon plan does not include this{quoted(words)}")
        case "ERROR" if "maximum requests" in words:
            return RateLimited(f"too many requests for the Polygon plan{quoted(words)}")
        case "ERROR":
            return Unavailable(f"Polygon reports an error{quoted(words)}")
        case "NOT_FOUND":
            return NoSuchAddress(f"Polygon has no such ticker{quoted(words)}")
    return BadPayload(f"{what}: no `results` in the answer")


def _vendor_words(page: pl.Series) -> str:
    return printable(page.struct.field("message").item() or page.struct.field("error").item())


def _to_numbers(items: pl.DataFrame, dropped: Counter[str]) -> pl.DataFrame:
    """Cells from text to numbers. A cell that is not a number is null and counted."""
    terms = {
        "ticker": _term("ticker"),
        "term_type": _term("contract_type"),
        "term_style": _term("exercise_style"),
        "term_date": _term("expiration_date"),
        "term_strike": _term("strike_price"),
    }
    # A plan without quotes may leave the block out or empty.
    has_quote = pl.any_horizontal(_member("last_quote", name).is_not_null() for name in _QUOTE)
    text = items.select(**terms, **_PRICES, **_COUNTS, **INSTANTS, has_quote=has_quote)
    # As with prices, the vendor writes 0 where there is none.
    text = text.with_columns(
        pl.when((number(name) != 0).fill_null(True)).then(name).alias(name) for name in INSTANTS
    )
    counts = {name: number(name, pl.Int64) for name in _COUNTS}
    instant = {name: number(name, pl.Int64) for name in INSTANTS}
    rows = text.with_columns(
        **{name: number(name) for name in (*_PRICES, "term_strike")},
        **{name: pl.when(count.is_between(0, MOST_CONTRACTS)).then(count) for name, count in counts.items()},
        **{
            name: pl.when(cell.is_between(FIRST_INSTANT, LAST_INSTANT)).then(cell).cast(INSTANT)
            for name, cell in instant.items()
        },
    )
    multiplier = pl.col("multiplier")
    rows = rows.with_columns(multiplier=pl.when(multiplier.is_between(0, MAX_SHARES)).then(multiplier))
    for name in (*_PRICES, *_COUNTS, *INSTANTS):
        lost = rows[name].null_count() - text[name].null_count()
        fractions = 0
        if lost and name in _COUNTS:
            fractions = int(text.select((number(name) != number(name).round()).sum()).item())
        dropped["fractional_size"] += fractions
        dropped["malformed_cell"] += lost - fractions
    return rows


def _drop_foreign(rows: pl.DataFrame, product: Product, dropped: Counter[str]) -> pl.DataFrame:
    """Rows whose ticker is one of the product's and agrees with the terms in the same row."""
    rows = rows.with_columns(split_occ_tickers(pl.col("ticker")).alias("term")).unnest("term")
    unreadable = pl.any_horizontal(pl.col("root", "expiration_date", "option_type").is_null()) | ~(
        pl.col("strike") > 0
    )
    roots = [root for family in product.families for root in family.roots]
    side, day, strike = (pl.col(f"term_{name}") for name in ("type", "date", "strike"))
    option_type = side.replace_strict({"call": "C", "put": "P"}, default=None, return_dtype=pl.String)
    agreements = [
        (side, option_type == pl.col("option_type")),
        (day, day.str.to_date("%Y-%m-%d", strict=False) == pl.col("expiration_date")),
        (strike, (strike - pl.col("strike")).abs() < 0.0005),
    ]
    # A term that is not stated contradicts nothing.
    agrees = pl.all_horizontal(same.fill_null(term.is_null()) for term, same in agreements)
    fault = (
        pl.when(unreadable.fill_null(True))
        .then(pl.lit("malformed_row"))
        .when(~pl.col("root").is_in(roots))
        .then(pl.lit("unknown_symbol"))
        .when(~agrees)
        .then(pl.lit("contradictory_row"))
    )
    return drop_faulty(rows, fault, dropped)
