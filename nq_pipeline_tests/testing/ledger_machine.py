"""A machine whose clock may be wrong, and charges to spend on it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb

from nq_pipeline.clock import SystemClock
from nq_pipeline.settings import Settings
from nq_pipeline.spend.ledger import Charge, Ledger
from nq_pipeline.spend.money import GIB
from nq_pipeline.spend.period import Boot
from nq_pipeline.workspace import Workspace

NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)
"""A Tuesday in the middle of a month."""


class Machine(SystemClock):
    """`time` passes truly; the clock shows it plus `error`; a boot knows how long it has lasted."""

    def __init__(self, time: datetime = NOON) -> None:
        self.time, self.error = time, timedelta(0)
        self.booted, self.boots = time - timedelta(hours=5), 1

    def now(self) -> datetime:
        return self.time + self.error

    def boot(self) -> Boot:
        return Boot(f"boot-{self.boots}", self.time - self.booted)

    def restart(self) -> None:
        self.booted, self.boots = self.time, self.boots + 1

    def advance(self, **span: float) -> None:
        self.time += timedelta(**span)


def charge(usd: str | Decimal | None, **more: Any) -> Charge:
    """A charge at this price, of as many bytes as it buys at a dollar per GiB."""
    cost = None if usd is None else Decimal(usd)
    finite = cost is not None and cost.is_finite()
    own: dict[str, Any] = {
        "vendor": "databento",
        "purpose": "chains",
        "dataset": "GLBX.MDP3",
        "schema": "trades",
        "mode": "historical-streaming",
        "description": "NQ.OPT, 10 November",
        "cost_usd": cost,
        "billable_bytes": size_of(cost) if finite else None,  # type: ignore[arg-type]
        "unit_price_usd": Decimal(1),
        "priced_at": NOON,
        "run_id": "run-1",
    }
    return Charge(**{**own, **more})


def catalog_has_the_ledger(settings: Settings) -> bool:
    """Whether `nq.duckdb` shows every line, one of a metered request among them."""
    lines = Ledger(settings).lines()
    with duckdb.connect(Workspace.of(settings).catalog, read_only=True) as published:
        shown = published.execute("select line from spend order by line").fetchall()
    metered = any(line.vendor and line.purpose for line in lines)
    return metered and [line for (line,) in shown] == [line.line_id for line in lines]


def size_of(usd: Decimal) -> int:
    """Bytes that cost no more than this at a dollar per GiB."""
    return int(usd * GIB)
