"""Barchart: the quotes API behind the site's own options pages.

One request per series, as the page itself sends it; then one for the futures' prices; then, if time remains,
the pages themselves as a control. Quotes carry no time. A series without a trade in the session counts as
quiet, not stale, when all its prices are settlements of the session before and something else at the site has
traded since.

The site is free to read, but the user must respect its terms and its bot protection. So the live environment
uses it only after an explicit opt-in, and sends one request at a time, with a pause between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import polars as pl

from nq_pipeline.clock import from_ns
from nq_pipeline.errors import BadPayload, NotConfigured, SourceError
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.listing import front_future, underlying_future
from nq_pipeline.market.products import select_products
from nq_pipeline.market.symbology import Unparsed, barchart_code, barchart_future
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.barchart.codes import added_codes, one_digit
from nq_pipeline.sources.barchart.login import SiteLogin, check_status
from nq_pipeline.sources.barchart.normalize import SOURCE, FuturePrices, chain_rows
from nq_pipeline.sources.barchart.parse import BarchartChain, parse_chain, parse_futures
from nq_pipeline.sources.barchart.spec import BarchartSettings
from nq_pipeline.sources.base import (
    ChainAnswer,
    ChainRequest,
    Probe,
    SeriesAnswer,
    failed,
    overall,
    series_failure,
)
from nq_pipeline.sources.failures import (
    MAX_UNUSABLE_SHARE,
    STOP_ERRORS,
    describe_dropped,
    merge_controls,
    rejecting,
)
from nq_pipeline.sources.rows import OTHER, SKEW_NS
from nq_pipeline.transport.lifetime import Keep
from nq_pipeline.transport.policy import Policy
from nq_pipeline.transport.vendor_session import Reply, VendorSession

QUOTES = "/proxies/core-api/v1/quotes/get"
FIELDS = (
    "strike,openPrice,highPrice,lowPrice,lastPrice,priceChange,bidPrice,askPrice,volume,openInterest,"
    "premium,tradeTime,longSymbol,optionType,symbol"
)
"""The fields the options page requests, no more."""
FUTURE_FIELDS = {"fields": "symbol,lastPrice,tradeTime", "raw": 1}

NOT_COVERED = SeriesAnswer(
    Outcome.NOT_CONFIGURED,
    "not covered: Barchart's code for options of this root is not known; name it in NQ_BARCHART_CODES as "
    "CODE=ROOT",
)
Chains = dict[Series, tuple[BarchartChain, Reply]]


class Barchart:
    """The source `barchart`."""

    name = SOURCE
    underlying_classes = frozenset({"future"})
    metered = False

    def __init__(self, settings: Settings) -> None:
        self._settings, self._own = settings, settings.vendor(BarchartSettings)
        self.base_url = self._own.url
        self.policy = Policy.of(settings.http, spacing_s=self._own.spacing_s)
        self._codes = added_codes(settings)
        self._delay = timedelta(seconds=self._own.delay_s)

    def ask(self, request: ChainRequest, session: VendorSession) -> ChainAnswer:
        """Request each series, then the futures, then, if time remains, the pages."""
        try:
            login = self._login(session)
        except NotConfigured as error:
            return failed(self.name, request, error)
        chains: Chains = {}
        answers: dict[str, SeriesAnswer] = {}
        stop: SeriesAnswer | None = None
        for series in request.series:
            code = self._code(series, request)
            if isinstance(code, Unparsed):
                answers[series.key] = NOT_COVERED
            elif stop is not None:
                answers[series.key] = stop
            else:
                try:
                    chains[series] = self._fetch_chain(series, code, request, login)
                except SourceError as error:
                    answers[series.key] = series_failure(error)
                    stop = series_failure(error) if isinstance(error, STOP_ERRORS) else None
        futures = self._fetch_futures(chains, request, login) if chains and stop is None else {}
        pages: list[Mapping[str, bool]] = []
        if self._own.pages and stop is None:
            pages = self._fetch_pages(chains, request, login)
        return self._answer(request, chains, answers, futures, pages)

    def probe(self, session: VendorSession) -> Probe:
        """Request the quote of the front future."""
        login = self._login(session)
        day = sessions.current_session(session.clock.now()).trade_date
        future = front_future(select_products(self._settings.products)[0], day, 2)
        params = {"symbols": future, **FUTURE_FIELDS}
        reply = self._fetch_quotes(params, "underlying", _page_path(future), login)
        prices = _read_futures(reply, [future], day, session)
        if future not in prices:
            remedy = "look at its answer in the raw archive, and check NQ_BARCHART_URL"
            return Probe(True, True, None, f"the answer holds no quote of {future}", remedy)
        return Probe(True, True, True, f"{future} at {prices[future][0]:,.2f}")

    def _login(self, session: VendorSession) -> SiteLogin:
        if self._settings.environment == "live" and not self._own.enabled:
            raise NotConfigured(
                "barchart.com is used only after your opt-in, because its terms are your responsibility: set "
                "NQ_BARCHART_ENABLED=true or name it with `--source barchart`"
            )
        return SiteLogin(self._settings, session)

    def _code(self, series: Series, request: ChainRequest) -> str | Unparsed:
        given = request.vendor_codes.get(series.key)
        return given.strip().upper() if given else barchart_code(series, codes=self._codes)

    def _fetch_chain(
        self, series: Series, code: str, request: ChainRequest, login: SiteLogin
    ) -> tuple[BarchartChain, Reply]:
        params = {
            "symbol": code, "list": "futures.options", "fields": FIELDS, "groupBy": "optionType",
            "orderBy": "strike", "orderDir": "asc", "raw": 1,
            "meta": "field.shortName,field.description,field.type",
        }  # fmt: skip
        reply = self._fetch_quotes(params, "chain", _page_path(code, series), login)
        session, latest = login.session, reply.received_at + SKEW_NS
        with rejecting(session, reply):
            chain = parse_chain(
                reply.body, series, one_digit(code), trade_date=request.trade_date, latest=latest
            )
        if not chain.seen:
            session.reject(reply, Outcome.EMPTY, "not a single contract")
        elif chain.dropped[OTHER] == chain.seen:
            session.reject(reply, Outcome.EMPTY, "not a single contract of the requested series")
        elif chain.rows.is_empty():
            session.reject(reply, Outcome.BAD_PAYLOAD, "no row could be used")
        return chain, reply

    def _fetch_futures(
        self, requested: Iterable[Series], request: ChainRequest, login: SiteLogin
    ) -> FuturePrices:
        """Prices of the underlying futures; a chain is complete without them."""
        symbols = list(dict.fromkeys(underlying_future(series, 2) for series in requested))
        params = {"symbols": ",".join(symbols), **FUTURE_FIELDS}
        try:
            reply = self._fetch_quotes(params, "underlying", _page_path(symbols[0]), login)
        except SourceError:
            return {}  # the fetch has the reason
        return _read_futures(reply, symbols, request.trade_date, login.session)

    def _fetch_pages(
        self, chains: Chains, request: ChainRequest, login: SiteLogin
    ) -> list[Mapping[str, bool]]:
        """The controls of each series' page; the first page that fails ends the reading."""
        from nq_pipeline.sources.barchart.page import parse_page

        session, controls = login.session, list[Mapping[str, bool]]()
        for series, (chain, reply) in chains.items():
            if chain.rows.is_empty():
                continue
            code = str(self._code(series, request))
            try:
                page_reply = session.get(
                    _page_path(code, series),
                    operation="page",
                    headers=login.page_headers(),
                    keep=Keep.TRADE_DATE,
                )
                check_status(page_reply, session)
            except SourceError:
                break  # the fetch has the reason
            page = parse_page(page_reply.body)
            if page.code is None or one_digit(page.code) != one_digit(code):
                session.reject(page_reply, Outcome.BAD_PAYLOAD, f"not the options page of {code}")
                break
            # Open interest is restated within a session: only what was requested together compares.
            together = page_reply.snapshot_ts == reply.snapshot_ts
            controls.append(page.controls(series, chain.rows, open_interest=together))
        return controls

    def _fetch_quotes(
        self,
        params: Mapping[str, Any],
        operation: str,
        referer: str,
        login: SiteLogin,
    ) -> Reply:
        """One request to the API; a refused session is renewed once per run."""
        while True:
            headers = login.api_headers(referer)
            reply = login.session.get(QUOTES, operation=operation, params=params, headers=headers)
            if reply.status not in (401, 419) or not login.renew(referer):
                check_status(reply, login.session)
                return reply

    def _answer(
        self,
        request: ChainRequest,
        chains: Chains,
        failures: Mapping[str, SeriesAnswer],
        futures: FuturePrices,
        pages: Sequence[Mapping[str, bool]],
    ) -> ChainAnswer:
        # Until the site's delay has passed, its quotes are of the session before.
        market_session = sessions.current_session(request.moment - self._delay)
        newest = [chain.newest for chain, _ in chains.values() if chain.newest]
        newest += [sessions.trade_date(from_ns(ns)) for _, ns in futures.values()]
        trading = bool(newest) and max(newest) >= market_session.trade_date
        answers, dropped = dict(failures), Counter[str]()
        frames = [SOURCE_CHAIN.empty()]
        for series, (chain, reply) in chains.items():
            answers[series.key] = _judge(chain, market_session, trading=trading)
            dropped.update(chain.dropped)
            if chain.rows.height:
                frames.append(chain_rows(chain.rows, series, reply, request, futures, self._delay))
        ordered = {series.key: answers[series.key] for series in request.series}
        outcome = overall([answer.outcome for answer in ordered.values()])
        return ChainAnswer(
            source=self.name,
            outcome=outcome,
            reason="" if outcome is Outcome.OK else _summarize(ordered),
            frame=pl.concat(frames),
            series=ordered,
            dropped=dropped,
            controls=merge_controls([*pages, *(chain.controls for chain, _ in chains.values())]),
            cached=bool(chains) and all(reply.cached for _, reply in chains.values()),
        )


