"""Barchart: the quotes API behind the site's own options pages.

One request per series, `/proxies/core-api/v1/quotes/get`, as the page itself asks it; then one
for the futures' prices; then, if time remains, the pages themselves as a control. What a body
means is in `barchart_quotes.py`, what a page says in `barchart_page.py`.

Quotes carry no time. A board without a trade in the session is taken for quiet, not stale, when
it holds nothing but the settlements of the session before and another board has traded since.

The site is free to look at; its terms and its bot protection are the user's to mind, so in live
it is asked only after an explicit opt-in, one request at a time and spaced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any
from urllib.parse import unquote

import polars as pl

from nq_pipeline.clock import from_ns
from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    DeadlineReached,
    NotConfigured,
    NotEntitled,
    RateLimited,
    SettingsError,
    SourceError,
    Unavailable,
)
from nq_pipeline.lake.tables import INSTANT, SOURCE_CHAIN
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS, Series
from nq_pipeline.market.listing import front_future, underlying_future
from nq_pipeline.market.products import chosen
from nq_pipeline.market.settlements import newest_published
from nq_pipeline.market.symbology import (
    Unparsed,
    barchart_code,
    parse_barchart_code,
)
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.barchart.quotes import BarchartChain, parse_chain, parse_futures
from nq_pipeline.sources.base import (
    ChainAnswer,
    ChainRequest,
    Probe,
    SeriesAnswer,
    chain_frame,
    failed,
    overall,
)
from nq_pipeline.sources.plausibility import OTHER, SKEW_NS
from nq_pipeline.transport.lifetime import Keep
from nq_pipeline.transport.vendor_session import Policy, Reply, VendorSession

QUOTES = "/proxies/core-api/v1/quotes/get"
FIELDS = (
    "strike,openPrice,highPrice,lowPrice,lastPrice,priceChange,bidPrice,askPrice,volume,openInterest,"
    "premium,tradeTime,longSymbol,optionType,symbol"
)
"""The fields the options page asks for, no more."""

FUTURES = {"fields": "symbol,lastPrice,tradeTime", "raw": 1}

BROWSER = {
    "Accept": "application/json",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/140.0 Safari/537.36",
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Dest": "empty",
}  # fmt: skip
"""What a browser sends with the page's own request; the API wants the same-origin mark."""

TRACE = 0.01
"""Share of a board's rows that may be lost or hold an unreadable cell before it is `partial`."""

NOT_COVERED = (
    "not covered: Barchart's code for options of this root is not known; name it in NQ_BARCHART_CODES as "
    "CODE=ROOT"
)

FINAL = (Blocked, NotEntitled, RateLimited, DeadlineReached, NotConfigured)
"""Failures after which asking for further series is useless or rude."""


# ── the client ──────────────────────────────────────────────────────────────────────────────────


