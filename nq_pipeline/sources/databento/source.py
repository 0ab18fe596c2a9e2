"""Databento: option chains of CME Globex from the historical API, by the official client.

One snapshot is five questions, the first of them free:

    plan         how far the data reach, and what each of the others costs
    definition   the contracts of the roots asked about, once per trade date
    bbo-1m       quotes, of a bounded window before the moment asked about
    statistics   settlements, open interest, cleared volume
    trades       last price, volume and range of the session so far

Trades and not OHLCV: by the vendor's price list a minute bar costs as much as three trades, more
than a contract has in most minutes, and bars of an hour or a day are not cut where the session
and the moment are. `NQ.FUT` joins definitions and quotes for the price of the underlying, but
not the trades, where it would be most of the bytes.

Nothing is bought that the spend ledger does not grant: first all of it together, so that no part is
paid for a chain that cannot be completed, then each question when it is asked.

Ids are reused from day to day, so they are only ever read with the symbol mapping of the very
answer they came in; answers are joined on raw symbols. Quotes are keyed and ordered by `ts_recv`
(the end of their minute); their `ts_event` is the last trade. A contract whose book did not change
within the window has no quote here, though one may rest in the market.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

import numpy as np
import orjson
import polars as pl
import polars.selectors as cs

from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.dbn.decode import (
    INSTANT,
    UNDEF_QUANTITY,
    Records,
    decode,
    instants,
    masked,
    prices,
    sizes,
    texts,
)
from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    DeadlineReached,
    LedgerError,
    NotConfigured,
    NotEntitled,
    OverBudget,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS, Series
from nq_pipeline.market.sessions import in_chicago
from nq_pipeline.market.settlements import settled_at
from nq_pipeline.market.symbology import contract_keys, globex_code, series_keys
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
from nq_pipeline.sources.databento.client import (
    EndsTooLate,
    HistoricalClient,
    NothingThere,
    Price,
    Query,
)
from nq_pipeline.sources.plausibility import (
    MOST_CONTRACTS,
    SKEW_NS,
    none_to_come,
    only_asked,
)
from nq_pipeline.transport.lifetime import Keep
from nq_pipeline.transport.vendor_session import Policy, Reply, VendorSession

if TYPE_CHECKING:
    from nq_pipeline.sources.databento.purchases import Purchases

DEFINITION, QUOTES, STATISTICS, TRADES = "definition", "bbo-1m", "statistics", "trades"
SCHEMAS = (DEFINITION, QUOTES, STATISTICS, TRADES)
"""In the order of asking: what a chain needs most comes first."""

STOPPING = (Blocked, NotEntitled, RateLimited, DeadlineReached, NotConfigured, OverBudget)
"""After one of these nothing more is asked."""

MALFORMED_SHARE = 0.01
"""An answer with a larger share of unusable definitions, quotes, statistics or trades is partial."""

SETTLEMENT, CLEARED_VOLUME, OPEN_INTEREST = 3, 6, 9
"""Values of `stat_type`."""
DELETED = 2
"""A value of `update_action`."""
FINAL, INTRADAY = 1, 8
"""Bits of a settlement's `stat_flags`."""
UNDEF_FLAGS = 255
"""`stat_flags` that say nothing, as in Databento's own samples of GLBX."""

DAY_NS = 86_400 * NS_PER_S


