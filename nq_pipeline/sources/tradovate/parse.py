"""Tradovate's REST bodies: from the exact body to tokens and contracts, or to an error. Pure.

Bodies are bare objects and lists. A business error is an object with `errorText` or `violations`, and
comes with HTTP 200.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import polars as pl

from nq_pipeline.clock import real_now
from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    NotConfigured,
    NotEntitled,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.sessions import CHICAGO
from nq_pipeline.market.symbology import parse_globex_code, split_globex_symbols
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.failures import error_of_status, quoted
from nq_pipeline.sources.rows import OTHER, drop_faulty
from nq_pipeline.transport.json_columns import decode, loads, number, texts
from nq_pipeline.transport.vendor_session import Reply

BUSINESS_ERRORS: tuple[tuple[str, type[SourceError]], ...] = (
    ("username or password", NotConfigured),
    ("denied", NotEntitled),
    ("permission", NotEntitled),
    ("subscri", NotEntitled),
    ("entitle", NotEntitled),
    ("too many", RateLimited),
    ("captcha", Blocked),
)
"""The error of an `errorText`, by a part of it. The vendor publishes no list; the rest is `unavailable`."""
ANY_SPACING = r"^([A-Z0-9]{4,6})\s*([CP])\s*([0-9.]+)$"
"""A contract's name with any spacing; it is rewritten as on Globex before it is read."""
YEARS = range(2000, 2100)
"""A number outside is not a timestamp."""

_PRODUCT = texts("id", "name", "productType", "valuePerPoint")
_MATURITY = texts("id", "expirationMonth", "expirationDate")
_CONTRACT = texts("id", "name")


class Unlisted(SourceError):
    """The library has nothing of that name."""

    outcome = Outcome.EMPTY


@dataclass(frozen=True, slots=True)
class Token:
    """The tokens of a login; `market_data` opens the websocket."""

    access: str = field(repr=False)
    market_data: str = field(repr=False)
    expires: datetime


def error_of_reply(reply: Reply) -> SourceError | None:
    """The error of a reply; None when there is none. HTTP 200 with an error text is an error too."""
    if reply.status == 200:
        return _business_error(reply.body)
    limited = RateLimited(f"too many requests to Tradovate (HTTP {reply.status})")
    known = {
        401: NotEntitled(f"Tradovate refuses {reply.operation} (HTTP 401): no permission"),
        403: Blocked(f"Tradovate refuses {reply.operation} (HTTP 403)"),
        404: Unlisted(f"Tradovate's {reply.operation} has nothing of that name (HTTP 404)"),
        423: limited,
        429: limited,
    }
    return error_of_status("Tradovate", reply.status, known)


def _business_error(body: bytes) -> SourceError | None:
    if not body.lstrip().startswith(b"{"):
        return None
    try:
        answer = parse_object(body)
    except BadPayload as error:
        return error
    words = answer.get("errorText")
    if words:
        text = str(words).lower()
        kind = next((kind for part, kind in BUSINESS_ERRORS if part in text), Unavailable)
        return kind(f"Tradovate reports an error{quoted(words)}")
    if answer.get("violations"):
        return BadPayload("Tradovate rejects the form of the request: its protocol may have changed")
    return None


@dataclass(frozen=True, slots=True)
class TradovateProduct:
    """A product of the library; `value_per_point` in dollars."""

    id: int
    kind: str
    value_per_point: float | None


def read_token(answer: Mapping[str, Any]) -> Token:
    """The token of a login's answer. Without a readable expiration it counts as expired for the next run."""
    access, market_data = answer.get("accessToken"), answer.get("mdAccessToken")
    if not (isinstance(access, str) and access):
        raise BadPayload("Tradovate's login: neither a token nor an error text")
    expires = parse_instant(str(answer.get("expirationTime", "")))
    return Token(
        access=access,
        market_data=market_data if isinstance(market_data, str) and market_data else access,
        expires=_utc(expires) if expires else real_now(),
    )


