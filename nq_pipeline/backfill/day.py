"""One trade date of one schema: what it is, what it costs, and having it.

A trade date is the span from its session's open to the next session's, as everywhere in the lake.
What still comes after the close (settlements, the definitions of a weekend, bars of UTC days) needs
all of it; trading itself is over an hour after the close, so that a Friday can be had on a Friday.

    price (free) ──► reserve ──► download ──► count ──► rows in the lake ──► a row of `backfills`

Every step may be taken again after a crash: what is proven is not bought again, rows that are in
the lake are not added again, and a day that is `complete` is not asked about at all.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

import polars as pl

from nq_pipeline.backfill.rows import TABLES, TICKS, table_rows, tick_rows
from nq_pipeline.capture.gateway import future_parents, option_parents
from nq_pipeline.capture.rows import RowCounts
from nq_pipeline.clock import NS_PER_S, from_ns, to_ns, unproven
from nq_pipeline.errors import (
    LedgerError,
    NotEntitled,
    OverBudget,
    SettingsError,
    SourceError,
)
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import BACKFILLS
from nq_pipeline.market import sessions
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.client import (
    HistoricalClient,
    NothingThere,
    Price,
    Query,
)
from nq_pipeline.sources.databento.history_store import (
    Download,
    Downloader,
    HistoryStore,
    note_granted,
    note_refused,
    open_client,
    open_shelf,
    refused,
)
from nq_pipeline.sources.databento.purchases import Purchases, charge_for
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.spend.money import ZERO, format_usd, round_up
from nq_pipeline.workspace import Workspace

State = Literal["complete", "empty", "missing", "pending", "over_budget", "not_entitled", "failed"]
SCHEMAS = (*TICKS, *TABLES)
LATE = ("definition", "statistics", "ohlcv-1d")
"""Schemas of which something comes between the close and the next session."""
PAUSE = timedelta(hours=1)
HOURS = {"bbo-1m": 1, "mbo": 1}
"""Hours asked for at once where a whole day is too much: the vendor gives up on large questions."""
WORST = ("available", "pending", "degraded", "missing")
MARKED = ("degraded", "missing")
"""Conditions of a day that is had all the same, and says so."""
MIB = 1 << 20

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DayPrice:
    """What a day would cost.

    Attributes
    ----------
    usd
        0 where the plan includes it, or it is there already.
    size
        Bytes it would bill; None where it costs nothing.
    state
        `complete` where it is had already; `pending` while it is not over or not final; None where it
        would be asked for.
    batch
        Whether it would be had as a batch job.
    at
        When the vendor said so; None where it was not asked.
    """

    trade_date: date
    schema: str
    usd: Decimal
    size: int | None
    state: State | None
    batch: bool = False
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class BackfillDay:
    """What came of a day.

    Attributes
    ----------
    records
        Proven: as many as the vendor counts.
    rows, known
        Rows that were new in the lake, and those it had.
    dropped
        Records that could have no row.
    cost_usd
        Paid by this call, and what it left reserved.
    condition
        The vendor's word on its UTC days, the worst of them; None when not asked.
    already
        Whether nothing was asked, because it was complete.
    """

    trade_date: date
    schema: str
    state: State
    reason: str = ""
    records: int = 0
    rows: int = 0
    known: int = 0
    dropped: int = 0
    size: int = 0
    cost_usd: Decimal = ZERO
    condition: str | None = None
    mode: str | None = None
    request_ids: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
    already: bool = False

    @property
    def said(self) -> str:
        """What came of it, in a few words."""
        if self.already:
            return "there already"
        if self.reason:
            return self.reason
        worse = f"; the vendor calls it {self.condition}" if self.condition in MARKED else ""
        return f"{self.records:,} records, {self.rows:,} new rows, {format_usd(self.cost_usd)}{worse}"


def plan(
    settings: Settings, schema: str, first: date, last: date, *, symbols: Sequence[str] = ()
) -> list[DayPrice]:
    """What each trade date of a span would cost, in order. Free.

    Parameters
    ----------
    symbols
        Parents; by default those of NQ_BACKFILL_SYMBOLS.

    Raises
    ------
    SettingsError
        The schema is none of `SCHEMAS`, or the span has no trade date or days outside the session
        table.
    SourceError
        The vendor does not say what it costs.
    """
    job = _Job.of(settings, schema, symbols)
    if why := unproven(first) or unproven(last):
        raise SettingsError(why)
    days = [session.trade_date for session in sessions.sessions(first, last)]
    if not days:
        raise SettingsError(f"there is no trade date from {first} to {last}")
    done = job.complete(days)
    return [DayPrice(day, schema, ZERO, None, "complete") if day in done else job.priced(day) for day in days]


def refusal(settings: Settings, days: Sequence[DayPrice], *, symbols: Sequence[str] = ()) -> str | None:
    """The sentence by which the ledger would refuse all of these days together; None when they fit."""
    asked = [day for day in days if day.usd]
    if not asked:
        return None
    first = asked[0]
    job = _Job.of(settings, first.schema, symbols)
    query = replace(job.whole(first.trade_date), end=job.whole(asked[-1].trade_date).end)
    price = Price(sum((day.usd for day in asked), ZERO), None, None, datetime.now(UTC))
    charge = charge_for(query, price, purpose="backfill", mode="historical-streaming", run_id="plan")
    return open_ledger(settings).check(charge)


def backfill_day(
    settings: Settings,
    schema: str,
    trade_date: date,
    *,
    max_usd: Decimal | None = None,
    symbols: Sequence[str] = (),
    run_id: str | None = None,
    tell: Tell = lambda line: None,
) -> BackfillDay:
    """Have one trade date of one schema: bought, counted, in the lake, and recorded in `backfills`.

    What the vendor or the ledger does is the state of the day and no exception. Publishing the
    catalog is left to the caller.

    Parameters
    ----------
    max_usd
        What it may cost, beside the budgets of the ledger.
    symbols
        Parents; by default those of NQ_BACKFILL_SYMBOLS.
    tell
        Is told what goes on, in words.

    Raises
    ------
    SettingsError
        The schema is none of `SCHEMAS`.
    LakeError
        The lake cannot be written; what was bought is kept and not bought again.
    """
    job = _Job.of(settings, schema, symbols)
    if not sessions.is_trade_date(trade_date):
        return BackfillDay(trade_date, schema, "empty", unproven(trade_date) or "it is no trade date")
    if trade_date in job.complete([trade_date]):
        return BackfillDay(trade_date, schema, "complete", already=True)
    run_id = run_id or uuid.uuid4().hex
    day = job.had(trade_date, max_usd, run_id, tell)
    job.record(day, run_id)
    return day


@dataclass
class _Job:
    """The parents of one schema, and where they are asked and kept."""

    settings: Settings
    schema: str
    symbols: tuple[str, ...]
    client: HistoricalClient
    shelf: HistoryStore
    lake: Lake

    @classmethod
    def of(cls, settings: Settings, schema: str, symbols: Sequence[str]) -> _Job:
        if schema not in SCHEMAS:
            raise SettingsError(f"{schema!r} cannot be backfilled; there are {', '.join(SCHEMAS)}")
        every = (*option_parents(settings.products), *future_parents(settings.products))
        chosen = sorted(symbols or settings.backfill_symbols or every)
        lake = Workspace.of(settings).lake
        return cls(settings, schema, tuple(chosen), open_client(settings), open_shelf(settings), lake)

    # ── what a day is ───────────────────────────────────────────────────────────────────────────

    def whole(self, trade_date: date) -> Query:
        """The whole span of a trade date."""
        session = sessions.session(trade_date)
        following = sessions.next_open(session.close)
        end = following if self.schema in LATE else min(following, session.close + PAUSE)
        dataset = self.settings.databento_dataset
        return Query(dataset, self.schema, self.symbols, to_ns(session.open), to_ns(end))

    def queries(self, trade_date: date, *, batch: bool) -> list[Query]:
        """The questions a trade date is had by."""
        whole = self.whole(trade_date)
        step = HOURS.get(self.schema)
        if batch or step is None:
            return [whole]
        length = step * 3600 * NS_PER_S
        starts = range(whole.start, whole.end, length)
        return [replace(whole, start=start, end=min(start + length, whole.end)) for start in starts]

    def over(self, trade_date: date) -> bool:
        """Whether the vendor has all of the day."""
        return self.available_end >= self.whole(trade_date).end

    @cached_property
    def available_end(self) -> int:
        """Until when the vendor has data, nanoseconds UTC."""
        return self.client.available_end(self._dataset, (self.schema,))

    # ── what is known of it ─────────────────────────────────────────────────────────────────────

    def complete(self, days: Sequence[date]) -> set[date]:
        """The days that are complete already, of these symbols at least."""
        rows = (
            self.lake.scan(BACKFILLS, days)
            .filter(schema=self.schema, dataset=self.settings.databento_dataset, state="complete")
            .select("trade_date", "symbols")
            .collect()
        )
        wanted = set(self.symbols)
        return {day for day, had in rows.iter_rows() if wanted <= set(had.split(","))}

    def condition(self, trade_date: date) -> str | None:
        """The worst condition of the UTC days it spans."""
        whole = self.whole(trade_date)
        first, last = from_ns(whole.start).date(), from_ns(whole.end - 1).date()
        told = self.client.conditions(self.settings.databento_dataset, first, last)
        known = [told[day] for day in told if first <= day <= last and told[day] in WORST]
        return max(known, key=WORST.index, default=None)

    def priced(self, trade_date: date) -> DayPrice:
        if not self.over(trade_date):
            return DayPrice(trade_date, self.schema, ZERO, None, "pending")
        whole = self.whole(trade_date)
        if self.shelf.paid(whole):
            return DayPrice(trade_date, self.schema, ZERO, None, None, bool(self.shelf.job(whole)))
        prices = [self._price(query) for query in self.queries(trade_date, batch=False)]
        usd = sum((round_up(price.usd) for price in prices), ZERO)  # as it is reserved
        size = sum(price.size or 0 for price in prices)
        at = min(price.at for price in prices)
        return DayPrice(trade_date, self.schema, usd, size or None, None, self._by_batch(size), at)

    def _price(self, query: Query) -> Price:
        if self.shelf.find(query) is None:
            try:
                return self.client.price(query)
            except NothingThere:
                pass
        return Price(ZERO, None, None, datetime.now(UTC))

    def _by_batch(self, size: int) -> bool:
        return 0 < self.settings.backfill_batch_mb * MIB <= size

    # ── having it ───────────────────────────────────────────────────────────────────────────────

    def had(self, trade_date: date, max_usd: Decimal | None, run_id: str, tell: Tell) -> BackfillDay:
        day = BackfillDay(trade_date, self.schema, "failed")
        purchases: Purchases | None = None
        try:
            if not self.over(trade_date):
                until = f"{from_ns(self.available_end):%Y-%m-%d %H:%M} UTC"
                return replace(day, state="pending", reason=f"not over: the vendor's data reach to {until}")
            condition = self.condition(trade_date)
            day = replace(day, condition=condition)
            if condition == "pending":
                return replace(day, state="pending", reason="the vendor is still at work on its data")
            if (refusal := refused(self.settings, self.schema, trade_date)) is not None:
                said = f"{refusal.text} (not asked again before {refusal.ask_again})"
                return replace(day, state="not_entitled", reason=said)
            priced = self.priced(trade_date)
            ledger, attempts = open_ledger(self.settings), self.settings.http_attempts
            purchases = Purchases(self.client, ledger, "backfill", run_id, attempts, max_usd)
            if max_usd is not None and priced.usd > max_usd:
                raise OverBudget(
                    f"it costs {format_usd(priced.usd)}, and {format_usd(max_usd)} is left of what this "
                    "run may spend; raise --max-usd (max_usd in Dagster's launchpad)"
                )
            spans = Downloader(purchases, self.shelf, self.settings.backfill_wait_s, tell)
            whole = self.whole(trade_date)
            # What was begun as a whole is not bought again in hours.
            batch = priced.batch or bool(self.shelf.job(whole)) or self.shelf.find(whole) is not None
            parts = [spans.had(query, batch=batch) for query in self.queries(trade_date, batch=batch)]
            day = self._in_the_lake(day, parts, run_id)
            if purchases.cost_usd and refused(self.settings, self.schema) is None:
                note_granted(self.settings, self.schema)
        except (SourceError, LedgerError) as error:
            if isinstance(error, NotEntitled):
                note_refused(self.settings, self.schema, trade_date, str(error))
            day = replace(day, state=_state(error), reason=str(error))
        return replace(day, cost_usd=purchases.cost_usd if purchases else ZERO)

    def _in_the_lake(self, day: BackfillDay, parts: Sequence[Download], run_id: str) -> BackfillDay:
        """Append the rows; the state follows from what was proven."""
        environment, counts = self.settings.environment, RowCounts()
        rows = known = 0
        files = [file for part in parts for file in part.files]
        if self.schema in TICKS:
            made = tick_rows(files, environment=environment, run_id=run_id, counts=counts)
        else:
            frames = (
                table_rows(file, self.schema, day.trade_date, environment=environment, run_id=run_id)
                for file in files
            )
            made = ((TABLES[self.schema], frame) for frame in frames if frame is not None)
        for table, frame in made:
            added = self.lake.append(table, frame, run_id=run_id)
            rows, known = rows + added.rows, known + added.known
        records = sum(part.records for part in parts)
        state: State = "complete"
        if not records:
            state = "missing" if day.condition == "missing" else "empty"
        return replace(
            day,
            state=state,
            reason="" if records else "the vendor has no records of it",
            records=records,
            rows=rows,
            known=known,
            dropped=counts.left.total(),
            size=sum(part.size for part in parts),
            mode=next((part.mode for part in parts if part.files), None),
            request_ids=tuple(one for part in parts for one in part.request_ids),
            sha256=tuple(one for part in parts for one in part.sha256),
        )

    @property
    def _dataset(self) -> str:
        return self.settings.databento_dataset

    def record(self, day: BackfillDay, run_id: str) -> None:
        """Append the day to `backfills`."""
        whole = self.whole(day.trade_date)
        row: dict[str, Any] = {
            "run_id": run_id,
            "changed_at": datetime.now(UTC),
            "trade_date": day.trade_date,
            "environment": self.settings.environment,
            "dataset": whole.dataset,
            "schema": self.schema,
            "symbols": ",".join(self.symbols),
            "first_ts": from_ns(whole.start),
            "last_ts": from_ns(whole.end),
            "state": day.state,
            "reason": day.reason or None,
            "condition": day.condition,
            "records": day.records,
            "rows": day.rows,
            "known": day.known,
            "dropped": day.dropped,
            "bytes": day.size,
            "cost_usd": day.cost_usd,
            "mode": day.mode,
            "request_ids": ",".join(day.request_ids) or None,
            "sha256": ",".join(day.sha256) or None,
        }
        self.lake.append(BACKFILLS, pl.DataFrame([row], infer_schema_length=None), run_id=run_id)


def _state(error: SourceError | LedgerError) -> State:
    if isinstance(error, OverBudget):
        return "over_budget"
    return "not_entitled" if isinstance(error, NotEntitled) else "failed"