class Databento:
    """Options on futures of CME Globex; metered, so every question is priced before it is asked."""

    name = "databento"
    underlying_classes = frozenset({"future"})
    metered = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.base_url = settings.databento_url.rstrip("/")
        self.policy = Policy(
            timeout_s=settings.http_timeout_s,
            attempts=settings.http_attempts,
            retry_after_cap_s=settings.retry_after_cap_s,
        )

    def ask(self, request: ChainRequest, exchange: VendorSession) -> ChainAnswer:
        """Ask for the chains of the requested series.

        Without definitions there is nothing; when one of the other answers is missing, the
        series are `partial` and say which. A series without a definition is `empty`. An answer
        with more than a hundredth of its definitions or other records unusable is `partial` too.
        """
        try:
            client, plan, wanted = self._priced(request, exchange)
            purchases = self._purchases(client, plan, request, exchange)
        except (SourceError, LedgerError) as problem:
            return failed(self.name, request, _as_source_error(problem))
        replies: dict[str, Reply] = {}
        records: dict[str, Records] = {}
        troubles: dict[str, SourceError] = {}
        for schema in SCHEMAS:
            try:
                if (refused := request.refused.get(schema)) is not None:
                    raise NotEntitled(refused)
                replies[schema], records[schema] = self._fetch(purchases, plan, schema, exchange)
            except (SourceError, LedgerError) as problem:
                error = _as_source_error(problem)
                if schema == DEFINITION:
                    return failed(self.name, request, error)
                if isinstance(error, NothingThere):
                    records[schema] = Records.none(schema)
                    continue
                troubles[schema] = error
                if isinstance(error, STOPPING):
                    break
            if schema == DEFINITION and not len(records[schema].array):
                nothing = NothingThere(f"nothing is defined for {plan.day}")
                exchange.reject(replies[schema], nothing.outcome, str(nothing))  # or it would hold all day
                return failed(self.name, request, nothing)
        if troubles and replies.keys() == {DEFINITION}:
            return failed(self.name, request, next(iter(troubles.values())))
        return self._answer(request, plan, wanted, replies, records, troubles)

    def price(self, request: ChainRequest, exchange: VendorSession) -> Decimal:
        """What the vendor says this snapshot costs, USD: nothing where the plan includes it."""
        return self._priced(request, exchange)[1].total

    def probe(self, exchange: VendorSession) -> Probe:
        """Ask how far the data reach: free, and it takes the key to be told.

        What a plan includes shows only when data are asked for; catalogues do not tell.
        """
        if self._settings.databento_api_key is None:
            return Probe(False, None, None, "no API key", "set DATABENTO_API_KEY")
        dataset, client = self._settings.databento_dataset, self._client(exchange)
        try:
            reply = exchange.call(
                "range",
                {"dataset": dataset},
                lambda: orjson.dumps({"end": client.available_end(dataset, (QUOTES,))}),
                keep=Keep.NEVER,
            )
        except NotConfigured as error:
            return Probe(False, None, None, str(error), "set DATABENTO_API_KEY and NQ_DATABENTO_URL")
        except NotEntitled as error:
            return Probe(True, True, False, str(error), "see the plan of the account")
        until = in_chicago(from_ns(reply.json()["end"]))
        return Probe(True, True, True, f"the key is accepted; {dataset} is available until {until}")

    def _client(self, exchange: VendorSession) -> HistoricalClient:
        key = self._settings.databento_api_key
        if key is None or not key.get_secret_value().strip():
            raise NotConfigured("DATABENTO_API_KEY is not set; copy the key from the vendor's portal")
        return HistoricalClient(key, self.base_url, self.policy, exchange.remaining)

    def _priced(
        self, request: ChainRequest, exchange: VendorSession
    ) -> tuple[HistoricalClient, QueryPlan, tuple[Series, ...]]:
        wanted = tuple(s for s in request.series if s.root in ROOTS and _on_future(s.root))
        if not wanted:
            raise NothingThere("none of the series is an option on a future")
        client = self._client(exchange)
        return client, self._plan(client, wanted, request, exchange), wanted

    def _plan(
        self,
        client: HistoricalClient,
        wanted: tuple[Series, ...],
        request: ChainRequest,
        exchange: VendorSession,
    ) -> QueryPlan:
        """Learn how far the data reach and price every question; both are free."""
        settings = self._settings
        roots = sorted({s.root for s in wanted})
        options = tuple(f"{root}.OPT" for root in roots)
        futures = tuple(sorted({f"{ROOTS[root].product.code}.FUT" for root in roots}))

        def perform() -> bytes:
            end = client.available_end(settings.databento_dataset, SCHEMAS)
            while True:
                queries = plan_queries(
                    request.moment, request.snapshot_ts, end, options, futures,
                    dataset=settings.databento_dataset, window_s=settings.databento_quote_window_s,
                )  # fmt: skip
                try:
                    return QueryPlan(tuple((query, client.price(query)) for query in queries)).dumps()
                except EndsTooLate as error:
                    if error.available_end >= end:
                        raise
                    end = error.available_end

        now = request.moment >= request.snapshot_ts
        question = {
            "dataset": settings.databento_dataset,
            "symbols": ",".join(options),
            "window_s": settings.databento_quote_window_s,
            # A repeat a minute later is the same question as long as both are about now.
            "moment": "now" if now else request.moment.isoformat(),
        }
        return QueryPlan.loads(exchange.call("plan", question, perform).body)

    def _purchases(
        self, client: HistoricalClient, plan: QueryPlan, request: ChainRequest, exchange: VendorSession
    ) -> Purchases | None:
        """Where to buy what is not kept, once all of it together fits the budgets; None when all is kept.

        Raises
        ------
        OverBudget
            It does not fit.
        LedgerError
            The ledger cannot be used, so nothing is bought.
        """
        missing = [
            part
            for part in plan.priced
            if part[0].schema not in request.refused and not exchange.is_cached(*_question(plan, part[0]))
        ]
        if not missing:
            return None
        # Its database library takes a while to load, so not before something is to be bought.
        from nq_pipeline.sources.databento.purchases import Purchases
        from nq_pipeline.spend.ledger import open_ledger

        ledger = open_ledger(self._settings)
        purchases = Purchases(client, ledger, "chains", request.run_id, attempts=self.policy.attempts)
        purchases.grant(missing)
        return purchases

    def _fetch(
        self, purchases: Purchases | None, plan: QueryPlan, schema: str, exchange: VendorSession
    ) -> tuple[Reply, Records]:
        """Ask one metered question, unless its answer is still fresh, and decode it."""
        query, price = plan[schema]

        def perform() -> bytes:
            if purchases is None:
                raise Unavailable("a kept answer ran out just before it was read; ask again")
            before, fetch = purchases.cost_usd, exchange.asking
            try:
                return purchases.body(query, price, request_id=fetch.request_id)
            except EndsTooLate as error:
                if error.available_end <= query.start:
                    raise
                shorter = replace(query, end=error.available_end)
                return purchases.body(shorter, price, request_id=fetch.request_id)
            finally:
                fetch.cost_usd = purchases.cost_usd - before

        operation, question, keep = _question(plan, query)
        reply = exchange.call(operation, question, perform, keep=keep)
        try:
            return reply, decode(reply.body, schema)
        except BadPayload as error:
            exchange.reject(reply, error.outcome, str(error))
            raise

    def _answer(
        self,
        request: ChainRequest,
        plan: QueryPlan,
        wanted: tuple[Series, ...],
        replies: Mapping[str, Reply],
        records: Mapping[str, Records],
        troubles: Mapping[str, SourceError],
    ) -> ChainAnswer:
        session = sessions.current_session(request.moment)
        published = plan[STATISTICS][0].end
        parsed = parse_chain(records, wanted, session=session, until=plan.end, published=published)
        market = next(replies[s] for s in (QUOTES, STATISTICS, TRADES, DEFINITION) if s in replies)
        stamps = {
            "snapshot_ts": max(reply.snapshot_ts for reply in replies.values()),
            "as_of": min(to_ns(request.moment), _end_of_quotes(plan, records.get(QUOTES))),
        }
        provenance = {
            "source": self.name,
            "environment": request.environment,
            "trade_date": request.trade_date,
            "run_id": request.run_id,
            "request_id": market.request_id,
            "raw_sha256": market.sha256,
        }
        frame = chain_frame(
            parsed.frame.with_columns(
                *(pl.lit(value).alias(name) for name, value in provenance.items()),
                *(pl.lit(value).cast(INSTANT).alias(name) for name, value in stamps.items()),
            )
        )
        series = self._judge(request, plan, session, parsed, frame, troubles)
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
            refused={s: str(error) for s, error in troubles.items() if isinstance(error, NotEntitled)},
        )

    def _judge(
        self,
        request: ChainRequest,
        plan: QueryPlan,
        session: sessions.Session,
        parsed: Parsed,
        frame: pl.DataFrame,
        troubles: Mapping[str, SourceError],
    ) -> dict[str, SeriesAnswer]:
        """The outcome of every series asked for."""
        newest = dict(
            frame.group_by("series")
            .agg(pl.max_horizontal(pl.col("quote_ts").max(), pl.col("last_ts").max()))
            .iter_rows()
        )
        faults = [f"{schema}: {error}" for schema, error in troubles.items()]
        malformed = parsed.dropped["malformed_definition"]
        unread = malformed > MALFORMED_SHARE * (frame.height + malformed)
        if unread:
            faults.append(f"{malformed} definitions could not be used")
        lacking = "; ".join([*faults, *parsed.holes])

        def judge(series: Series) -> SeriesAnswer:
            if series.key not in newest and unread:
                said = f"none is left of the definitions, {malformed} of which could not be used"
                return SeriesAnswer(Outcome.BAD_PAYLOAD, said)
            if series.key not in newest:
                return SeriesAnswer(Outcome.EMPTY, f"not among the definitions of {plan.day}")
            last = newest[series.key]
            if last is not None and last < session.open:
                return SeriesAnswer(Outcome.STALE, f"the newest quote or trade is of {in_chicago(last)}")
            if lacking:
                return SeriesAnswer(Outcome.PARTIAL, lacking)
            if last is None and series.expiration > request.moment:
                window = self._settings.databento_quote_window_s
                return SeriesAnswer(Outcome.PARTIAL, f"no quote changed in the last {window} s")
            return SeriesAnswer(Outcome.OK)

        return {series.key: judge(series) for series in request.series}


