"""Tradovate: contracts from its library, quotes from its websocket. Experimental.

The vendor documents both, but no answer about an option was ever recorded. So every assumption is a setting
(`NQ_TRADOVATE_*`) or stated where it is made (`library.py`, `websocket.py`), and what does not fit it is
counted, never guessed.

A chain has more contracts than a client may subscribe to. Those nearest the money have quotes, the others are
rows without quotes, and the outcome is `partial`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import polars as pl

from nq_pipeline.clock import from_ns
from nq_pipeline.errors import DeadlineReached, NotEntitled, SourceError
from nq_pipeline.market import sessions
from nq_pipeline.market.listing import front_future, underlying_future
from nq_pipeline.market.products import select_products
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainAnswer, ChainRequest, Probe, failed, overall, series_failure
from nq_pipeline.sources.failures import STOP_ERRORS, merge_controls
from nq_pipeline.sources.rows import SKEW_NS
from nq_pipeline.sources.tradovate.library import ContractLibrary, ListedSeries
from nq_pipeline.sources.tradovate.normalize import SOURCE, chain_rows, judge_series
from nq_pipeline.sources.tradovate.spec import TradovateSettings
from nq_pipeline.sources.tradovate.transcript import Transcript
from nq_pipeline.sources.tradovate.websocket import SelectContracts, record_quotes
from nq_pipeline.transport.lifetime import Keep
from nq_pipeline.transport.policy import Policy
from nq_pipeline.transport.vendor_session import Reply, VendorSession


class Tradovate:
    """The source `tradovate`. Experimental."""

    name = SOURCE
    underlying_classes = frozenset({"future"})
    metered = False

    def __init__(self, settings: Settings) -> None:
        self._settings, self._own = settings, settings.vendor(TradovateSettings)
        self.base_url = self._own.url
        self.policy = Policy.of(settings.http)

    def ask(self, request: ChainRequest, session: VendorSession) -> ChainAnswer:
        """Find the contracts of every series, then collect quotes for all of them at once.

        Outcomes of a series: `empty` when the library does not list it; `stale` when its newest
        quote is of an earlier session; `partial` when contracts are left without a subscription
        or the series without a quote, or when more than a hundredth of its contracts was unreadable.
        When market data is refused or unreachable there are no rows: a chain without a single
        quote is not an answer.
        """
        library = ContractLibrary(self._settings, session)
        listings, errors = self._fetch_listings(library, request, session)
        dropped = sum((listing.dropped for listing in listings), library.dropped)
        reply, transcript = None, Transcript()
        if listings:
            futures = _fetch_futures(library, listings)
            dropped["unknown_future"] += len(
                {underlying_future(one.series) for one in listings} - set(futures)
            )
            try:
                reply = self._fetch_quotes(library, listings, futures, session)
                transcript = Transcript.read(reply.body, from_ns(reply.received_at + SKEW_NS))
                fault = transcript.error or transcript.unreadable
                if fault is not None:
                    session.reject(reply, fault.outcome, str(fault))
                if transcript.unreadable is not None:
                    raise transcript.unreadable
            except DeadlineReached as error:
                transcript.error = error
            except SourceError as error:
                errors |= dict.fromkeys((listing.series.key for listing in listings), error)
                listings = []
        answers = {key: series_failure(error) for key, error in errors.items()}
        if not listings:
            answer = failed(self.name, request, next(iter(errors.values())))
            outcome = overall([answers[series.key].outcome for series in request.series])
            return replace(answer, outcome=outcome, series=answers, dropped=dropped + transcript.dropped)
        frame = chain_rows(listings, transcript, reply, futures, request)
        answers |= {one.series.key: judge_series(one, frame, transcript, request) for one in listings}
        answers = {series.key: answers[series.key] for series in request.series}
        replies = [*(r for listing in listings for r in listing.replies), *([reply] if reply else [])]
        return ChainAnswer(
            source=self.name,
            outcome=overall([answer.outcome for answer in answers.values()]),
            reason=next((answer.reason for answer in answers.values() if answer.reason), ""),
            frame=frame,
            series=answers,
            dropped=+(dropped + transcript.dropped),
            controls=merge_controls(listing.controls for listing in listings),
            cached=all(one.cached for one in replies),
        )

    def probe(self, session: VendorSession) -> Probe:
        """Log in, find the front future and request a quote of it."""
        library = ContractLibrary(self._settings, session)
        product, now = select_products(self._settings.products)[0], self._settings.clock.now()
        front = front_future(product, sessions.trade_date(now))
        contract_id = library.fetch_contract_id(front)
        perform = self._conversation(library, [contract_id], lambda _: [], session)
        reply = session.call("probe", {}, perform, keep=Keep.NEVER)
        quoted = Transcript.read(reply.body).price(contract_id) is not None
        return Probe(True, True, quoted or None, f"logged in; {'a' if quoted else 'no'} quote of {front}")

    def _fetch_listings(
        self, library: ContractLibrary, request: ChainRequest, session: VendorSession
    ) -> tuple[list[ListedSeries], dict[str, SourceError]]:
        """The listed contracts of every series, and by key the errors of the series that have none.

        A part of the time is reserved for the quotes; series that are not looked up by then get none.
        """
        listings: list[ListedSeries] = []
        errors: dict[str, SourceError] = {}
        reserved_s = min(self._own.quote_wait_s + 1, session.remaining() / 3)
        last: SourceError | None = None
        for series in request.series:
            if listings and session.remaining() < reserved_s:
                last = DeadlineReached("no time was left to look it up; raise NQ_SOURCE_DEADLINE_S")
            try:
                if isinstance(last, STOP_ERRORS):
                    raise last
                listings.append(library.fetch_series(series))
            except SourceError as error:
                errors[series.key] = last = error
        return listings, errors

    def _fetch_quotes(
        self,
        library: ContractLibrary,
        listings: Sequence[ListedSeries],
        futures: Mapping[str, int],
        session: VendorSession,
    ) -> Reply:
        """The transcript of one conversation about all series, new or cached."""
        limit = max(0, self._own.max_quotes - len(futures))
        contracts = pl.concat(listing.contracts for listing in listings)

        def select(transcript: Transcript) -> list[int]:
            prices = {
                listing.series.key: transcript.price(futures.get(underlying_future(listing.series)))
                for listing in listings
            }
            return select_nearest(contracts, prices, limit)

        question = {
            "address": self._own.md_url,
            "contracts": hashlib.sha256(contracts["contract_id"].to_numpy().tobytes()).hexdigest(),
            "futures": ",".join(futures),
            "limit": limit,
        }
        return session.call(
            "quotes", question, self._conversation(library, list(futures.values()), select, session)
        )

    def _conversation(
        self,
        library: ContractLibrary,
        futures: Sequence[int],
        select: SelectContracts,
        session: VendorSession,
    ) -> Callable[[], bytes]:
        own, timeout_s = self._own, self._settings.http.timeout_s

        def record() -> bytes:
            return record_quotes(
                own.md_url,
                library.login.token().market_data,
                futures,
                select,
                wait_s=own.quote_wait_s,
                heartbeat_s=own.heartbeat_s,
                timeout_s=timeout_s,
                remaining=session.remaining,
            )

        def perform() -> bytes:
            try:
                return record()
            except NotEntitled:
                if not library.login.forget():
                    raise
                return record()

        return perform


def _fetch_futures(library: ContractLibrary, listings: Sequence[ListedSeries]) -> dict[str, int]:
    """Contract ids of the underlying futures by name, without those that are not found."""
    found: dict[str, int] = {}
    for name in dict.fromkeys(underlying_future(listing.series) for listing in listings):
        try:
            found[name] = library.fetch_contract_id(name)
        except SourceError:
            continue  # counted by the caller as `unknown_future`; its series go without
    return found


def select_nearest(contracts: pl.DataFrame, prices: Mapping[str, float | None], limit: int) -> list[int]:
    """Contract ids to subscribe to: from each series in turn, the next nearest to the money.

    `prices` of the underlying are by series; None stands for the middle strike.
    """
    price = pl.col("series").replace_strict(dict(prices), return_dtype=pl.Float64)
    middle = pl.col("strike").median().over("series")
    ranked = contracts.with_columns(
        distance=(pl.col("strike") - pl.coalesce(price, middle)).abs()
    ).with_columns(rank=pl.struct("distance", "option_type").rank("ordinal").over("series"))
    return ranked.sort("rank", maintain_order=True).head(limit)["contract_id"].to_list()