def parse_product(body: bytes) -> TradovateProduct:
    """The product of `product/find`."""
    what = "Tradovate's product"
    product = decode(body, _PRODUCT, Counter(), what=what).struct.unnest()
    product_id, value = product.select(number("id", pl.Int64), number("valuePerPoint")).row(0)
    if product_id is None:
        raise BadPayload(f"{what}: no id in the answer")
    return TradovateProduct(product_id, product["productType"].item() or "", value)


def parse_maturities(body: bytes) -> tuple[pl.DataFrame, Counter[str]]:
    """The expirations of a product, and the count of those that cannot be read (`malformed_row`).

    Columns: maturity_id, month (yyyymm), days (the date in UTC and in Chicago).
    """
    rows = _list(body, _MATURITY, Counter(), "Tradovate's maturities")
    read = rows.select(
        number("id", pl.Int64).alias("maturity_id"),
        number("expirationMonth", pl.Int64).alias("month"),
        pl.col("expirationDate").map_elements(_days, return_dtype=pl.List(pl.Date)).alias("days"),
    )
    known = read.drop_nulls(["maturity_id", "month"])
    return known, Counter(malformed_row=read.height - known.height)


def parse_contracts(body: bytes, series: Series) -> tuple[pl.DataFrame, Counter[str]]:
    """The contracts of one expiration that are options of the series, and the count of the others.

    Columns: contract_id, name (as sent), series, option_type, strike. Counted: `malformed_row`,
    `unknown_symbol` (the name cannot be read), `other_series`.
    """
    dropped: Counter[str] = Counter()
    rows = _list(body, _CONTRACT, dropped, "Tradovate's contracts")
    symbol = pl.col("name").str.strip_chars().str.to_uppercase().str.replace(ANY_SPACING, "${1} ${2}${3}")
    rows = rows.select(
        number("id", pl.Int64).alias("contract_id"), "name", split_globex_symbols(symbol).alias("term")
    ).unnest("term")
    codes = rows["code"].drop_nulls().unique()
    ours = [c for c in codes if parse_globex_code(c, expiration=series.expiration_date) == series]
    fault = (
        pl.when(pl.col("contract_id").is_null() | pl.col("name").is_null())
        .then(pl.lit("malformed_row"))
        .when(pl.col("code").is_null() | ~(pl.col("strike") > 0))
        .then(pl.lit("unknown_symbol"))
        .when(~pl.col("code").is_in(ours))
        .then(pl.lit(OTHER))
    )
    good = drop_faulty(rows, fault, dropped)
    return good.select(
        "contract_id", "name", pl.lit(series.key).alias("series"), "option_type", "strike"
    ), dropped


def parse_contract_id(body: bytes) -> int:
    """The id of `contract/find`."""
    what = "Tradovate's contract"
    found = (
        decode(body, _CONTRACT, Counter(), what=what).struct.unnest().select(number("id", pl.Int64)).item()
    )
    if found is None:
        raise BadPayload(f"{what}: no id in the answer")
    return int(found)


def _list(body: bytes, item: pl.Struct, dropped: Counter[str], what: str) -> pl.DataFrame:
    return decode(body, pl.List(item), dropped, what=what).explode(empty_as_null=False).struct.unnest()


def parse_object(body: bytes) -> dict[str, Any]:
    try:
        value = loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise BadPayload(f"Tradovate: expected a JSON object, got {len(body)} bytes of something else")
    return value


def parse_instant(text: str) -> datetime | None:
    """An instant as the vendor writes it, with or without seconds and zone (`2026-08-27T17:30Z`)."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return instant if instant.year in YEARS else None


def _utc(instant: datetime) -> datetime:
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _days(text: str) -> list[date]:
    instant = parse_instant(text)
    return [_utc(instant).date(), _utc(instant).astimezone(CHICAGO).date()] if instant else []
