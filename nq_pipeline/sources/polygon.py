"""Polygon.io, now Massive: option chains on the Nasdaq-100 index and on QQQ.

The vendor has no options on futures. NDX (with its PM-settled NDXP) and QQQ stand in for NQ: every
row says so in `underlying_class`, and the failover takes them only when no native source is left.

    GET /v3/snapshot/options/I:NDX            prices, Greeks, open interest; 250 a page
    GET /v3/reference/options/contracts       what is listed, without prices; 1,000 a page

The second is asked when the plan has no snapshots. The key travels in the `Authorization` header,
never in an address, and only to our base address: of a `next_url` only path and query are used.

Units were checked against Black-Scholes on the vendor's published AAPL payload: implied volatility is a
fraction, theta is per calendar day, vega per one per cent (multiplied by 100 here, to be per 1.00).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

import polars as pl

from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    DeadlineReached,
    NotConfigured,
    NotEntitled,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.lake.schemas import INSTANT, SOURCE_CHAIN
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.products import NDX, PROXIES, Product
from nq_pipeline.market.symbology import contract_keys, occ_rows, series_keys
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import (
    ChainAnswer,
    ChainRequest,
    Probe,
    SeriesAnswer,
    chain_frame,
    describe,
    failed,
    overall,
)
from nq_pipeline.sources.decode import decode, number, texts
from nq_pipeline.sources.exchange import SECRET_NAMES, Exchange, Policy, Reply, relative
from nq_pipeline.sources.lifetime import Keep

MAX_PAGES = 400
"""More pages than any chain has: 100,000 contracts."""
TRACE = 0.01
"""A larger share of unusable rows makes an answer partial."""
UNUSABLE = ("malformed_row", "malformed_cell", "contradictory_row", "vendor_error", "vendor_not_entitled")
VEGA_PER_UNIT = 100
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
_INSTANTS = {
    "quote_ts": _member("last_quote", "last_updated"),
    "last_ts": _member("last_trade", "sip_timestamp"),
    "day_ts": _member("day", "last_updated"),
    "underlying_ts": _member("underlying_asset", "last_updated"),
}


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """One of the two addresses; `limit` is the most contracts it gives in a page."""

    operation: str
    path: str
    limit: int
    keep: Keep


SNAPSHOT = _Endpoint("snapshot", "/v3/snapshot/options", 250, Keep.MARKET)
REFERENCE = _Endpoint("contracts", "/v3/reference/options/contracts", 1000, Keep.TRADE_DATE)
_PROBE = _Endpoint("probe", SNAPSHOT.path, 1, Keep.NEVER)


class _NoSuchAddress(Unavailable):
    """HTTP 404: the server, or the plan, does not have this endpoint or ticker."""


_HOPELESS = (NotConfigured, Blocked, RateLimited, DeadlineReached)
"""After these the next underlying would fare no better."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of either endpoint: its rows by contract and the address of the next page."""

    rows: pl.DataFrame
    next_url: str | None
    dropped: Counter[str]


@dataclass(slots=True)
class _Part:
    """What came of one underlying."""

    frame: pl.DataFrame = field(default_factory=SOURCE_CHAIN.empty)
    series: dict[str, SeriesAnswer] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    controls: dict[str, bool] = field(default_factory=dict)
    cached: bool = True
    error: SourceError | None = None


