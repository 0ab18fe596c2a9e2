"""Tradovate: contracts from its library, quotes from its websocket. Experimental.

The login, the library and the websocket are documented by the vendor; no answer about an option
was ever recorded. So every assumption is a setting (`NQ_TRADOVATE_*`) or stated where it is made
(`tradovate_library`, `tradovate_feed`), and what does not fit it is counted, never guessed.

One chain is more contracts than one may subscribe to: those nearest to the money come first, the
rest are rows without quotes, and the outcome says `partial`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import polars as pl

from nq_pipeline.clock import from_ns
from nq_pipeline.errors import (
    Blocked,
    DeadlineReached,
    NotConfigured,
    NotEntitled,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.lake.tables import INSTANT
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.listing import front_future, underlying_future
from nq_pipeline.market.products import chosen
from nq_pipeline.market.sessions import in_chicago
from nq_pipeline.market.symbology import contract_keys, globex_code, globex_symbols
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import (
    ChainAnswer,
    ChainRequest,
    Probe,
    SeriesAnswer,
    chain_frame,
    failed,
    overall,
)
from nq_pipeline.sources.plausibility import SKEW_NS
from nq_pipeline.sources.tradovate.feed import QuoteBook, converse
from nq_pipeline.sources.tradovate.library import Library, ListedSeries
from nq_pipeline.transport.lifetime import Keep
from nq_pipeline.transport.vendor_session import Policy, Reply, VendorSession

HOPELESS = (NotConfigured, NotEntitled, Blocked, RateLimited, DeadlineReached)
"""After these the next series would fare no better."""
TRACE = 0.01
"""A larger share of unusable rows makes a series partial."""


class Tradovate:
    """Tradovate as a source of NQ option chains. Experimental."""

    name = "tradovate"
    underlying_classes = frozenset({"future"})
    metered = False

    def __init__(self, settings: Settings) -> None:
        self.base_url = settings.tradovate_url
        self.policy = Policy(
            timeout_s=settings.http_timeout_s,
            attempts=settings.http_attempts,
            retry_after_cap_s=settings.retry_after_cap_s,
        )
        self._settings = settings

    def ask(self, request: ChainRequest, exchange: VendorSession) -> ChainAnswer:
        """Find the contracts of every series, then collect quotes for all of them at once.

        Outcomes of a series: `empty` when the library does not list it; `stale` when its newest
        quote is of an earlier session; `partial` when contracts are left without a subscription
        or the series without a quote, or when more than a trace of its contracts was unreadable.
        When market data is refused or unreachable there are no rows: a chain without a single
        quote is no answer.
        """
        library = Library(self._settings, exchange)
        boards, errors = self._boards(library, request, exchange)
        dropped = sum((board.dropped for board in boards), library.dropped)
        reply, book = None, QuoteBook()
        if boards:
            futures = self._futures(library, boards)
            dropped["unknown_future"] += len({underlying_future(b.series) for b in boards}) - len(futures)
            try:
                reply = self._quotes(library, boards, futures, exchange)
                book = QuoteBook.read(reply.body, from_ns(reply.received_at + SKEW_NS))
                if (fault := book.error or book.unreadable) is not None:
                    exchange.reject(reply, fault.outcome, str(fault))
                if book.unreadable is not None:
                    raise book.unreadable
            except DeadlineReached as error:
                book.error = error
            except SourceError as error:
                errors |= dict.fromkeys((board.series.key for board in boards), error)
                boards = []
        if not boards:
            return _no_rows(self.name, request, errors, dropped + book.dropped)
        frame = chain_rows(boards, book, reply, futures, request)
        series = {key: _answer_of(error) for key, error in errors.items()}
        series |= {board.series.key: series_answer(board, frame, book, request) for board in boards}
        answers = {one.key: series[one.key] for one in request.series}
        replies = [*(r for board in boards for r in board.replies), *([reply] if reply else [])]
        return ChainAnswer(
            source=self.name,
            outcome=overall([answer.outcome for answer in answers.values()]),
            reason=next((answer.reason for answer in answers.values() if answer.reason), ""),
            frame=frame,
            series=answers,
            dropped=+(dropped + book.dropped),
            controls=_controls(boards),
            cached=all(one.cached for one in replies),
        )

    def probe(self, exchange: VendorSession) -> Probe:
        """Log in, find the front future and ask for a quote of it."""
        library = Library(self._settings, exchange)
        product, now = chosen(self._settings.products)[0], self._settings.clock.now()
        front = front_future(product, sessions.trade_date(now))
        try:
            contract_id = library.contract_id(front)
            reply = exchange.call(
                "probe",
                {},
                self._conversation(library, [contract_id], lambda book: [], exchange),
                keep=Keep.NEVER,
            )
        except SourceError as error:
            return _failed_probe(error)
        seen = QuoteBook.read(reply.body).price(contract_id) is not None
        return Probe(True, True, seen or None, f"logged in; {'a' if seen else 'no'} quote of {front}")

    def _boards(
        self, library: Library, request: ChainRequest, exchange: VendorSession
    ) -> tuple[list[ListedSeries], dict[str, SourceError]]:
        """The listed contracts by series, and why others have none.

        A part of the time is left for the quotes; what is not looked up until then goes without.
        """
        boards: list[ListedSeries] = []
        errors: dict[str, SourceError] = {}
        reserve = min(self._settings.tradovate_quote_wait_s + 1, exchange.remaining() / 3)
        last: SourceError | None = None
        for series in request.series:
            if boards and exchange.remaining() < reserve:
                last = DeadlineReached("no time was left to look it up; NQ_SOURCE_DEADLINE_S raises it")
            try:
                if isinstance(last, HOPELESS):
                    raise last
                boards.append(library.board(series))
            except SourceError as error:
                errors[series.key] = last = error
        return boards, errors

    def _futures(self, library: Library, boards: Sequence[ListedSeries]) -> dict[str, int]:
        """Contract ids of the underlying futures by name; one that is not found has no price here."""
        found: dict[str, int] = {}
        for name in dict.fromkeys(underlying_future(board.series) for board in boards):
            try:
                found[name] = library.contract_id(name)
            except SourceError:
                continue  # counted by the caller as `unknown_future`; its series do without
        return found

    def _quotes(
        self,
        library: Library,
        boards: Sequence[ListedSeries],
        futures: Mapping[str, int],
        exchange: VendorSession,
    ) -> Reply:
        """The transcript of one conversation about all series, or the kept one."""
        limit = max(0, self._settings.tradovate_max_quotes - len(futures))
        contracts = pl.concat(board.contracts for board in boards)

        def choose(book: QuoteBook) -> list[int]:
            prices = {b.series.key: book.price(futures.get(underlying_future(b.series))) for b in boards}
            return nearest(contracts, prices, limit)

        question = {
            "address": self._settings.tradovate_md_url,
            "contracts": hashlib.sha256(contracts["contract_id"].to_numpy().tobytes()).hexdigest(),
            "futures": ",".join(futures),
            "limit": limit,
        }
        return exchange.call(
            "quotes", question, self._conversation(library, list(futures.values()), choose, exchange)
        )

    def _conversation(
        self,
        library: Library,
        futures: Sequence[int],
        choose: Callable[[QuoteBook], Sequence[int]],
        exchange: VendorSession,
    ) -> Callable[[], bytes]:
        settings = self._settings

        def once() -> bytes:
            return converse(
                settings.tradovate_md_url,
                library.token().market_data,
                futures,
                choose,
                wait_s=settings.tradovate_quote_wait_s,
                heartbeat_s=settings.tradovate_heartbeat_s,
                timeout_s=settings.http_timeout_s,
                remaining=exchange.remaining,
            )

        def perform() -> bytes:
            try:
                return once()
            except NotEntitled:
                if not library.forget():
                    raise
                return once()

        return perform


def nearest(contracts: pl.DataFrame, prices: Mapping[str, float | None], limit: int) -> list[int]:
    """Contract ids to subscribe to: of every series in turn the one next nearest to the money.

    Parameters
    ----------
    contracts
        contract_id, series, option_type, strike.
    prices
        Price of the underlying by series; where it is not known, the middle strike stands in.
    """
    price = pl.col("series").replace_strict(dict(prices), return_dtype=pl.Float64)
    middle = pl.col("strike").median().over("series")
    ranked = contracts.with_columns(
        distance=(pl.col("strike") - pl.coalesce(price, middle)).abs()
    ).with_columns(rank=pl.struct("distance", "option_type").rank("ordinal").over("series"))
    return ranked.sort("rank", maintain_order=True).head(limit)["contract_id"].to_list()


def chain_rows(
    boards: Sequence[ListedSeries],
    book: QuoteBook,
    reply: Reply | None,
    futures: Mapping[str, int],
    request: ChainRequest,
) -> pl.DataFrame:
    """Listed contracts with what the book says of them, as rows of the chain schema.

    `quote_ts` is the time of the newest update of any kind, and `as_of` the newest of all of them.
    When a contract last traded the vendor does not say (`last_ts` is null), nor of which trade date
    a settlement is (`settlement_date` is null). Volume, open, high
    and low are null when the newest update is of an earlier session.
    """
    newest = max(
        r.snapshot_ts for r in [*(r for b in boards for r in b.replies), *([reply] if reply else [])]
    )
    session_open = sessions.current_session(request.moment).open
    series = pl.DataFrame([_series_columns(board.series, book, futures) for board in boards])
    quotes = book.frame()
    rows = pl.concat(board.contracts for board in boards).join(
        series, on="series", how="left", maintain_order="left"
    )
    rows = rows.join(quotes, on="contract_id", how="left", maintain_order="left")
    today = pl.col("quote_ts") >= session_open
    snapshot_ts = pl.lit(newest).cast(INSTANT)
    is_quoted = pl.col("contract_id").is_in(quotes["contract_id"].implode())
    request_id, sha256 = (reply.request_id, reply.sha256) if reply else ("", "")
    return chain_frame(
        rows.select(
            source=pl.lit(Tradovate.name),
            environment=pl.lit(request.environment),
            snapshot_ts=snapshot_ts,
            as_of=pl.coalesce(pl.col("quote_ts").max(), snapshot_ts),
            trade_date=pl.lit(request.trade_date),
            underlying_class=pl.lit("future"),
            underlying="underlying",
            underlying_price="underlying_price",
            root="root",
            series="series",
            raw_symbol=globex_symbols(pl.col("code"), pl.col("option_type"), pl.col("strike")),
            vendor_symbol="name",
            contract_key=contract_keys(pl.col("series"), pl.col("option_type"), pl.col("strike")),
            expiration="expiration",
            expiration_date="expiration_date",
            settlement_style="settlement_style",
            exercise_style="exercise_style",
            strike="strike",
            option_type="option_type",
            multiplier="multiplier",
            bid="bid",
            bid_size="bid_size",
            ask="ask",
            ask_size="ask_size",
            quote_ts="quote_ts",
            last="last",
            is_settlement=pl.col("last").is_null() & pl.col("settlement").is_not_null(),
            settlement="settlement",
            open=pl.when(today).then("open"),
            high=pl.when(today).then("high"),
            low=pl.when(today).then("low"),
            volume=pl.when(today).then("volume"),
            open_interest="open_interest",
            run_id=pl.lit(request.run_id),
            request_id=pl.when(is_quoted).then(pl.lit(request_id)).otherwise("request_id"),
            raw_sha256=pl.when(is_quoted).then(pl.lit(sha256)).otherwise("raw_sha256"),
        )
    )


def series_answer(
    board: ListedSeries, frame: pl.DataFrame, book: QuoteBook, request: ChainRequest
) -> SeriesAnswer:
    """The outcome of one series that has rows; see `Tradovate.ask`."""
    rows = frame.filter(pl.col("series") == board.series.key)
    stamps = rows["quote_ts"] if rows["quote_ts"].count() else frame["quote_ts"]
    newest = stamps.max()
    if isinstance(newest, datetime) and newest < sessions.current_session(request.moment).open:
        reason = f"its newest quote is of {in_chicago(newest)}, before the session asked about"
        return SeriesAnswer(Outcome.STALE, reason)
    if book.error is not None:
        return SeriesAnswer(Outcome.PARTIAL, f"quotes were cut short: {book.error}")
    ids = set(board.contracts["contract_id"])
    asked = ids & set(book.subscribed.values())
    if asked < ids:
        reason = f"quotes of {len(asked)} of {len(ids)} contracts, as NQ_TRADOVATE_MAX_QUOTES allows"
        return SeriesAnswer(Outcome.PARTIAL, reason)
    refused = [e for number, e in book.refused.items() if book.subscribed.get(number) in ids]
    if refused:
        reason = f"{len(refused)} of {len(ids)} subscriptions were refused: {refused[0]}"
        return SeriesAnswer(Outcome.PARTIAL, reason)
    if not rows["quote_ts"].count():
        return SeriesAnswer(Outcome.PARTIAL, "no quote arrived; NQ_TRADOVATE_QUOTE_WAIT_S waits longer")
    unread = board.dropped["malformed_row"] + board.dropped["unknown_symbol"]
    if unread > TRACE * rows.height:
        return SeriesAnswer(Outcome.PARTIAL, f"{unread} contracts of the listing could not be read")
    if book.unusable > TRACE * len(book.quotes):
        return SeriesAnswer(Outcome.PARTIAL, f"{book.unusable} parts of the quotes were unusable")
    return SeriesAnswer(Outcome.OK)


def _series_columns(series: Series, book: QuoteBook, futures: Mapping[str, int]) -> dict[str, object]:
    info, future = series.root_info, underlying_future(series)
    return {
        "series": series.key,
        "root": series.root,
        "code": globex_code(series),
        "expiration": series.expiration.astimezone(UTC),
        "expiration_date": series.expiration_date,
        "settlement_style": info.family.settlement_style,
        "exercise_style": info.family.exercise_style,
        "multiplier": info.product.multiplier,
        "underlying": future,
        "underlying_price": book.price(futures.get(future)),
    }


def _no_rows(
    source: str, request: ChainRequest, errors: Mapping[str, SourceError], dropped: Counter[str]
) -> ChainAnswer:
    answers = {series.key: _answer_of(errors[series.key]) for series in request.series}
    first = failed(source, request, next(iter(errors.values())))
    outcome = overall([answer.outcome for answer in answers.values()])
    return replace(first, outcome=outcome, series=answers, dropped=dropped)


def _answer_of(error: SourceError) -> SeriesAnswer:
    """A deadline is `partial` only where it left rows behind."""
    outcome = Outcome.UNAVAILABLE if error.outcome is Outcome.PARTIAL else error.outcome
    return SeriesAnswer(outcome, str(error))


def _controls(boards: Sequence[ListedSeries]) -> dict[str, bool]:
    names = dict.fromkeys(name for board in boards for name in board.controls)
    return {name: all(board.controls.get(name, True) for board in boards) for name in names}


def _failed_probe(error: SourceError) -> Probe:
    mends = {
        Outcome.NOT_CONFIGURED: "set TRADOVATE_USERNAME, TRADOVATE_PASSWORD, TRADOVATE_CID and TRADOVATE_SEC",
        Outcome.NOT_ENTITLED: "the API add-on and a CME data licence are needed for market data",
        Outcome.BLOCKED: "wait an hour before the next login",
        Outcome.RATE_LIMITED: "wait an hour before the next login",
    }
    mend = mends.get(error.outcome, "check NQ_TRADOVATE_URL, NQ_TRADOVATE_MD_URL and the network")
    if isinstance(error, NotConfigured):
        return Probe(False, None, None, str(error), mend)
    entitled = False if isinstance(error, NotEntitled) else None
    return Probe(True, not isinstance(error, Unavailable), entitled, str(error), mend)
