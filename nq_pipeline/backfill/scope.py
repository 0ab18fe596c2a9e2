"""What a backfill covers: a schema and its parents, and how a trade date becomes queries.

A trade date is the span from its session's open to the next session's, as everywhere in the lake. No trade
comes later than an hour after the close (`TRADING_TAIL`), so a Friday can be bought on a Friday.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cached_property
from typing import Literal

from nq_pipeline.backfill.rows import TABLES, TICKS
from nq_pipeline.capture.gateway import future_parents, option_parents
from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.errors import SettingsError
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import BACKFILLS
from nq_pipeline.market import sessions
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.client import HistoricalClient, open_client
from nq_pipeline.sources.databento.history_store import HistoryStore
from nq_pipeline.sources.databento.query import Query
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.workspace import Workspace

State = Literal["complete", "empty", "missing", "pending", "over_budget", "not_entitled", "failed"]
SCHEMAS = (*TICKS, *TABLES)
PUBLISHED_AFTER_CLOSE = ("definition", "statistics", "ohlcv-1d")
"""Schemas with records between the close and the next session."""
TRADING_TAIL = timedelta(hours=1)
HOURS_PER_QUERY = {"bbo-1m": 1, "mbo": 1}
"""Schemas streamed in parts, because the vendor gives up on larger queries."""
CONDITIONS = ("available", "pending", "degraded", "missing")
"""From best to worst."""


@dataclass
class BackfillScope:
    """The parents of one schema, the vendor that has them, and where they are stored."""

    settings: Settings
    schema: str
    symbols: tuple[str, ...]
    client: HistoricalClient
    store: HistoryStore
    lake: Lake

    @classmethod
    def of(cls, settings: Settings, schema: str, symbols: Sequence[str]) -> BackfillScope:
        """Return the scope of a schema; `symbols` default to NQ_BACKFILL_SYMBOLS, else to all parents.

        Raises `SettingsError` for a schema that is none of `SCHEMAS`.
        """
        if schema not in SCHEMAS:
            raise SettingsError(f"{schema!r} cannot be backfilled; schemas are {', '.join(SCHEMAS)}")
        every = (*option_parents(settings.products), *future_parents(settings.products))
        chosen = tuple(sorted(symbols or settings.backfill.symbols or every))
        store = HistoryStore.of(settings)
        return cls(settings, schema, chosen, open_client(settings), store, Workspace.of(settings).lake)

    @property
    def dataset(self) -> str:
        return self.settings.vendor(DatabentoSettings).dataset

    @cached_property
    def available_end(self) -> int:
        """Until when the vendor has data, nanoseconds UTC."""
        return self.client.available_end(self.dataset, (self.schema,))

    def day_query(self, trade_date: date) -> Query:
        """Return the query of a whole trade date."""
        session = sessions.session(trade_date)
        end = sessions.next_open(session.close)
        if self.schema not in PUBLISHED_AFTER_CLOSE:
            end = min(end, session.close + TRADING_TAIL)
        return Query(self.dataset, self.schema, self.symbols, to_ns(session.open), to_ns(end))

    def streamed_queries(self, trade_date: date) -> list[Query]:
        """Return the queries by which a trade date is streamed."""
        whole = self.day_query(trade_date)
        hours = HOURS_PER_QUERY.get(self.schema)
        if hours is None:
            return [whole]
        length = hours * 3600 * NS_PER_S
        starts = range(whole.start, whole.end, length)
        return [replace(whole, start=start, end=min(start + length, whole.end)) for start in starts]

    def is_over(self, trade_date: date) -> bool:
        """Whether the vendor has all of the trade date."""
        return self.available_end >= self.day_query(trade_date).end

    def completed(self, days: Sequence[date]) -> set[date]:
        """Return the trade dates that are already complete, for these symbols at least."""
        rows = (
            self.lake.scan(BACKFILLS, days)
            .filter(schema=self.schema, dataset=self.dataset, state="complete")
            .select("trade_date", "symbols")
            .collect()
        )
        wanted = set(self.symbols)
        return {day for day, symbols in rows.iter_rows() if wanted <= set(symbols.split(","))}

    def condition(self, trade_date: date) -> str | None:
        """Return the worst condition of the UTC days that a trade date spans; None where none is known."""
        whole = self.day_query(trade_date)
        first, last = from_ns(whole.start).date(), from_ns(whole.end - 1).date()
        by_day = self.client.conditions(self.dataset, first, last)
        known = [by_day[day] for day in by_day if first <= day <= last and by_day[day] in CONDITIONS]
        return max(known, key=CONDITIONS.index, default=None)