class Polygon:
    """Polygon (Massive) as a source of proxy chains.

    One answer per underlying of `NQ_POLYGON_UNDERLYINGS`, over the expirations the request spans,
    nearest first, so that a plan of few requests a minute still gives the nearest series whole.
    Series are keyed by the proxy's own (`NDXP-2025-07-01`).
    """

    name = "polygon"
    underlying_classes = frozenset({"index", "etf"})
    metered = False

    def __init__(self, settings: Settings) -> None:
        self.base_url = settings.polygon_url
        self.policy = Policy(
            timeout_s=settings.http_timeout_s,
            attempts=settings.http_attempts,
            retry_after_cap_s=settings.retry_after_cap_s,
            per_minute=settings.polygon_rpm,
        )
        self._underlyings = settings.polygon_underlyings
        self._key = settings.polygon_api_key

    def ask(self, request: ChainRequest, exchange: Exchange) -> ChainAnswer:
        """Ask for the proxy chains of the span of expirations in the request.

        Outcomes of a series: `ok`; `stale` when its newest quote or trade is older than the last
        session with regular hours; `partial` when its pages were cut short, when the plan shows
        contracts or prices without quotes, or when more than a trace of rows was unusable.
        """
        parts: list[_Part] = []
        for code in self._underlyings:
            parts.append(self._chain(code, request, exchange))
            if isinstance(parts[-1].error, _HOPELESS):
                break
        errors = [part.error for part in parts if part.error is not None]
        dropped = _total(part.dropped for part in parts)
        frame = pl.concat([SOURCE_CHAIN.empty(), *(part.frame for part in parts)])
        if frame.is_empty() and errors:
            return replace(failed(self.name, request, errors[0]), dropped=dropped)
        series = {key: answer for part in parts for key, answer in part.series.items()}
        outcome = overall([*(s.outcome for s in series.values()), *(error.outcome for error in errors)])
        reasons = [str(error) for error in errors] + [s.reason for s in series.values() if s.reason]
        if outcome is Outcome.EMPTY:
            reasons = ["Polygon lists no options for the expirations asked about"]
        return ChainAnswer(
            source=self.name,
            outcome=outcome,
            reason=reasons[0] if reasons else "",
            frame=frame,
            series=series,
            dropped=dropped,
            controls={name: held for part in parts for name, held in part.controls.items()},
            cached=all(part.cached for part in parts),
        )

    def probe(self, exchange: Exchange) -> Probe:
        """Ask for one contract of the snapshot, and of the reference when the plan lacks the former."""
        one = {"underlying_ticker": NDX.code, "limit": 1}
        try:
            self._page(NDX, _PROBE, _snapshot_path(NDX), {"limit": 1}, exchange)
        except NotEntitled as refused:
            try:
                self._page(NDX, _PROBE, REFERENCE.path, one, exchange)
            except SourceError as error:
                return _failed_probe(error)
            mend = "choose a plan with option snapshots at massive.com/pricing"
            return Probe(True, True, False, f"contracts without prices: {refused}", mend)
        except SourceError as error:
            return _failed_probe(error)
        return Probe(True, True, True, "chain snapshots of NDX")

    def _chain(self, code: str, request: ChainRequest, exchange: Exchange) -> _Part:
        """The chain of one underlying: its snapshot, or what is listed when the plan has none."""
        product = PROXIES.get(code)
        if product is None:
            known = ", ".join(PROXIES)
            return _Part(error=NotConfigured(f"NQ_POLYGON_UNDERLYINGS names {code!r}; it can hold {known}"))
        days = [series.expiration_date for series in request.series]
        span: dict[str, object] = {
            "expiration_date.gte": min(days).isoformat(),
            "expiration_date.lte": max(days).isoformat(),
            "sort": "expiration_date",
            "order": "asc",
        }
        pages, error = self._pages(product, SNAPSHOT, _snapshot_path(product), span, exchange)
        without = ""
        if not pages and isinstance(error, NotEntitled | _NoSuchAddress):
            without = f"contracts without prices: {error}"
            today = request.snapshot_ts.astimezone(NEW_YORK).date()
            asked = {"underlying_ticker": code, "as_of": today.isoformat(), **span}
            pages, error = self._pages(product, REFERENCE, REFERENCE.path, asked, exchange)
        return _part(product, pages, error, without, request)

    def _pages(
        self,
        product: Product,
        endpoint: _Endpoint,
        path: str,
        params: dict[str, object],
        exchange: Exchange,
    ) -> tuple[list[tuple[Reply, Page]], SourceError | None]:
        """The pages from an address on, and what ended them early if something did."""
        pages: list[tuple[Reply, Page]] = []
        seen: set[str] = set()
        params = {**params, "limit": endpoint.limit}
        while len(pages) < MAX_PAGES:
            try:
                reply, page = self._page(product, endpoint, path, params, exchange)
            except SourceError as error:
                return pages, error
            pages.append((reply, page))
            if page.next_url is None:
                return pages, None
            if page.next_url in seen:
                return pages, BadPayload("Polygon's pages run in a circle, so the chain may be incomplete")
            seen.add(page.next_url)
            path, params = next_page(page.next_url, self.base_url)
        return pages, BadPayload(f"Polygon's pages did not end after {MAX_PAGES}")

    def _page(
        self,
        product: Product,
        endpoint: _Endpoint,
        path: str,
        params: dict[str, object],
        exchange: Exchange,
    ) -> tuple[Reply, Page]:
        if self._key is None:
            raise NotConfigured("POLYGON_API_KEY (or MASSIVE_API_KEY) is not set, so Polygon was not asked")
        reply = exchange.get(
            path,
            operation=endpoint.operation,
            params=params,
            headers={"Authorization": f"Bearer {self._key.get_secret_value()}"},
            keep=endpoint.keep,
        )
        try:
            if reply.status != 200:
                raise refusal(reply)
            return reply, parse_page(reply.body, product, what=f"Polygon's {endpoint.operation}")
        except SourceError as error:
            exchange.reject(reply, error.outcome, str(error))
            raise


