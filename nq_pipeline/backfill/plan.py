"""What a backfill would cost, before anything is bought. All of it is free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal

from nq_pipeline.backfill.scope import BackfillScope, State
from nq_pipeline.clock import real_now, unsupported_day
from nq_pipeline.errors import SettingsError
from nq_pipeline.market import sessions
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.purchases import charge_for
from nq_pipeline.sources.databento.query import Price, Query
from nq_pipeline.sources.databento.vendor_errors import NoRecords
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.spend.money import ZERO, round_up

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class DayPrice:
    """What a trade date would cost."""

    trade_date: date
    schema: str
    usd: Decimal  # 0 where the plan includes it or it is on disk already
    size: int | None  # bytes it would bill; None where it costs nothing
    state: State | None
    """`complete` where it is on disk; `pending` while it is not over or not final; None where it would be
    requested."""
    batch: bool = False
    at: datetime | None = None  # when the vendor named the price; None where it was not requested


def plan_backfill(
    settings: Settings, schema: str, first: date, last: date, *, symbols: Sequence[str] = ()
) -> list[DayPrice]:
    """Price each trade date of a span, in order. Free.

    `symbols` are parents, by default those of NQ_BACKFILL_SYMBOLS. Raises `SettingsError` if the schema is
    none of `SCHEMAS`, or the span has no trade date or days outside the session table; `SourceError` if the
    vendor does not name a price.
    """
    scope = BackfillScope.of(settings, schema, symbols)
    if why := unsupported_day(first) or unsupported_day(last):
        raise SettingsError(why)
    days = [session.trade_date for session in sessions.sessions(first, last)]
    if not days:
        raise SettingsError(f"there is no trade date from {first} to {last}")
    done = scope.completed(days)
    return [
        DayPrice(day, schema, ZERO, None, "complete") if day in done else price_day(scope, day)
        for day in days
    ]


def price_day(scope: BackfillScope, trade_date: date) -> DayPrice:
    """Price one trade date. Free."""
    if not scope.is_over(trade_date):
        return DayPrice(trade_date, scope.schema, ZERO, None, "pending")
    whole = scope.day_query(trade_date)
    if scope.store.is_paid(whole):
        has_job = bool(scope.store.stored_job(whole))
        return DayPrice(trade_date, scope.schema, ZERO, None, None, has_job)
    prices = [_price_query(scope, query) for query in scope.streamed_queries(trade_date)]
    usd = sum((round_up(price.usd) for price in prices), ZERO)  # as it is reserved
    size = sum(price.size or 0 for price in prices)
    batch = 0 < scope.settings.backfill.batch_mb * MIB <= size
    at = min(price.at for price in prices)
    return DayPrice(trade_date, scope.schema, usd, size or None, None, batch, at)


def budget_refusal(
    settings: Settings, days: Sequence[DayPrice], *, symbols: Sequence[str] = ()
) -> str | None:
    """Return the sentence by which the ledger would refuse all of these days together; None if they fit."""
    paid = [day for day in days if day.usd]
    if not paid:
        return None
    scope = BackfillScope.of(settings, paid[0].schema, symbols)
    query = replace(scope.day_query(paid[0].trade_date), end=scope.day_query(paid[-1].trade_date).end)
    price = Price(sum((day.usd for day in paid), ZERO), None, None, real_now())
    charge = charge_for(query, price, purpose="backfill", mode="historical-streaming", run_id="plan")
    return open_ledger(settings).check(charge)


def _price_query(scope: BackfillScope, query: Query) -> Price:
    if scope.store.find(query) is None:
        try:
            return scope.client.price(query)
        except NoRecords:
            pass
    return Price(ZERO, None, None, real_now())