# ── what to ask, and what it costs ──────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class QueryPlan:
    """The metered questions of one snapshot, each with its price."""

    priced: tuple[tuple[Query, Price], ...]

    def __getitem__(self, schema: str) -> tuple[Query, Price]:
        return next((query, price) for query, price in self.priced if query.schema == schema)

    @property
    def total(self) -> Decimal:
        """USD."""
        return sum((price.usd for _, price in self.priced), Decimal())

    @property
    def end(self) -> int:
        """Until when the quotes are asked for, exclusive, nanoseconds UTC."""
        return self[QUOTES][0].end

    @property
    def day(self) -> date:
        """The UTC day of the definitions."""
        return from_ns(self[DEFINITION][0].start).date()

    def dumps(self) -> bytes:
        rows = [
            [
                [q.dataset, q.schema, list(q.symbols), q.start, q.end],
                [str(p.usd), p.size, None if p.unit_usd is None else str(p.unit_usd), to_ns(p.at)],
            ]
            for q, p in self.priced
        ]
        return orjson.dumps(rows)

    @classmethod
    def loads(cls, body: bytes) -> QueryPlan:
        """The inverse of `dumps`; `BadPayload` for an archived plan that is none."""
        try:
            plan = cls(
                tuple(
                    (
                        Query(dataset, schema, tuple(symbols), start, end),
                        Price(Decimal(usd), size, None if unit is None else Decimal(unit), from_ns(at)),
                    )
                    for (dataset, schema, symbols, start, end), (usd, size, unit, at) in orjson.loads(body)
                )
            )
            if [query.schema for query, _ in plan.priced] != list(SCHEMAS):
                raise ValueError
        except (TypeError, ValueError, InvalidOperation):
            raise BadPayload("the archived plan cannot be read; ask again with `--refresh`") from None
        return plan


