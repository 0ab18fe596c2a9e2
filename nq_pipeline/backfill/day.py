"""Backfill one trade date of one schema.

    price (free) ──► reserve ──► download ──► count ──► rows in the lake ──► a row of `backfills`

Every step can be repeated after a crash: a verified download is not bought again, rows that are in the lake
are not added again, and nothing is requested for a trade date that is `complete`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any

import polars as pl

from nq_pipeline.backfill.plan import price_day
from nq_pipeline.backfill.rows import history_rows
from nq_pipeline.backfill.scope import BackfillScope, State
from nq_pipeline.capture.rows import RowCounts
from nq_pipeline.clock import from_ns, real_now, unsupported_day
from nq_pipeline.dbn.stream import DamagedDbn, TruncatedDbn
from nq_pipeline.errors import BadStream, LedgerError, NotEntitled, OverBudget, SourceError
from nq_pipeline.lake.tables import BACKFILLS
from nq_pipeline.leases.purchase_records import PurchaseRecords
from nq_pipeline.market import sessions
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.downloader import Downloader
from nq_pipeline.sources.databento.entitlement import record_grant, record_refusal, standing_refusal
from nq_pipeline.sources.databento.history_store import Download
from nq_pipeline.sources.databento.purchases import Purchases
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.spend.money import ZERO, format_usd

MARKED = ("degraded", "missing")
"""Day conditions that do not stop a download; the result is marked with them."""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BackfillDay:
    """The result of a trade date."""

    trade_date: date
    schema: str
    state: State
    reason: str = ""
    records: int = 0  # equal to the vendor's count
    rows: int = 0  # added to the lake
    known: int = 0  # rows that the lake already had
    dropped: int = 0  # records that could not become rows
    size: int = 0  # bytes of the records, as they are billed
    cost_usd: Decimal = ZERO  # what this call paid and left reserved
    condition: str | None = None  # the vendor's, of the worst of its UTC days; None when not requested
    mode: str | None = None
    request_ids: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
    already: bool = False  # nothing was requested, because it was complete

    @property
    def summary(self) -> str:
        """The result in a few words."""
        if self.already:
            return "there already"
        if self.reason:
            return self.reason
        marked = f"; the vendor calls it {self.condition}" if self.condition in MARKED else ""
        return f"{self.records:,} records, {self.rows:,} new rows, {format_usd(self.cost_usd)}{marked}"


def backfill_day(
    settings: Settings,
    schema: str,
    trade_date: date,
    *,
    max_usd: Decimal | None = None,
    symbols: Sequence[str] = (),
    run_id: str | None = None,
    report: Report = lambda message: None,
) -> BackfillDay:
    """Buy one trade date of one schema, prove it complete, store its rows, and record it in `backfills`.

    A failure of the vendor or of the ledger is the state of the day, not an exception. Publishing the catalog
    is left to the caller. `max_usd` limits this call, in addition to the budgets of the ledger. `symbols` are
    parents; by default those of NQ_BACKFILL_SYMBOLS. `report` is called with progress messages.

    Raises `SettingsError` for a schema that is none of `SCHEMAS`, `LakeError` when the lake cannot be
    written: downloads stay on disk and are not bought again.
    """
    scope = BackfillScope.of(settings, schema, symbols)
    if not sessions.is_trade_date(trade_date):
        return BackfillDay(
            trade_date, schema, "empty", unsupported_day(trade_date) or "it is not a trade date"
        )
    if trade_date in scope.completed([trade_date]):
        return BackfillDay(trade_date, schema, "complete", already=True)
    run_id = run_id or uuid.uuid4().hex
    day, purchases = BackfillDay(trade_date, schema, "failed"), None
    try:
        day = _obstacle(scope, day)
        if not day.reason:
            ledger, attempts = open_ledger(settings), settings.http.attempts
            purchases = Purchases(scope.client, ledger, "backfill", run_id, attempts, max_usd)
            downloads = _download(scope, trade_date, purchases, report)
            day = _store_rows(scope, day, downloads, run_id)
            if purchases.cost_usd and standing_refusal(settings, schema) is None:
                record_grant(settings, schema)
    except (SourceError, LedgerError) as error:
        if isinstance(error, NotEntitled):
            record_refusal(settings, schema, trade_date, str(error))
        day = replace(day, state=_failed_state(error), reason=str(error))
    except (BadStream, DamagedDbn, TruncatedDbn) as error:  # a purchased file was damaged since
        day = replace(day, reason=str(error))
    day = replace(day, cost_usd=purchases.cost_usd if purchases else ZERO)
    _record(scope, day, run_id)
    return day


def _obstacle(scope: BackfillScope, day: BackfillDay) -> BackfillDay:
    """The day with its condition, and with a state and reason if it cannot be bought now."""
    if not scope.is_over(day.trade_date):
        until = f"{from_ns(scope.available_end):%Y-%m-%d %H:%M} UTC"
        return replace(day, state="pending", reason=f"not over: the vendor's data end at {until}")
    day = replace(day, condition=scope.condition(day.trade_date))
    if day.condition == "pending":
        return replace(day, state="pending", reason="the vendor is still processing its data")
    if (refusal := standing_refusal(scope.settings, scope.schema, day.trade_date)) is not None:
        reason = f"{refusal.text} (not requested again before {refusal.ask_again})"
        return replace(day, state="not_entitled", reason=reason)
    return day


def _download(scope: BackfillScope, trade_date: date, purchases: Purchases, report: Report) -> list[Download]:
    """All spans of a trade date, bought where they are not on disk."""
    price, limit = price_day(scope, trade_date), purchases.max_usd
    if limit is not None and price.usd > limit:
        raise OverBudget(
            f"it costs {format_usd(price.usd)}, and {format_usd(limit)} is left of what this run may spend; "
            "raise --max-usd (max_usd in Dagster's launchpad)"
        )
    records = PurchaseRecords.of(scope.settings)
    wait_s = scope.settings.backfill.wait_s
    downloader = Downloader(purchases, scope.store, records, wait_s, report)
    whole = scope.day_query(trade_date)
    # A day begun as a whole is not bought again in hours.
    if price.batch or scope.store.stored_job(whole) or scope.store.find(whole):
        return [downloader.ensure(whole, batch=True)]
    return [downloader.ensure(query) for query in scope.streamed_queries(trade_date)]


def _store_rows(
    scope: BackfillScope, day: BackfillDay, downloads: Sequence[Download], run_id: str
) -> BackfillDay:
    """Append the rows; the state follows from the count of records."""
    counts, rows, known = RowCounts(), 0, 0
    files = [file for download in downloads for file in download.files]
    for table, frame in history_rows(
        files,
        scope.schema,
        day.trade_date,
        environment=scope.settings.environment,
        run_id=run_id,
        counts=counts,
    ):
        added = scope.lake.append(table, frame, run_id=run_id)
        rows, known = rows + added.rows, known + added.known
    records = sum(download.records for download in downloads)
    state: State = "complete"
    if not records:
        state = "missing" if day.condition == "missing" else "empty"
    return replace(
        day,
        state=state,
        reason="" if records else "the vendor has no records for it",
        records=records,
        rows=rows,
        known=known,
        dropped=counts.left.total(),
        size=sum(download.size for download in downloads),
        mode=next((download.mode for download in downloads if download.files), None),
        request_ids=tuple(one for download in downloads for one in download.request_ids),
        sha256=tuple(one for download in downloads for one in download.sha256),
    )


def _record(scope: BackfillScope, day: BackfillDay, run_id: str) -> None:
    """Append the day to `backfills`."""
    whole = scope.day_query(day.trade_date)
    row: dict[str, Any] = {
        "run_id": run_id,
        "changed_at": real_now(),
        "trade_date": day.trade_date,
        "environment": scope.settings.environment,
        "dataset": whole.dataset,
        "schema": scope.schema,
        "symbols": ",".join(scope.symbols),
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
    scope.lake.append(BACKFILLS, pl.DataFrame([row], infer_schema_length=None), run_id=run_id)


def _failed_state(error: SourceError | LedgerError) -> State:
    if isinstance(error, OverBudget):
        return "over_budget"
    return "not_entitled" if isinstance(error, NotEntitled) else "failed"
