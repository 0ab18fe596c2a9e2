"""Databento: option chains of CME Globex from the historical API, by the official client.

One snapshot is five requests. The first (`plan`) is free: how far the data reach, and the price of each of
the other four (`query.py`). The budget must cover all of them together, so that nothing is paid for a chain
that cannot be completed, and then each when it is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import orjson
import polars as pl

from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.dbn.columns import INSTANT
from nq_pipeline.dbn.stream import Records, decode
from nq_pipeline.errors import LedgerError, NotEntitled, SourceError, Unavailable
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS, Series
from nq_pipeline.market.sessions import in_chicago
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
from nq_pipeline.sources.databento.client import HistoricalClient, open_client
from nq_pipeline.sources.databento.parse import Parsed, parse_chain
from nq_pipeline.sources.databento.query import (
    DEFINITION,
    QUOTES,
    SCHEMAS,
    STATISTICS,
    TRADES,
    QueryPlan,
    cache_key,
    plan_queries,
)
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.sources.databento.vendor_errors import EndsAfterAvailable, NoRecords
from nq_pipeline.sources.failures import MAX_UNUSABLE_SHARE, STOP_ERRORS, rejecting
from nq_pipeline.sources.rows import request_columns
from nq_pipeline.transport.lifetime import Keep
from nq_pipeline.transport.policy import Policy
from nq_pipeline.transport.vendor_session import Reply, VendorSession

if TYPE_CHECKING:
    from nq_pipeline.sources.databento.purchases import Purchases


class Databento:
    """Options on futures of CME Globex; metered, so every request is priced before it is sent."""

    name = "databento"
    underlying_classes = frozenset({"future"})
    metered = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._vendor = settings.vendor(DatabentoSettings)
        self.base_url = self._vendor.url
        self.policy = Policy.of(settings.http)

    def ask(self, request: ChainRequest, vendor_session: VendorSession) -> ChainAnswer:
        """Fetch the chains of the requested series.

        Without definitions the whole answer fails. When another answer is missing, the series are
        `partial` and name it; so are they when more than a hundredth of an answer's records are unusable.
        A series without a definition is `empty`.
        """
        try:
            client, plan, wanted = self._plan_request(request, vendor_session)
            purchases = self._purchases(client, plan, request, vendor_session)
        except (SourceError, LedgerError) as problem:
            return failed(self.name, request, _as_source_error(problem))
        replies: dict[str, Reply] = {}
        records: dict[str, Records] = {}
        failures: dict[str, SourceError] = {}
        for schema in SCHEMAS:
            try:
                if (refusal := request.refused.get(schema)) is not None:
                    raise NotEntitled(refusal)
                replies[schema], records[schema] = self._fetch(purchases, plan, schema, vendor_session)
            except (SourceError, LedgerError) as problem:
                error = _as_source_error(problem)
                if schema == DEFINITION:
                    return failed(self.name, request, error)
                if isinstance(error, NoRecords):
                    records[schema] = Records.empty(schema)
                    continue
                failures[schema] = error
                if isinstance(error, STOP_ERRORS):
                    break
            if schema == DEFINITION and not len(records[schema].array):
                nothing = NoRecords(f"nothing is defined for {plan.day}")
                # Or it would be cached all day.
                vendor_session.reject(replies[schema], nothing.outcome, str(nothing))
                return failed(self.name, request, nothing)
        if failures and replies.keys() == {DEFINITION}:
            return failed(self.name, request, next(iter(failures.values())))
        return self._answer(request, plan, wanted, replies, records, failures)

    def price(self, request: ChainRequest, vendor_session: VendorSession) -> Decimal:
        """Return the vendor's price of this snapshot, USD; 0 where the plan includes it."""
        return self._plan_request(request, vendor_session)[1].total

    def probe(self, vendor_session: VendorSession) -> Probe:
        """Ask how far the data reach: free, and answered for a valid key. It does not show what the plan
        includes.
        """
        dataset, client = self._vendor.dataset, open_client(self._settings, vendor_session.remaining)
        reply = vendor_session.call(
            "range",
            {"dataset": dataset},
            lambda: orjson.dumps({"end": client.available_end(dataset, (QUOTES,))}),
            keep=Keep.NEVER,
        )
        until = in_chicago(from_ns(reply.json()["end"]))
        return Probe(True, True, True, f"the key is accepted; {dataset} is available until {until}")

    def _plan_request(
        self, request: ChainRequest, vendor_session: VendorSession
    ) -> tuple[HistoricalClient, QueryPlan, tuple[Series, ...]]:
        wanted = tuple(s for s in request.series if s.root in ROOTS and _on_future(s.root))
        if not wanted:
            raise NoRecords("none of the series is an option on a future")
        client = open_client(self._settings, vendor_session.remaining)
        return client, self._plan(client, wanted, request, vendor_session), wanted

    def _plan(
        self,
        client: HistoricalClient,
        wanted: tuple[Series, ...],
        request: ChainRequest,
        vendor_session: VendorSession,
    ) -> QueryPlan:
        """Find out how far the data reach and price every query; both are free."""
        vendor = self._vendor
        roots = sorted({s.root for s in wanted})
        options = tuple(f"{root}.OPT" for root in roots)
        futures = tuple(sorted({f"{ROOTS[root].product.code}.FUT" for root in roots}))

        def request_plan() -> bytes:
            end = client.available_end(vendor.dataset, SCHEMAS)
            while True:
                queries = plan_queries(
                    request.moment, request.snapshot_ts, end, options, futures,
                    dataset=vendor.dataset, window_s=vendor.quote_window_s,
                )  # fmt: skip
                try:
                    return QueryPlan(tuple((query, client.price(query)) for query in queries)).dumps()
                except EndsAfterAvailable as error:
                    if error.available_end >= end:
                        raise
                    end = error.available_end

        now = request.moment >= request.snapshot_ts
        parameters = {
            "dataset": vendor.dataset,
            "symbols": ",".join(options),
            "window_s": vendor.quote_window_s,
            # A repeat a minute later has the same answer as long as both ask about now.
            "moment": "now" if now else request.moment.isoformat(),
        }
        return QueryPlan.loads(vendor_session.call("plan", parameters, request_plan).body)

    def _purchases(
        self, client: HistoricalClient, plan: QueryPlan, request: ChainRequest, vendor_session: VendorSession
    ) -> Purchases | None:
        """Open the purchases of the answers that are not cached; None when all are. Raises `OverBudget`,
        `NoRoom` or `LedgerError`.
        """
        missing = [
            (query, price)
            for query, price in plan.priced
            if query.schema not in request.refused and not vendor_session.is_cached(*cache_key(plan, query))
        ]
        if not missing:
            return None
        # Imported late: the ledger's database library is slow to load.
        from nq_pipeline.sources.databento.purchases import Purchases
        from nq_pipeline.spend.ledger import open_ledger

        ledger = open_ledger(self._settings)
        purchases = Purchases(client, ledger, "chains", request.run_id, attempts=self.policy.attempts)
        purchases.require_budget(missing)
        with vendor_session.archive.reserve_room(sum(price.size or 0 for _, price in missing)):
            return purchases  # each answer reserves its own room when it is requested

    def _fetch(
        self, purchases: Purchases | None, plan: QueryPlan, schema: str, vendor_session: VendorSession
    ) -> tuple[Reply, Records]:
        """Buy the answer of one schema, unless it is cached, and decode it."""
        query, price = plan[schema]

        def buy() -> bytes:
            if purchases is None:
                raise Unavailable("a cached answer expired just before it was read; run this again")
            before, fetch = purchases.cost_usd, vendor_session.current_fetch
            try:
                return purchases.buy_body(query, price, request_id=fetch.request_id)
            except EndsAfterAvailable as error:
                if error.available_end <= query.start:
                    raise
                shorter = replace(query, end=error.available_end)
                return purchases.buy_body(shorter, price, request_id=fetch.request_id)
            finally:
                fetch.cost_usd = purchases.cost_usd - before

        operation, parameters, keep = cache_key(plan, query)
        paid_bytes = price.size if price.usd else None
        reply = vendor_session.call(operation, parameters, buy, keep=keep, paid_bytes=paid_bytes)
        with rejecting(vendor_session, reply):
            return reply, decode(reply.body, schema)

    def _answer(
        self,
        request: ChainRequest,
        plan: QueryPlan,
        wanted: tuple[Series, ...],
        replies: Mapping[str, Reply],
        records: Mapping[str, Records],
        failures: Mapping[str, SourceError],
    ) -> ChainAnswer:
        session = sessions.current_session(request.moment)
        published = plan[STATISTICS][0].end
        parsed = parse_chain(records, wanted, session=session, until=plan.end, published=published)
        market = next(replies[s] for s in (QUOTES, STATISTICS, TRADES, DEFINITION) if s in replies)
        stamps = {
            "snapshot_ts": max(reply.snapshot_ts for reply in replies.values()),
            "as_of": min(to_ns(request.moment), _end_of_quotes(plan, records.get(QUOTES))),
        }
        frame = chain_frame(
            parsed.frame.with_columns(
                **request_columns(self.name, request),
                request_id=pl.lit(market.request_id),
                raw_sha256=pl.lit(market.sha256),
                **{name: pl.lit(value).cast(INSTANT) for name, value in stamps.items()},
            )
        )
        series = self._judge(request, plan, session, parsed, frame, failures)
        outcome = overall([one.outcome for one in series.values()])
        reasons = dict.fromkeys(one.reason for one in series.values() if one.reason)
        return ChainAnswer(
            source=self.name,
            outcome=outcome,
            reason="" if outcome is Outcome.OK else "; ".join(reasons),
            frame=frame,
            series=series,
            dropped=parsed.dropped,
            controls=parsed.controls,
            cached=all(reply.cached for reply in replies.values()),
            refused={s: str(error) for s, error in failures.items() if isinstance(error, NotEntitled)},
        )

    def _judge(
        self,
        request: ChainRequest,
        plan: QueryPlan,
        session: sessions.Session,
        parsed: Parsed,
        frame: pl.DataFrame,
        failures: Mapping[str, SourceError],
    ) -> dict[str, SeriesAnswer]:
        """The outcome of every requested series."""
        newest = dict(
            frame.group_by("series")
            .agg(pl.max_horizontal(pl.col("quote_ts").max(), pl.col("last_ts").max()))
            .iter_rows()
        )
        problems = [f"{schema}: {error}" for schema, error in failures.items()]
        malformed = parsed.dropped["malformed_definition"]
        unreadable = malformed > MAX_UNUSABLE_SHARE * (frame.height + malformed)
        if unreadable:
            problems.append(f"{malformed} definitions could not be used")
        lacking = "; ".join([*problems, *parsed.holes])

        def judge(series: Series) -> SeriesAnswer:
            if series.key not in newest and unreadable:
                return SeriesAnswer(Outcome.BAD_PAYLOAD, f"{malformed} definitions could not be used")
            if series.key not in newest:
                return SeriesAnswer(Outcome.EMPTY, f"not among the definitions of {plan.day}")
            last = newest[series.key]
            if last is not None and last < session.open:
                return SeriesAnswer(Outcome.STALE, f"the newest quote or trade is from {in_chicago(last)}")
            if lacking:
                return SeriesAnswer(Outcome.PARTIAL, lacking)
            if last is None and series.expiration > request.moment:
                window = self._vendor.quote_window_s
                return SeriesAnswer(Outcome.PARTIAL, f"no quote changed in the last {window} s")
            return SeriesAnswer(Outcome.OK)

        return {series.key: judge(series) for series in request.series}


def _end_of_quotes(plan: QueryPlan, quotes: Records | None) -> int:
    """The end of the quotes received, which a query that was shortened after planning has before its own."""
    query, _ = plan[QUOTES]
    if quotes is None or quotes.end is None or not query.start < quotes.end <= query.end:
        return query.end
    return quotes.end


def _as_source_error(error: SourceError | LedgerError) -> SourceError:
    """The error, with an unusable ledger as an unavailable vendor: the other vendors need no ledger."""
    return error if isinstance(error, SourceError) else Unavailable(str(error))


def _on_future(root: str) -> bool:
    return ROOTS[root].product.underlying_class == "future"
