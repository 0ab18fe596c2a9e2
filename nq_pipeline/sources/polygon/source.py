"""Polygon.io, now Massive: option chains on an index and on a fund that stand in for a future's.

The vendor has no options on futures. NDX (with its PM-settled NDXP) and QQQ stand in for NQ, SPX (with
SPXW) and SPY for ES: every row says so in `underlying_class`, and the failover takes them only when no
native source is left. Products without a stand-in, gold among them, are not covered.

    GET /v3/snapshot/options/I:NDX            prices, Greeks, open interest; 250 a page
    GET /v3/reference/options/contracts       what is listed, without prices; 1,000 a page

The second is asked when the plan has no snapshots. The key travels in the `Authorization` header,
never in an address, and only to our base address: of a `next_url` only path and query are used.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

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
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.market import sessions
from nq_pipeline.market.products import NDX, PROXIES, Product
from nq_pipeline.market.sessions import in_chicago
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainAnswer, ChainRequest, Probe, SeriesAnswer, failed, overall
from nq_pipeline.sources.plausibility import (
    FUTURE,
    OTHER,
    SKEW_NS,
    none_to_come,
    only_asked,
    within_expirations,
)
from nq_pipeline.sources.polygon.pages import (
    INSTANTS,
    NEW_YORK,
    SOURCE,
    NoSuchAddress,
    SnapshotPage,
    chain_rows,
    next_page,
    parse_page,
    refusal,
)
from nq_pipeline.spend.entitlements import CHAIN
from nq_pipeline.transport.lifetime import Keep
from nq_pipeline.transport.vendor_session import Policy, Reply, VendorSession

MAX_PAGES = 400
"""More pages than any chain has: 100,000 contracts."""
TRACE = 0.01
"""A larger share of unusable rows makes an answer partial."""
UNUSABLE = (
    "malformed_row", "malformed_cell", FUTURE, "contradictory_row", "vendor_error", "vendor_not_entitled",
)  # fmt: skip


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


_HOPELESS = (NotConfigured, Blocked, RateLimited, DeadlineReached)
"""After these the next underlying would fare no better."""


@dataclass(slots=True)
class _Part:
    """What came of one underlying."""

    frame: pl.DataFrame = field(default_factory=SOURCE_CHAIN.empty)
    series: dict[str, SeriesAnswer] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    controls: dict[str, bool] = field(default_factory=dict)
    cached: bool = True
    error: SourceError | None = None
    refused: str = ""
    """What the plan said of its snapshot."""


class Polygon:
    """Polygon (Massive) as a source of proxy chains.

    One answer per underlying of `NQ_POLYGON_UNDERLYINGS` that stands for a product asked about, over
    the expirations the request spans, nearest first, so that a plan of few requests a minute still
    gives the nearest series whole.
    Series are keyed by the proxy's own (`NDXP-2025-07-01`).
    """

    name = SOURCE
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
        self._underlyings, self._products = settings.polygon_underlyings, settings.products
        self._key = settings.polygon_api_key

    def ask(self, request: ChainRequest, exchange: VendorSession) -> ChainAnswer:
        """Ask for the proxy chains of the span of expirations in the request.

        Outcomes of a series: `ok`; `stale` when its newest quote or trade is older than the last
        session with regular hours; `partial` when its pages were cut short, when the plan shows
        contracts or prices without quotes, or when more than a trace of rows was unusable.
        """
        parts: dict[str, _Part] = {}
        try:
            underlyings = self._standing_for({s.root_info.product.code for s in request.series})
        except NotConfigured as nothing:
            return failed(self.name, request, nothing)
        for code in underlyings:
            parts[code] = part = self._chain(code, request, exchange)
            if isinstance(part.error, _HOPELESS):
                break
        errors = [part.error for part in parts.values() if part.error is not None]
        dropped = _total(part.dropped for part in parts.values())
        frame = pl.concat([SOURCE_CHAIN.empty(), *(part.frame for part in parts.values())])
        if frame.is_empty() and errors:
            # A refusal holds all day, so it is the answer only where nothing else went wrong.
            first = next((error for error in errors if not isinstance(error, NotEntitled)), errors[0])
            return replace(failed(self.name, request, first), dropped=dropped)
        series = {key: answer for part in parts.values() for key, answer in part.series.items()}
        outcome = overall([*(s.outcome for s in series.values()), *(error.outcome for error in errors)])
        reasons = [str(error) for error in errors] + [s.reason for s in series.values() if s.reason]
        if outcome is Outcome.EMPTY:
            others = f"; it sent {dropped[OTHER]} contracts of others" if dropped[OTHER] else ""
            reasons = [f"Polygon lists no options for the expirations asked about{others}"]
        refused = {code: part.refused for code, part in parts.items() if part.refused}
        if refused.keys() == parts.keys():
            refused[CHAIN] = next(iter(refused.values()))
        return ChainAnswer(
            source=self.name,
            outcome=outcome,
            reason=reasons[0] if reasons else "",
            frame=frame,
            series=series,
            dropped=dropped,
            controls={name: held for part in parts.values() for name, held in part.controls.items()},
            cached=all(part.cached for part in parts.values()),
            refused=refused,
        )

    def probe(self, exchange: VendorSession) -> Probe:
        """Ask for one contract of the snapshot, and of the reference when the plan lacks the former."""
        try:
            proxy = PROXIES.get(self._standing_for(set(self._products))[0], NDX)
        except NotConfigured as nothing:
            return Probe(False, None, None, str(nothing), "take polygon out of NQ_SOURCES")
        one = {"underlying_ticker": proxy.code, "limit": 1}
        try:
            self._page(proxy, _PROBE, _snapshot_path(proxy), {"limit": 1}, exchange)
        except NotEntitled as refused:
            try:
                self._page(proxy, _PROBE, REFERENCE.path, one, exchange)
            except SourceError as error:
                return _failed_probe(error)
            mend = "choose a plan with option snapshots at massive.com/pricing"
            return Probe(True, True, False, f"contracts without prices: {refused}", mend)
        except SourceError as error:
            return _failed_probe(error)
        return Probe(True, True, True, f"chain snapshots of {proxy.code}")

    def _standing_for(self, products: set[str]) -> list[str]:
        """The underlyings to ask for; a name that is no proxy is among them, to be refused by name."""
        found = [c for c in self._underlyings if c not in PROXIES or PROXIES[c].stands_for in products]
        if found:
            return found
        known = ", ".join(f"{code} for {proxy.stands_for}" for code, proxy in PROXIES.items())
        raise NotConfigured(
            f"not covered: none of NQ_POLYGON_UNDERLYINGS stands for {' or '.join(sorted(products))}; "
            f"known are {known}"
        )

    def _chain(self, code: str, request: ChainRequest, exchange: VendorSession) -> _Part:
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
        without, pages = "", list[tuple[Reply, SnapshotPage]]()
        error: SourceError | None
        if (said := request.refused.get(code)) is not None:
            error = NotEntitled(said)
        else:
            pages, error = self._pages(product, SNAPSHOT, _snapshot_path(product), span, exchange)
        refused = str(error) if not pages and isinstance(error, NotEntitled) else ""
        if not pages and isinstance(error, NotEntitled | NoSuchAddress):
            without = f"contracts without prices: {error}"
            today = request.snapshot_ts.astimezone(NEW_YORK).date()
            asked = {"underlying_ticker": code, "as_of": today.isoformat(), **span}
            pages, error = self._pages(product, REFERENCE, REFERENCE.path, asked, exchange)
        for reply, page in pages:
            # Kept, a slip of the vendor's would hold all day.
            if page.rows.is_empty():
                kind = Outcome.BAD_PAYLOAD if page.dropped else Outcome.EMPTY
                exchange.reject(reply, kind, "a page without a single contract that can be read")
            elif page.rows.filter(within_expirations(request.series)).is_empty():
                exchange.reject(reply, Outcome.EMPTY, "a page without a single contract that was asked for")
        part = _part(product, pages, error, without, request)
        part.refused = refused
        return part

    def _pages(
        self,
        product: Product,
        endpoint: _Endpoint,
        path: str,
        params: dict[str, object],
        exchange: VendorSession,
    ) -> tuple[list[tuple[Reply, SnapshotPage]], SourceError | None]:
        """The pages from an address on, and what ended them early if something did."""
        pages: list[tuple[Reply, SnapshotPage]] = []
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
        exchange: VendorSession,
    ) -> tuple[Reply, SnapshotPage]:
        if self._key is None:
            raise NotConfigured("POLYGON_API_KEY (or MASSIVE_API_KEY) is not set, so Polygon was not asked")
        if not re.fullmatch(r"[!-~]+", self._key.get_secret_value()):  # no HTTP header can carry it
            raise NotConfigured(
                "POLYGON_API_KEY (or MASSIVE_API_KEY) is no key, since it has blanks or is not plain ASCII; "
                "copy it from massive.com/dashboard/keys"
            )
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


# ── outcomes ────────────────────────────────────────────────────────────────────────────────────


def _part(
    product: Product,
    pages: list[tuple[Reply, SnapshotPage]],
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
    received_at = max(reply.received_at for reply, _ in pages)
    rows = none_to_come(rows, INSTANTS, received_at + SKEW_NS, part.dropped)
    rows = only_asked(rows, within_expirations(request.series), part.dropped)
    contracts = rows.unique(
        ["root", "expiration_date", "option_type", "strike"], keep="first", maintain_order=True
    )
    part.dropped["duplicate"] += rows.height - contracts.height
    part.dropped = +part.dropped
    part.controls = {"terms_agree_with_ticker": not part.dropped["contradictory_row"]}
    if contracts.is_empty():
        # Rows that were not asked for can be read: without the others there is nothing of what was asked.
        unusable = part.dropped.total() - part.dropped[OTHER]
        if unusable > TRACE * part.dropped[OTHER] and error is None:
            counts = ", ".join(f"{n} {name}" for name, n in part.dropped.items())
            part.error = BadPayload(f"no contract of {product.code} in the answer could be used: {counts}")
        return part
    session = regular_session(request.moment)
    part.frame = chain_rows(
        contracts, product, max(r.snapshot_ts for r, _ in pages), session.trade_date, request
    )
    part.series = _series_answers(part, contracts, session.open, error, without)
    return part


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
            reason = f"its newest quote or trade is of {in_chicago(moment)}, before the session asked about"
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


def _total(counters: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counters, Counter())