class Barchart:
    """The source `barchart`.

    How requests are authorised is a setting: `api` sends what the page's script sends and no
    cookie, `cookies` visits a page first for a session and its `XSRF-TOKEN`, `browser` sends
    cookies taken from the user's own browser.
    """

    name = "barchart"
    underlying_classes = frozenset({"future"})
    metered = False

    def __init__(self, settings: Settings) -> None:
        self.base_url = settings.barchart_url
        self.policy = Policy(
            timeout_s=settings.http_timeout_s,
            attempts=settings.http_attempts,
            retry_after_cap_s=settings.retry_after_cap_s,
            spacing_s=settings.barchart_spacing_s,
        )
        self._settings = settings
        self._codes = added_codes(settings)
        self._delay = timedelta(seconds=settings.barchart_delay_s)

    def ask(self, request: ChainRequest, exchange: VendorSession) -> ChainAnswer:
        """Ask for each series' board, then for the futures, then, if time remains, read the pages."""
        try:
            visit = self._visit(exchange)
        except NotConfigured as error:
            return failed(self.name, request, error)
        boards: dict[Series, tuple[BarchartChain, Reply]] = {}
        outcomes: dict[str, SeriesAnswer] = {}
        final: SeriesAnswer | None = None
        for series in request.series:
            code = self._code(series, request)
            if isinstance(code, Unparsed):
                outcomes[series.key] = SeriesAnswer(Outcome.NOT_CONFIGURED, NOT_COVERED)
            elif final is not None:
                outcomes[series.key] = final
            else:
                try:
                    boards[series] = self._board(series, code, request, exchange, visit)
                except SourceError as error:
                    outcomes[series.key] = _failure(error)
                    final = _failure(error) if isinstance(error, FINAL) else None
        futures = self._futures(boards, request, exchange, visit) if boards and final is None else {}
        pages: Mapping[str, bool] = {}
        if self._settings.barchart_pages and final is None:
            pages = self._pages(boards, request, exchange, visit)
        return self._answer(request, boards, outcomes, futures, pages)

    def probe(self, exchange: VendorSession) -> Probe:
        """Ask for the quote of the front future."""
        try:
            visit = self._visit(exchange)
        except NotConfigured as error:
            return Probe(False, None, None, "not asked", str(error))
        day = sessions.current_session(exchange.clock.now()).trade_date
        future = front_future(chosen(self._settings.products)[0], day, 2)
        try:
            reply = self._quotes(
                {"symbols": future, **FUTURES}, "underlying", _page_path(future), exchange, visit
            )
        except SourceError as error:
            return Probe(True, not isinstance(error, Unavailable), None, str(error), _mend(error))
        shown = _futures_of(reply, [future], day, exchange)
        if future not in shown:
            mend = "see in the raw archive what it answered; is NQ_BARCHART_URL right?"
            return Probe(True, True, None, f"the answer holds no quote of {future}", mend)
        return Probe(True, True, True, f"{future} at {shown[future][0]:,.2f}")

    def _visit(self, exchange: VendorSession) -> _Visit:
        if self._settings.environment == "live" and not self._settings.barchart_enabled:
            raise NotConfigured(
                "barchart.com is asked only after your opt-in, since its terms are yours to mind: set "
                "NQ_BARCHART_ENABLED=true or name it with `--source barchart`"
            )
        return _Visit(self._settings, exchange)

    def _code(self, series: Series, request: ChainRequest) -> str | Unparsed:
        given = request.vendor_codes.get(series.key)
        return given.strip().upper() if given else barchart_code(series, codes=self._codes)

    def _board(
        self, series: Series, code: str, request: ChainRequest, exchange: VendorSession, visit: _Visit
    ) -> tuple[BarchartChain, Reply]:
        params = {
            "symbol": code, "list": "futures.options", "fields": FIELDS, "groupBy": "optionType",
            "orderBy": "strike", "orderDir": "asc", "raw": 1,
            "meta": "field.shortName,field.description,field.type",
        }  # fmt: skip
        reply = self._quotes(params, "chain", _page_path(code, series), exchange, visit)
        try:
            board = parse_chain(
                reply.body, series, _one_digit(code),
                trade_date=request.trade_date, latest=reply.received_at + SKEW_NS,
            )  # fmt: skip
        except BadPayload as error:
            exchange.reject(reply, error.outcome, str(error))
            raise
        if not board.seen:
            exchange.reject(reply, Outcome.EMPTY, "not a single contract")
        elif board.dropped[OTHER] == board.seen:
            exchange.reject(reply, Outcome.EMPTY, "not a single contract of the series that was asked for")
        elif board.rows.is_empty():
            exchange.reject(reply, Outcome.BAD_PAYLOAD, "no row could be used")
        return board, reply

    def _futures(
        self, asked: Iterable[Series], request: ChainRequest, exchange: VendorSession, visit: _Visit
    ) -> dict[str, tuple[float, int]]:
        """Prices of the underlying futures; a chain is not spoilt by their absence."""
        symbols = list(dict.fromkeys(underlying_future(series, 2) for series in asked))
        params = {"symbols": ",".join(symbols), **FUTURES}
        try:
            reply = self._quotes(params, "underlying", _page_path(symbols[0]), exchange, visit)
        except SourceError:
            return {}  # the fetch says why
        return _futures_of(reply, symbols, request.trade_date, exchange)

    def _pages(
        self,
        boards: Mapping[Series, tuple[BarchartChain, Reply]],
        request: ChainRequest,
        exchange: VendorSession,
        visit: _Visit,
    ) -> dict[str, bool]:
        """Read each series' page once per trade date; what it says of the board becomes controls.

        The first page that fails ends the reading: pages are a control, not a source.
        """
        from nq_pipeline.sources.barchart.page import parse_page

        held: dict[str, bool] = {}
        for series, (board, chain) in boards.items():
            if board.rows.is_empty():
                continue
            code = str(self._code(series, request))
            try:
                reply = exchange.get(
                    _page_path(code, series),
                    operation="page",
                    headers=visit.page_headers(),
                    keep=Keep.TRADE_DATE,
                )
                _accept(reply, exchange)
            except SourceError:
                break  # the fetch says why
            page = parse_page(reply.body)
            if page.code is None or _one_digit(page.code) != _one_digit(code):
                exchange.reject(reply, Outcome.BAD_PAYLOAD, f"not the options page of {code}")
                break
            # Open interest is restated within a session: only what was asked together compares.
            together = reply.snapshot_ts == chain.snapshot_ts
            for control, holds in page.controls(series, board.rows, open_interest=together).items():
                held[control] = held.get(control, True) and holds
        return held

    def _quotes(
        self, params: Mapping[str, Any], operation: str, referer: str, exchange: VendorSession, visit: _Visit
    ) -> Reply:
        """One question to the API; a refused session is renewed once per run."""
        headers = {**BROWSER, "Referer": self.base_url + referer}
        while True:
            sent = {**headers, **visit.headers(referer)}
            reply = exchange.get(QUOTES, operation=operation, params=params, headers=sent)
            if reply.status not in (401, 419) or not visit.renew(referer):
                _accept(reply, exchange)
                return reply

    def _answer(
        self,
        request: ChainRequest,
        boards: Mapping[Series, tuple[BarchartChain, Reply]],
        failures: Mapping[str, SeriesAnswer],
        futures: Mapping[str, tuple[float, int]],
        pages: Mapping[str, bool],
    ) -> ChainAnswer:
        # Until the site's delay has passed, its quotes speak of the session before.
        session = sessions.current_session(request.moment - self._delay)
        newest = [board.newest for board, _ in boards.values() if board.newest]
        newest += [sessions.trade_date(from_ns(ns)) for _, ns in futures.values()]
        alive = bool(newest) and max(newest) >= session.trade_date
        outcomes, controls, dropped = dict(failures), dict(pages), Counter[str]()
        frames = [SOURCE_CHAIN.empty()]
        for series, (board, reply) in boards.items():
            outcomes[series.key] = _judged(board, session, alive=alive)
            dropped.update(board.dropped)
            for control, held in board.controls.items():
                controls[control] = controls.get(control, True) and held
            if board.rows.height:
                frames.append(self.frame(series, board.rows, reply, request, futures))
        ordered = {series.key: outcomes[series.key] for series in request.series}
        outcome = overall([one.outcome for one in ordered.values()])
        return ChainAnswer(
            source=self.name,
            outcome=outcome,
            reason="" if outcome is Outcome.OK else _reason(ordered),
            frame=pl.concat(frames),
            series=ordered,
            dropped=dropped,
            controls=controls,
            cached=bool(boards) and all(reply.cached for _, reply in boards.values()),
        )

    def frame(
        self,
        series: Series,
        rows: pl.DataFrame,
        reply: Reply,
        request: ChainRequest,
        futures: Mapping[str, tuple[float, int]],
    ) -> pl.DataFrame:
        """The rows of one board, with what is the same for all of them: rows of `SOURCE_CHAIN`."""
        family = series.root_info.family
        published = newest_published(from_ns(reply.snapshot_ts), series.root_info.product)
        price, _ = futures.get(underlying_future(series, 2), (None, None))
        return chain_frame(
            rows.with_columns(
                source=pl.lit(self.name),
                environment=pl.lit(request.environment),
                snapshot_ts=_instant(reply.snapshot_ts),
                as_of=_instant(reply.snapshot_ts) - self._delay,
                trade_date=pl.lit(request.trade_date),
                underlying_class=pl.lit("future"),
                underlying=pl.lit(underlying_future(series)),
                underlying_price=pl.lit(price, pl.Float64),
                root=pl.lit(series.root),
                series=pl.lit(series.key),
                expiration=pl.lit(series.expiration).dt.convert_time_zone("UTC"),
                expiration_date=pl.lit(series.expiration_date),
                settlement_style=pl.lit(family.settlement_style),
                exercise_style=pl.lit(family.exercise_style),
                multiplier=pl.lit(series.root_info.product.multiplier),
                # A row's time may be that of a quote; its settlement is of no day that has none yet.
                settlement_date=pl.col("settlement_date").clip(upper_bound=pl.lit(published)),
                run_id=pl.lit(request.run_id),
                request_id=pl.lit(reply.request_id),
                raw_sha256=pl.lit(reply.sha256),
            )
        )