def plan_queries(
    moment: datetime,
    asked_at: datetime,
    available_end: int,
    options: tuple[str, ...],
    futures: tuple[str, ...],
    *,
    dataset: str,
    window_s: int,
) -> tuple[Query, ...]:
    """The four questions about a moment, none of them beyond what is available.

    Quotes and trades end with the moment itself (its own minute's row is stamped with its end).
    Statistics reach from when the session before settled to the asking, so that a chain of the
    close has the settlement of that very close. Definitions are those of the UTC day in which the
    quotes end. Raises `BadPayload` when what is available ends outside the calendar.
    """
    end = min(to_ns(moment) + 1, available_end)
    try:
        session = sessions.current_session(from_ns(end - 1))
    except (ValueError, OverflowError):
        raise BadPayload("the data are said to reach until an impossible instant") from None
    end = min(end, to_ns(session.close) + 1)
    before = sessions.current_session(session.open - timedelta(seconds=1))
    products = {ROOTS[symbol.removesuffix(".OPT")].product for symbol in options}
    settled = min((settled_at(before.trade_date, product) for product in products), default=before.close)
    opened = to_ns(session.open)
    day = (end - 1) // DAY_NS * DAY_NS
    return (
        Query(dataset, DEFINITION, (*options, *futures), day, end),
        Query(dataset, QUOTES, (*options, *futures), max(opened, end - window_s * NS_PER_S), end),
        Query(dataset, STATISTICS, options, to_ns(settled), min(to_ns(asked_at) + 1, available_end)),
        Query(dataset, TRADES, options, opened, end),
    )


def _end_of_quotes(plan: QueryPlan, quotes: Records | None) -> int:
    """Until when quotes were got: a question may have been shortened after it was planned."""
    asked, _ = plan[QUOTES]
    if quotes is None or quotes.end is None or not asked.start < quotes.end <= asked.end:
        return asked.end
    return quotes.end


