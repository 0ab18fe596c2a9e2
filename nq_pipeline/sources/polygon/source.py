"""Polygon.io, now Massive: option chains on an index and on a fund, as proxies for a future's.

The vendor has no options on futures. Options on the indices and funds of `market.products.PROXIES` replace
them: NDX (with its PM-settled NDXP) and QQQ for NQ, SPX (with SPXW) and SPY for ES. Every row says so in
`underlying_class`. Products without a proxy are not covered.

The reference contracts are requested when the plan does not include the snapshot. The key travels in the
`Authorization` header, never in a URL, and only to our base address.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import polars as pl

from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    DeadlineReached,
    NotConfigured,
    NotEntitled,
    RateLimited,
    SourceError,
)
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.market.products import NDX, PROXIES, Product
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainAnswer, ChainRequest, Probe, failed, overall
from nq_pipeline.sources.failures import merge_controls, rejecting
from nq_pipeline.sources.polygon.normalize import NEW_YORK, SOURCE, UnderlyingChain, build_chain, sum_counts
from nq_pipeline.sources.polygon.parse import (
    NoSuchAddress,
    SnapshotPage,
    error_of_reply,
    next_page,
    parse_page,
)
from nq_pipeline.sources.polygon.spec import PolygonSettings
from nq_pipeline.sources.rows import OTHER, expiration_spans, within_expirations
from nq_pipeline.spend.entitlements import WHOLE_CHAIN
from nq_pipeline.transport.lifetime import Keep
from nq_pipeline.transport.policy import Policy
from nq_pipeline.transport.vendor_session import Reply, VendorSession

Pages = list[tuple[Reply, SnapshotPage]]

MAX_PAGES = 400
"""More pages than any chain has: 100,000 contracts."""

ACCOUNT_ERRORS = (NotConfigured, Blocked, RateLimited, DeadlineReached)
"""Errors after which the next underlying would fail too; what a plan includes depends on the underlying."""


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


class Polygon:
    """The source `polygon`: proxy chains, keyed by the proxy's own series (`NDXP-2025-07-01`).

    It requests the spans of the requested expirations. The nearest come first, so that a plan with few
    requests a minute still gives complete chains of the nearest series.
    """

    name = SOURCE
    underlying_classes = frozenset({"index", "etf"})
    metered = False

    def __init__(self, settings: Settings) -> None:
        own = settings.vendor(PolygonSettings)
        self.base_url, self._key = own.url, own.api_key
        self.policy = Policy.of(settings.http, per_minute=own.rpm)
        self._underlyings, self._products = own.underlyings, settings.products

    def ask(self, request: ChainRequest, session: VendorSession) -> ChainAnswer:
        """Request the proxy chains over the spans of the requested expirations.

        Outcomes of a series: `ok`; `stale` when its newest quote or trade is older than the last
        session with regular hours; `partial` when its pages were cut short, when the plan shows
        contracts or prices without quotes, or when more than a hundredth of the rows was unusable.
        """
        try:
            underlyings = self._select_underlyings({s.root_info.product.code for s in request.series})
        except NotConfigured as error:
            return failed(self.name, request, error)
        chains: dict[str, UnderlyingChain] = {}
        for code in underlyings:
            chains[code] = chain = self._fetch_chain(code, request, session)
            if isinstance(chain.error, ACCOUNT_ERRORS):
                break
        errors = [chain.error for chain in chains.values() if chain.error is not None]
        dropped = sum_counts(chain.dropped for chain in chains.values())
        frame = pl.concat([SOURCE_CHAIN.empty(), *(chain.frame for chain in chains.values())])
        if frame.is_empty() and errors:
            # A plan's refusal holds all day, so it is the answer only when nothing else went wrong.
            first = next((error for error in errors if not isinstance(error, NotEntitled)), errors[0])
            return replace(failed(self.name, request, first), dropped=dropped)
        series = {key: answer for chain in chains.values() for key, answer in chain.series.items()}
        outcome = overall([*(s.outcome for s in series.values()), *(error.outcome for error in errors)])
        reasons = [str(error) for error in errors] + [s.reason for s in series.values() if s.reason]
        if outcome is Outcome.EMPTY:
            others = f"; it sent {dropped[OTHER]} other contracts" if dropped[OTHER] else ""
            reasons = [f"Polygon lists no options for the requested expirations{others}"]
        refused = {code: chain.refusal for code, chain in chains.items() if chain.refusal}
        if refused.keys() == set(underlyings):
            refused[WHOLE_CHAIN] = next(iter(refused.values()))
        return ChainAnswer(
            source=self.name,
            outcome=outcome,
            reason=reasons[0] if reasons else "",
            frame=frame,
            series=series,
            dropped=dropped,
            controls=merge_controls(chain.controls for chain in chains.values()),
            cached=all(chain.cached for chain in chains.values()),
            refused=refused,
        )

    def probe(self, session: VendorSession) -> Probe:
        """Request one contract of the snapshot, or of the reference when the plan lacks the snapshot."""
        proxy = PROXIES.get(self._select_underlyings(set(self._products))[0], NDX)
        try:
            self._fetch_page(proxy, _PROBE, _snapshot_path(proxy), {"limit": 1}, session)
        except NotEntitled as refusal:
            params: dict[str, object] = {"underlying_ticker": proxy.code, "limit": 1}
            self._fetch_page(proxy, _PROBE, REFERENCE.path, params, session)
            remedy = "choose a plan with option snapshots at massive.com/pricing"
            return Probe(True, True, False, f"contracts without prices: {refusal}", remedy)
        return Probe(True, True, True, f"chain snapshots of {proxy.code}")

    def _select_underlyings(self, products: set[str]) -> list[str]:
        """The underlyings to request; an unknown name stays among them and is reported by name."""
        found = [c for c in self._underlyings if c not in PROXIES or PROXIES[c].stands_for in products]
        if found:
            return found
        known = ", ".join(f"{code} for {proxy.stands_for}" for code, proxy in PROXIES.items())
        raise NotConfigured(
            f"not covered: none of NQ_POLYGON_UNDERLYINGS stands for {' or '.join(sorted(products))}; "
            f"known are {known}"
        )

    def _fetch_chain(self, code: str, request: ChainRequest, session: VendorSession) -> UnderlyingChain:
        """The chain of one underlying: its snapshot, or the listed contracts when the plan has none."""
        product = PROXIES.get(code)
        if product is None:
            known = ", ".join(PROXIES)
            return UnderlyingChain(
                error=NotConfigured(f"NQ_POLYGON_UNDERLYINGS names {code!r}; it can hold {known}")
            )
        pages: Pages = []
        error: SourceError | None
        if (refusal := request.refused.get(code)) is not None:
            error = NotEntitled(refusal)
        else:
            pages, error = self._fetch_pages(product, SNAPSHOT, _snapshot_path(product), {}, request, session)
        refusal = str(error) if not pages and isinstance(error, NotEntitled) else ""
        unpriced = ""
        if not pages and isinstance(error, NotEntitled | NoSuchAddress):
            unpriced = f"contracts without prices: {error}"
            today = request.snapshot_ts.astimezone(NEW_YORK).date()
            params = {"underlying_ticker": code, "as_of": today.isoformat()}
            pages, error = self._fetch_pages(product, REFERENCE, REFERENCE.path, params, request, session)
        for reply, page in pages:
            # In the cache, one bad page of the vendor's would hold all day.
            if page.rows.is_empty():
                outcome = Outcome.BAD_PAYLOAD if page.dropped else Outcome.EMPTY
                session.reject(reply, outcome, "a page without a single readable contract")
            elif page.rows.filter(within_expirations(request.series)).is_empty():
                session.reject(reply, Outcome.EMPTY, "a page without a single requested contract")
        return build_chain(product, pages, error, refusal, request, unpriced=unpriced)

    def _fetch_pages(
        self,
        product: Product,
        endpoint: _Endpoint,
        path: str,
        params: Mapping[str, object],
        request: ChainRequest,
        session: VendorSession,
    ) -> tuple[Pages, SourceError | None]:
        """The pages of every span of expirations, and the error that ended them early, if any."""
        pages: Pages = []
        try:
            for first, last in expiration_spans(request.series):
                span = {
                    "expiration_date.gte": first.isoformat(),
                    "expiration_date.lte": last.isoformat(),
                    "sort": "expiration_date",
                    "order": "asc",
                    "limit": endpoint.limit,
                }
                for page in self._follow_pages(product, endpoint, path, {**params, **span}, session):
                    pages.append(page)
        except SourceError as error:
            return pages, error
        return pages, None

    def _follow_pages(
        self,
        product: Product,
        endpoint: _Endpoint,
        path: str,
        params: dict[str, object],
        session: VendorSession,
    ) -> Iterator[tuple[Reply, SnapshotPage]]:
        """The pages from an address on; raises the error that ends them early."""
        seen: set[str] = set()
        for _ in range(MAX_PAGES):
            reply, page = self._fetch_page(product, endpoint, path, params, session)
            yield reply, page
            if page.next_url is None:
                return
            if page.next_url in seen:
                raise BadPayload(
                    "Polygon's pages lead back to an earlier one, so the chain may be incomplete"
                )
            seen.add(page.next_url)
            path, params = next_page(page.next_url, self.base_url)
        raise BadPayload(f"Polygon's pages did not end after {MAX_PAGES}")

    def _fetch_page(
        self,
        product: Product,
        endpoint: _Endpoint,
        path: str,
        params: dict[str, object],
        session: VendorSession,
    ) -> tuple[Reply, SnapshotPage]:
        if self._key is None:
            raise NotConfigured("POLYGON_API_KEY (or MASSIVE_API_KEY) is not set; set it to use Polygon")
        if not re.fullmatch(r"[!-~]+", self._key.get_secret_value()):  # no HTTP header can carry it
            raise NotConfigured(
                "POLYGON_API_KEY (or MASSIVE_API_KEY) is not a key: it has blanks or non-ASCII characters; "
                "copy it from massive.com/dashboard/keys"
            )
        reply = session.get(
            path,
            operation=endpoint.operation,
            params=params,
            headers={"Authorization": f"Bearer {self._key.get_secret_value()}"},
            keep=endpoint.keep,
        )
        with rejecting(session, reply):
            if reply.status != 200:
                raise error_of_reply(reply)
            return reply, parse_page(reply.body, product, what=f"Polygon's {endpoint.operation}")


def _snapshot_path(product: Product) -> str:
    prefix = "I:" if product.underlying_class == "index" else ""
    return f"{SNAPSHOT.path}/{prefix}{product.code}"