def _page_path(code: str, series: Series | None = None) -> str:
    """The address of a series' page; the standard option's is that of the future itself."""
    if series is None or series.root_info.family.is_standard:
        return f"/futures/quotes/{code}/options"
    return f"/futures/quotes/{barchart_future(series)}/options/{code}"


def _read_futures(
    reply: Reply, symbols: Sequence[str], trade_date: date, session: VendorSession
) -> FuturePrices:
    try:
        with rejecting(session, reply):
            latest = reply.received_at + SKEW_NS
            return parse_futures(reply.body, symbols, trade_date=trade_date, latest=latest)
    except BadPayload:
        return {}


def _judge(chain: BarchartChain, session: sessions.Session, *, trading: bool) -> SeriesAnswer:
    """The outcome of a series whose answer could be read.

    It is `partial` when the site's own total differs, or when more than a hundredth of the rows was lost
    or holds an unreadable cell. `trading` is whether anything at the site has traded in the session.
    """
    counts = describe_dropped(chain.dropped)
    if not chain.seen:
        return SeriesAnswer(Outcome.EMPTY, "the site lists no contracts for this series")
    if chain.dropped[OTHER] == chain.seen:
        reason = f"the site sent {chain.seen} contracts of other series and none of this one"
        return SeriesAnswer(Outcome.EMPTY, reason)
    if chain.rows.is_empty():
        return SeriesAnswer(Outcome.BAD_PAYLOAD, f"none of {chain.seen} rows could be used: {counts}")
    before = sessions.current_session(session.open - timedelta(seconds=1)).trade_date
    newest = chain.newest or before
    quiet = trading and chain.settled and newest >= before
    if newest < session.trade_date and not quiet:
        return SeriesAnswer(
            Outcome.STALE, f"nothing newer than trade date {newest}, and {session.trade_date} was requested"
        )
    if not chain.controls["rows_equal_total"]:
        return SeriesAnswer(Outcome.PARTIAL, f"{chain.seen} rows, which is not the total the site states")
    if chain.dropped.total() > MAX_UNUSABLE_SHARE * chain.seen:
        return SeriesAnswer(Outcome.PARTIAL, f"of {chain.seen} rows: {counts}")
    return SeriesAnswer(Outcome.OK)


def _summarize(series: Mapping[str, SeriesAnswer]) -> str:
    """The first reason, and for how many series it holds."""
    poor = {key: one.reason for key, one in series.items() if one.outcome is not Outcome.OK}
    first = next(iter(poor.values()))
    alike = [key for key, reason in poor.items() if reason == first]
    which = f"{len(alike)} of {len(series)} series" if len(alike) > 1 else f"{alike[0]} (1 of {len(series)})"
    rest = len(poor) - len(alike)
    return f"{which}: {first}" + (f" ({rest} more failed for other reasons)" if rest else "")