def _question(plan: QueryPlan, query: Query) -> tuple[str, dict[str, str], Keep]:
    """What a metered question is called, what tells it from others, and how long its answer is kept."""
    question = {"dataset": query.dataset, "schema": query.schema, "symbols": ",".join(query.symbols)}
    if query.schema == DEFINITION:
        return DEFINITION, question | {"day": plan.day.isoformat()}, Keep.TRADE_DATE
    return query.schema, question | {"start": str(query.start), "end": str(query.end)}, Keep.MARKET


def _as_source_error(error: SourceError | LedgerError) -> SourceError:
    """A ledger that cannot be used is a vendor that cannot be asked; the other vendors can."""
    return error if isinstance(error, SourceError) else Unavailable(str(error))


def _on_future(root: str) -> bool:
    return ROOTS[root].product.underlying_class == "future"


# ── from records to a chain ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Parsed:
    """A chain without provenance, what was dropped on the way, and the control totals.

    `holes` names the answers that more than a trace of was lost from, in words.
    """

    frame: pl.DataFrame
    dropped: Counter[str]
    controls: Mapping[str, bool]
    holes: tuple[str, ...]


def parse_chain(
    records: Mapping[str, Records],
    wanted: tuple[Series, ...],
    *,
    session: sessions.Session,
    until: int,
    published: int | None = None,
) -> Parsed:
    """Join the answers of one snapshot into rows of the chain schema, provenance aside.

    Parameters
    ----------
    records
        By schema; definitions must be there, the others may be missing.
    session
        The session asked about: volume and range are of it alone.
    until
        End of quotes and trades, nanoseconds UTC: data that end before the session opens say
        nothing about its volume. No instant in them is later.
    published
        End of the statistics; that of the quotes where it is not given.
    """
    dropped: Counter[str] = Counter()
    latest = until + SKEW_NS
    defined = definitions(records[DEFINITION], dropped)
    options = defined.filter(pl.col("instrument_class").is_in(["C", "P"]))
    contracts = _contracts(options, wanted, dropped)
    known = defined["raw_symbol"]
    data = {s: records.get(s) or Records.none(s) for s in (QUOTES, STATISTICS, TRADES)}
    lost = {schema: Counter[str]() for schema in data}
    _count_undefined(data[QUOTES], records[DEFINITION], dropped)
    books = quotes(data[QUOTES], known, lost[QUOTES], latest=latest)
    stats = statistics(
        data[STATISTICS],
        known,
        lost[STATISTICS],
        latest=latest if published is None else published + SKEW_NS,
        trade_date=session.trade_date,
    )
    done = trades(data[TRADES], known, lost[TRADES], since=to_ns(session.open), latest=latest)
    holes = tuple(
        f"{lost[schema].total()} of {len(given.array)} records of {schema} could not be used"
        for schema, given in data.items()
        if lost[schema].total() > MALFORMED_SHARE * len(given.array)
    )
    dropped.update(sum(lost.values(), Counter()))
    cleared = pl.when(pl.col("volume_date") == session.trade_date).then(pl.col("cleared_volume"))
    # An untraded contract's volume is known to be 0 when the session's trades are there.
    told = TRADES in records and until > to_ns(session.open)
    traded = pl.col("traded").fill_null(0) if told else pl.lit(None, pl.Int64)
    underlying = books.select(
        underlying="raw_symbol",
        underlying_price=pl.coalesce((pl.col("bid") + pl.col("ask")) / 2, "quoted_last"),
    )
    last = pl.coalesce("traded_last", "quoted_last")
    frame = (
        contracts.join(books, on="raw_symbol", how="left", maintain_order="left")
        .join(stats, on="raw_symbol", how="left", maintain_order="left")
        .join(done, on="raw_symbol", how="left", maintain_order="left")
        .join(underlying, on="underlying", how="left", maintain_order="left")
        .with_columns(
            last.alias("last"),
            pl.coalesce("traded_last_ts", "quoted_last_ts").alias("last_ts"),
            (last.is_null() & pl.col("settlement").is_not_null()).alias("is_settlement"),
            pl.coalesce(cleared, traded).alias("volume"),
        )
        .drop(cs.matches("^(quoted|traded)_last"), "traded", "cleared_volume", "volume_date")
    )
    return Parsed(frame, dropped, {"ids_resolve": dropped["unknown_id"] == 0}, holes)