def _snapshot_path(product: Product) -> str:
    prefix = "I:" if product.underlying_class == "index" else ""
    return f"{SNAPSHOT.path}/{prefix}{product.code}"


def _failed_probe(error: SourceError) -> Probe:
    mends = {
        Outcome.NOT_CONFIGURED: "set POLYGON_API_KEY (or MASSIVE_API_KEY) to a key of massive.com",
        Outcome.NOT_ENTITLED: "choose a plan with options data at massive.com/pricing",
        Outcome.RATE_LIMITED: "wait a minute; set NQ_POLYGON_RPM to your plan's limit",
    }
    mend = mends.get(error.outcome, "check NQ_POLYGON_URL and the network")
    if isinstance(error, NotConfigured):
        return Probe(False, None, None, str(error), mend)
    entitled = False if isinstance(error, NotEntitled) else None
    return Probe(True, not isinstance(error, Unavailable), entitled, str(error), mend)


# ── pages ───────────────────────────────────────────────────────────────────────────────────────


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
            return _NoSuchAddress(f"Polygon has no such endpoint or ticker{quoted}; check NQ_POLYGON_URL")
        case 429:
            return RateLimited(
                f"too many requests for the Polygon plan{quoted}; set NQ_POLYGON_RPM to its limit",
                retry_after_s=reply.retry_after_s,
            )
        case status if status is not None and status >= 500:
            return Unavailable(f"Polygon answered HTTP {status}; it may work again later")
    return BadPayload(f"Polygon answered HTTP {reply.status}{quoted}, which it does not document")


def parse_page(body: bytes, product: Product, *, what: str) -> Page:
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
    return Page(rows, next_url or None, +dropped)


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
            return _NoSuchAddress(f'Polygon has no such ticker ("{said}")')
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
        **terms, **_PRICES, **_COUNTS, **_INSTANTS, has_quote=pl.col("last_quote").is_not_null()
    )
    counts = {name: number(name, pl.Int64) for name in _COUNTS}
    instant = {name: number(name, pl.Int64) for name in _INSTANTS}
    low, high = (to_ns(year) for year in YEARS)
    rows = text.with_columns(
        **{name: number(name) for name in (*_PRICES, "said_strike")},
        **{name: pl.when(count >= 0).then(count) for name, count in counts.items()},
        **{
            name: pl.when(cell.is_between(low, high)).then(cell).cast(INSTANT)
            for name, cell in instant.items()
        },
    )
    for name in (*_PRICES, *_COUNTS, *_INSTANTS):
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