class _Visit:
    """How requests of one run are authorised, by the strategy of `NQ_BARCHART_SESSION`."""

    def __init__(self, settings: Settings, exchange: VendorSession) -> None:
        self._strategy = settings.barchart_session
        self._exchange = exchange
        cookies = settings.barchart_cookies
        self._cookies = cookies.get_secret_value() if cookies and self._strategy == "browser" else ""
        self._visited = self._renewed = False
        if self._strategy == "browser" and not (self._cookies.isascii() and self._cookies.isprintable()):
            raise NotConfigured("NQ_BARCHART_COOKIES is no Cookie header: it must be one line of plain text")
        if self._strategy == "browser" and not self._cookies:
            raise NotConfigured(
                "NQ_BARCHART_SESSION=browser needs the Cookie header of your browser in NQ_BARCHART_COOKIES"
            )

    def headers(self, referer: str) -> dict[str, str]:
        """What goes with an API request beyond what every browser sends."""
        if self._strategy == "api":
            return {}
        if self._strategy == "browser":
            given = dict(pair.strip().partition("=")[::2] for pair in self._cookies.split(";"))
            return {"Cookie": self._cookies, "X-XSRF-TOKEN": unquote(given.get("XSRF-TOKEN", ""))}
        if not self._visited:
            self._go(referer)
        # The site turns the token over with every answer.
        token = self._exchange.cookie("XSRF-TOKEN")
        return {"X-XSRF-TOKEN": unquote(token)} if token else {}

    def page_headers(self) -> dict[str, str]:
        """What a browser sends when it opens a page."""
        page = {**BROWSER, "Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        return page | ({"Cookie": self._cookies} if self._cookies else {})

    def renew(self, referer: str) -> bool:
        """Start a new session, at most once per run; False when there is none to start."""
        if self._strategy != "cookies" or self._renewed:
            return False
        self._renewed = True
        return self._go(referer)

    def _go(self, referer: str) -> bool:
        """Open a page for its cookies. A page that refuses decides nothing: the API's answer does."""
        self._visited = True
        try:
            reply = self._exchange.get(
                referer, operation="session", headers=self.page_headers(), keep=Keep.NEVER, archive=False
            )
            _accept(reply, self._exchange)
        except DeadlineReached:
            raise
        except SourceError:
            return False
        return True


def series_of_code(code: str, trade_date: date, settings: Settings) -> Series:
    """The series of one of Barchart's codes, `MM1N5` or `MM1N25`; `SettingsError` when it is none."""
    parsed = parse_barchart_code(code, on=trade_date, codes=added_codes(settings))
    if isinstance(parsed, Unparsed):
        raise SettingsError(f"{code!r} is no Barchart series: {parsed.reason}; write e.g. MM1N25")
    return parsed


def added_codes(settings: Settings) -> dict[str, str]:
    """`NQ_BARCHART_CODES` as Barchart root by Globex root; `SettingsError` when it cannot be read."""
    codes = {}
    for pair in settings.barchart_codes:
        code, equals, root = (part.strip().upper() for part in pair.partition("="))
        if not (code and equals and root in ROOTS):
            raise SettingsError(
                f"NQ_BARCHART_CODES: {pair!r} is not CODE=ROOT with a known root, e.g. MC0=Q5A."
            )
        codes[root] = code
    return codes


def _page_path(code: str, series: Series | None = None) -> str:
    """The address of a series' page; the standard board's is that of the future itself."""
    if series is None or series.root_info.family.is_standard:
        return f"/futures/quotes/{code}/options"
    return f"/futures/quotes/{underlying_future(series, 2)}/options/{code}"


def _one_digit(code: str) -> str:
    """The code as rows carry it, with one digit of the year."""
    code = code.strip().upper()
    return code[:-2] + code[-1] if code[-2:].isdigit() else code


def _instant(ns: int) -> pl.Expr:
    return pl.lit(ns).cast(INSTANT)


# ── what an answer means ────────────────────────────────────────────────────────────────────────


def _accept(reply: Reply, exchange: VendorSession) -> None:
    """Raise what a status or a challenge means; the fetch is marked and nothing of it is kept."""
    refusal = _refusal(reply)
    if refusal is not None:
        exchange.reject(reply, refusal.outcome, str(refusal))
        raise refusal


def _refusal(reply: Reply) -> SourceError | None:
    status, what = reply.status, reply.operation
    if status == 202 or reply.headers.get("x-amzn-waf-action") == "challenge":
        return Blocked(f"{what}: the site's bot protection answered with a challenge (HTTP {status})")
    if status == 405:
        return Blocked(f"{what}: the site's bot protection wants a captcha solved (HTTP 405)")
    if status == 403:
        return Blocked(f"{what}: the site refuses this client or address (HTTP 403)")
    if status == 419:
        return Blocked(f"{what}: the session's token is missing or has expired (HTTP 419)")
    if status == 401:
        return NotEntitled(f"{what}: the site wants a session or a login (HTTP 401)")
    if status == 429:
        return RateLimited(f"{what}: too many requests (HTTP 429); NQ_BARCHART_SPACING_S spaces them wider")
    if status is not None and 300 <= status < 400:
        return BadPayload(f"{what}: redirected elsewhere (HTTP {status}), which is not followed")
    if status is not None and status != 200:
        return Unavailable(f"{what}: HTTP {status}")
    return None


def _mend(error: SourceError) -> str:
    if isinstance(error, Blocked | NotEntitled):
        return (
            "set NQ_BARCHART_SESSION=cookies, or browser with the cookies of your own browser; "
            "or take barchart out of NQ_SOURCES"
        )
    return "wait a while and try again" if isinstance(error, RateLimited) else "is NQ_BARCHART_URL right?"


def _failure(error: SourceError) -> SeriesAnswer:
    """A series without rows: what a deadline leaves of it is not `partial` but nothing."""
    outcome = Outcome.UNAVAILABLE if isinstance(error, DeadlineReached) else error.outcome
    return SeriesAnswer(outcome, str(error))


def _judged(board: BarchartChain, session: sessions.Session, *, alive: bool) -> SeriesAnswer:
    """The outcome of a board that could be read.

    `partial` when the site's own total differs, or when more than a trace of the rows was lost
    or holds an unreadable cell.
    """
    if not board.seen:
        return SeriesAnswer(Outcome.EMPTY, "the site lists no contracts for this series")
    if board.dropped[OTHER] == board.seen:
        said = f"the site sent {board.seen} contracts of other series and none of this one"
        return SeriesAnswer(Outcome.EMPTY, said)
    if board.rows.is_empty():
        return SeriesAnswer(Outcome.BAD_PAYLOAD, f"none of {board.seen} rows could be used: {_counts(board)}")
    before = sessions.current_session(session.open - timedelta(seconds=1)).trade_date
    newest = board.newest or before
    quiet = alive and board.settled and newest >= before
    if newest < session.trade_date and not quiet:
        return SeriesAnswer(
            Outcome.STALE, f"nothing newer than the session of {newest}, asked about {session.trade_date}"
        )
    if not board.controls["rows_equal_total"]:
        return SeriesAnswer(Outcome.PARTIAL, f"{board.seen} rows, which is not the total the site states")
    if board.dropped.total() > TRACE * board.seen:
        return SeriesAnswer(Outcome.PARTIAL, f"of {board.seen} rows: {_counts(board)}")
    return SeriesAnswer(Outcome.OK)


def _counts(board: BarchartChain) -> str:
    return ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in board.dropped.most_common())


def _reason(series: Mapping[str, SeriesAnswer]) -> str:
    """The first reason, and for how many series it holds."""
    poor = {key: one.reason for key, one in series.items() if one.outcome is not Outcome.OK}
    first = next(iter(poor.values()))
    alike = [key for key, reason in poor.items() if reason == first]
    which = alike[0] if len(alike) == 1 else f"{len(alike)} series"
    rest = len(poor) - len(alike)
    return f"{which} of {len(series)}: {first}" + (f" ({rest} more failed otherwise)" if rest else "")


def _futures_of(
    reply: Reply, symbols: Sequence[str], trade_date: date, exchange: VendorSession
) -> dict[str, tuple[float, int]]:
    latest = reply.received_at + SKEW_NS
    try:
        return parse_futures(reply.body, symbols, trade_date=trade_date, latest=latest)
    except BadPayload as error:
        exchange.reject(reply, error.outcome, str(error))
        return {}