def definitions(records: Records, dropped: Counter[str]) -> pl.DataFrame:
    """The instruments defined: options and futures, the last word on each; spreads are left out.

    Columns: instrument_id, raw_symbol, instrument_class (C, P, F), root (the definition's
    `asset`), underlying, strike (null for futures), expiration, multiplier.
    """
    a = records.array
    frame = pl.DataFrame(
        {
            "instrument_id": a["instrument_id"].astype(np.int64),
            "raw_symbol": texts(a["raw_symbol"]),
            "instrument_class": texts(a["instrument_class"]),
            "root": texts(a["asset"]),
            "underlying": texts(a["underlying"]),
            "strike": prices(a["strike_price"]),
            "expiration": instants(a["expiration"]),
            "multiplier": prices(a["unit_of_measure_qty"]),
            "action": texts(a["security_update_action"]),
            "user_defined": a["user_defined_instrument"] == b"Y",
        }
    )
    # Options come with spreads, user-defined ones above all, with a record for each leg.
    kind, symbol = pl.col("instrument_class"), pl.col("raw_symbol")
    spread = kind.is_in(["T", "M", "S"]) | pl.col("user_defined") | symbol.str.starts_with("UD:")
    usable = symbol.is_not_null() & pl.col("root").is_not_null() & pl.col("expiration").is_not_null()
    option = kind.is_in(["C", "P"]) & (pl.col("strike") > 0)
    verdict = (
        pl.when(spread.fill_null(False))
        .then(pl.lit("spread"))
        .when(pl.col("action") == "D")
        .then(pl.lit("deleted_definition"))
        .when(usable & (option | (kind == "F")))
        .then(None)
        .otherwise(pl.lit("malformed_definition"))
    )
    latest = frame.unique(["instrument_id", "raw_symbol"], keep="last", maintain_order=True)
    frame = latest.with_columns(verdict=verdict)
    dropped.update(dict(frame["verdict"].drop_nulls().value_counts().iter_rows()))
    return frame.filter(pl.col("verdict").is_null()).drop("action", "user_defined", "verdict")


def _contracts(options: pl.DataFrame, wanted: tuple[Series, ...], dropped: Counter[str]) -> pl.DataFrame:
    """The contracts of the series asked for, with the names of the lake.

    It is asked by root, so that other expirations of a root asked for are no surprise; only those of
    other roots are counted, and those whose symbol names a series asked for and whose expiration
    another.
    An expiration stamped midnight UTC is a date without a time: no option on a future ends then. In
    Chicago it would be the day before. It is read as its date, with the time by rule, and counted
    (`expiration_without_time`).
    """
    roots = pl.DataFrame(
        {
            "root": list(ROOTS),
            "settlement_style": [root.family.settlement_style for root in ROOTS.values()],
            "exercise_style": [root.family.exercise_style for root in ROOTS.values()],
            "underlying_class": [root.product.underlying_class for root in ROOTS.values()],
            "usual_multiplier": [root.product.multiplier for root in ROOTS.values()],
        }
    )
    ends = pl.col("expiration")
    midnight = ends.dt.time() == time()
    local = ends.dt.convert_time_zone(str(sessions.CHICAGO)).dt.date()
    listed = options.with_columns(
        pl.when(midnight).then(ends.dt.date()).otherwise(local).alias("expiration_date")
    ).with_columns(series_keys(pl.col("root"), pl.col("expiration_date")).alias("series"))
    by_rule = {series.key: series.expiration.astimezone(UTC) for series in wanted}
    of_roots = only_asked(listed, pl.col("root").is_in([series.root for series in wanted]), dropped)
    codes = {globex_code(series): series.key for series in wanted}
    code = pl.col("raw_symbol").str.extract("^([^ ]+) ")
    named = code.replace_strict(codes, default=None, return_dtype=pl.String)
    if contradictory := int(of_roots.select((named != pl.col("series")).sum()).item()):
        dropped["malformed_definition"] += contradictory
    asked = of_roots.filter(pl.col("series").is_in(list(by_rule)))
    if without := int(asked.select(midnight.sum()).item()):
        dropped["expiration_without_time"] += without
    frame = (
        asked.with_columns(
            pl.when(midnight)
            .then(pl.col("series").replace_strict(by_rule, return_dtype=INSTANT))
            .otherwise(ends)
            .alias("expiration")
        )
        .join(roots, on="root", maintain_order="left")
        .rename({"instrument_class": "option_type"})
        .with_columns(
            contract_keys(pl.col("series"), pl.col("option_type"), pl.col("strike")).alias("contract_key"),
            pl.col("raw_symbol").alias("vendor_symbol"),
            pl.coalesce("multiplier", "usual_multiplier").alias("multiplier"),
        )
        .drop("usual_multiplier")
    )
    once = frame.unique("contract_key", keep="last", maintain_order=True)
    if once.height < frame.height:
        dropped["duplicate_contract"] += frame.height - once.height
    return once