# ── rows ────────────────────────────────────────────────────────────────────────────────────────


def _part(
    product: Product,
    pages: list[tuple[Reply, Page]],
    error: SourceError | None,
    without: str,
    request: ChainRequest,
) -> _Part:
    """The rows of one underlying and the outcome of each of its series.

    `without` says why there are no prices, when there are none.
    """
    part = _Part(dropped=_total(page.dropped for _, page in pages), error=error)
    part.cached = all(reply.cached for reply, _ in pages)
    if not pages:
        return part
    rows = pl.concat(
        page.rows.with_columns(request_id=pl.lit(reply.request_id), raw_sha256=pl.lit(reply.sha256))
        for reply, page in pages
    )
    contracts = rows.unique(
        ["root", "expiration_date", "option_type", "strike"], keep="first", maintain_order=True
    )
    part.dropped["duplicate"] += rows.height - contracts.height
    part.dropped = +part.dropped
    part.controls = {"terms_agree_with_ticker": not part.dropped["contradictory_row"]}
    if contracts.is_empty():
        return part
    session = regular_session(request.moment)
    part.frame = chain_rows(
        contracts, product, max(r.snapshot_ts for r, _ in pages), session.trade_date, request
    )
    part.series = _series_answers(part, contracts, session.open, error, without)
    return part


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
            source=pl.lit(Polygon.name),
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


def regular_session(moment: datetime) -> sessions.Session:
    """The last session whose regular hours have begun: index and fund options trade in no others."""
    session = sessions.current_session(moment)
    while session.rth is None or session.rth[0] > moment:
        session = sessions.current_session(from_ns(to_ns(session.open) - 1_000))
    return session


def _series_answers(
    part: _Part, contracts: pl.DataFrame, session_open: datetime, error: SourceError | None, without: str
) -> dict[str, SeriesAnswer]:
    fault = without or _thin(part.dropped, contracts)
    days = contracts["expiration_date"]
    # Pages come by expiration, so that a cut spoils the last one only, if the vendor kept the order.
    cut = set() if error is None else ({days.max()} if days.is_sorted() else set(days))
    newest = part.frame.group_by("series", "expiration_date").agg(
        newest=pl.max_horizontal(pl.col("quote_ts").max(), pl.col("last_ts").max())
    )
    newest = newest.with_columns(pl.col("newest").fill_null(pl.col("newest").max()))
    stale = set(newest.filter(pl.col("newest") < session_open)["series"])
    answers: dict[str, SeriesAnswer] = {}
    for key, day, moment in newest.sort("expiration_date", "series").iter_rows():
        if key in stale:
            reason = f"its newest quote or trade is of {describe(moment)}, before the session asked about"
            answers[key] = SeriesAnswer(Outcome.STALE, reason)
        elif fault:
            answers[key] = SeriesAnswer(Outcome.PARTIAL, fault)
        elif day in cut:
            answers[key] = SeriesAnswer(Outcome.PARTIAL, f"its pages were cut short: {error}")
        else:
            answers[key] = SeriesAnswer(Outcome.OK)
    return answers


def _thin(dropped: Counter[str], contracts: pl.DataFrame) -> str:
    """Why the whole answer is worth less than its rows suggest; empty when it is not."""
    if not contracts["has_quote"].any():
        return "the Polygon plan shows no quotes"
    faults = {name: dropped[name] for name in UNUSABLE if dropped[name]}
    if sum(faults.values()) > TRACE * contracts.height:
        return "unusable parts of the answer: " + ", ".join(f"{name} {n}" for name, n in faults.items())
    return ""


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


def _total(counters: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counters, Counter())