def _count_undefined(quoted: Records, defined: Records, dropped: Counter[str]) -> None:
    """Count instruments with quotes but no definition: listed since the definitions were kept.

    User-defined spreads come into being all day and are not counted.
    """
    names = quoted.mappings["raw_symbol"].unique()
    new = ~names.is_in(texts(defined.array["raw_symbol"]).implode()) & ~names.str.starts_with("UD:")
    if new.any():
        dropped["undefined_instrument"] += int(new.sum())


def quotes(records: Records, known: pl.Series, dropped: Counter[str], *, latest: int) -> pl.DataFrame:
    """The last book of each instrument; nothing in it is later than `latest` (nanoseconds UTC).

    Columns: raw_symbol, bid, bid_size, ask, ask_size, quote_ts, quoted_last, quoted_last_ts.
    """
    a = records.array
    bid, ask = prices(a["bid_px_00"]), prices(a["ask_px_00"])
    last, last_ts = prices(a["price"]), instants(a["ts_event"])
    frame = pl.DataFrame(
        {
            "instrument_id": a["instrument_id"],
            "quote_ts": instants(a["ts_recv"]),
            "bid": bid,
            "bid_size": sizes(a["bid_sz_00"]),
            "ask": ask,
            "ask_size": sizes(a["ask_sz_00"]),
            "quoted_last": last,
            "quoted_last_ts": last_ts,
        }
    )
    named = _named(frame, records, "quote_ts", known, dropped, latest)
    traded = pl.col("quoted_last").is_not_null() & pl.col("quoted_last_ts").is_not_null()
    return (
        none_to_come(named, ["quoted_last_ts"], latest, dropped)
        .sort("quote_ts", maintain_order=True)
        .unique("raw_symbol", keep="last", maintain_order=True)
        .with_columns(
            pl.when(pl.col("bid").is_not_null()).then("bid_size").alias("bid_size"),
            pl.when(pl.col("ask").is_not_null()).then("ask_size").alias("ask_size"),
            pl.when(traded).then("quoted_last").alias("quoted_last"),
            pl.when(traded).then("quoted_last_ts").alias("quoted_last_ts"),
        )
    )


def statistics(
    records: Records, known: pl.Series, dropped: Counter[str], *, latest: int, trade_date: date
) -> pl.DataFrame:
    """Settlement, open interest and cleared volume of the newest trade date (`ts_ref`) each speaks of.

    Each is published more than once, preliminary and then final; the last final word counts,
    else the last. `stat_flags` says which only for settlements; their meaning, and that bit 3
    marks an intraday one (left out here), is a third party's reading of real files. A deleted
    statistic is null. None is of a later trade date than `trade_date` or came after `latest`
    (nanoseconds UTC).

    Columns: raw_symbol, settlement, settlement_date (null where `ts_ref` is no trade date),
    open_interest, cleared_volume, volume_date.
    """
    a = records.array
    a = a[np.isin(a["stat_type"], (SETTLEMENT, CLEARED_VOLUME, OPEN_INTEREST))]
    flags = np.where((a["stat_type"] == SETTLEMENT) & (a["stat_flags"] != UNDEF_FLAGS), a["stat_flags"], 0)
    a, flags = a[flags & INTRADAY == 0], flags[flags & INTRADAY == 0]
    kept = a["update_action"] != DELETED
    counted = kept & (a["stat_type"] != SETTLEMENT) & (a["quantity"] != UNDEF_QUANTITY[records.version])
    possible = (a["quantity"] >= 0) & (a["quantity"] <= MOST_CONTRACTS)
    if impossible := int((counted & ~possible).sum()):
        dropped["malformed_cell"] += impossible
    frame = pl.DataFrame(
        {
            "instrument_id": a["instrument_id"],
            "ts_recv": instants(a["ts_recv"]),
            "day": instants(a["ts_ref"]),
            "stat_type": a["stat_type"],
            "final": flags & FINAL != 0,
            "price": masked(prices(a["price"]), kept),
            "quantity": masked(a["quantity"].astype(np.int64), counted & possible),
        }
    )
    end_of_day = to_ns(datetime.combine(trade_date, time(), UTC)) + DAY_NS - 1
    frame = none_to_come(frame, ["day"], end_of_day, dropped).with_columns(pl.col("day").dt.date())
    newest = (
        _named(frame, records, "ts_recv", known, dropped, latest)
        .sort("day", "final", "ts_recv", nulls_last=False, maintain_order=True)
        .unique(["raw_symbol", "stat_type"], keep="last", maintain_order=True)
    )

    def of(stat_type: int, *columns: pl.Expr) -> pl.DataFrame:
        return newest.filter(pl.col("stat_type") == stat_type).select("raw_symbol", *columns)

    trade_dates = [day for day in newest["day"].unique().drop_nulls() if sessions.is_trade_date(day)]
    told = pl.col("price").is_not_null() & pl.col("day").is_in(trade_dates)
    settled = of(
        SETTLEMENT,
        pl.col("price").alias("settlement"),
        pl.when(told).then("day").alias("settlement_date"),
    )
    held = of(OPEN_INTEREST, pl.col("quantity").alias("open_interest"))
    cleared = of(
        CLEARED_VOLUME, pl.col("quantity").alias("cleared_volume"), pl.col("day").alias("volume_date")
    )
    return settled.join(held, on="raw_symbol", how="full", coalesce=True).join(
        cleared, on="raw_symbol", how="full", coalesce=True
    )


def trades(
    records: Records, known: pl.Series, dropped: Counter[str], *, since: int, latest: int
) -> pl.DataFrame:
    """What each instrument traded from one instant to another (nanoseconds UTC).

    Columns: raw_symbol, traded_last, traded_last_ts, open, high, low, traded (contracts).
    """
    a = records.array
    frame = pl.DataFrame(
        {
            "instrument_id": a["instrument_id"],
            "ts_recv": instants(a["ts_recv"]),
            "ts_event": instants(a["ts_event"]),
            "price": prices(a["price"]),
            "size": sizes(a["size"]),
        }
    )
    named = _named(frame, records, "ts_recv", known, dropped, latest)
    # A record of size 0 traded nothing, so its price is none of the session's.
    usable = named.drop_nulls(["ts_event", "price"]).filter(pl.col("size") > 0)
    if usable.height < named.height:
        dropped["malformed_trade"] += named.height - usable.height
    return (
        none_to_come(usable, ["ts_event"], latest, dropped)
        .filter(pl.col("ts_event") >= pl.lit(since).cast(INSTANT))
        .sort("ts_event", maintain_order=True)
        .group_by("raw_symbol", maintain_order=True)
        .agg(
            pl.col("price").last().alias("traded_last"),
            pl.col("ts_event").last().alias("traded_last_ts"),
            pl.col("price").first().alias("open"),
            pl.col("price").max().alias("high"),
            pl.col("price").min().alias("low"),
            pl.col("size").sum().alias("traded"),
        )
    )


def _named(
    frame: pl.DataFrame, records: Records, stamp: str, known: pl.Series, dropped: Counter[str], latest: int
) -> pl.DataFrame:
    """The rows with their raw symbol in place of their id, by the answer's own mapping for the day.

    Rows of instruments that are not in use (spreads, for the most part) fall away uncounted: the
    instruments themselves were counted. An id that the mapping does not know is counted, so is a
    row without a time, or with one later than `latest`.
    """
    if undefined := frame[stamp].null_count():
        dropped["undefined_time"] += undefined
    timed = none_to_come(frame, [stamp], latest, dropped).drop_nulls(stamp)
    timed = timed.with_columns(pl.col(stamp).dt.date().alias("_date"))
    names = (
        timed.select("instrument_id", "_date")
        .unique()
        .sort("_date")
        .join_asof(
            records.mappings,
            left_on="_date",
            right_on="first",
            by="instrument_id",
            check_sortedness=False,
        )
        .filter(pl.col("_date") < pl.col("until"))
        .select("instrument_id", "_date", "raw_symbol")
    )
    named = timed.join(names, on=["instrument_id", "_date"], how="left", maintain_order="left")
    unknown = named["raw_symbol"].null_count()
    if unknown:
        dropped["unknown_id"] += unknown
    return named.filter(pl.col("raw_symbol").is_in(known.implode())).drop("instrument_id", "_date")
