"""Rows for tests of the lake: chains as the pipeline writes them, and a small table of ticks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import polars as pl

from nq_pipeline.clock import NS_PER_S
from nq_pipeline.lake.tables import INSTANT, Column, Table, conform

DAY = date(2025, 7, 1)
NOON = 1_751_371_200 * NS_PER_S  # 2025-07-01T12:00:00Z
DURING = datetime(2025, 7, 1, 20, tzinfo=UTC)
AFTER = datetime(2025, 7, 2, 1, tzinfo=UTC)

SERIES = "Q1B-2025-07-08"
CALL: dict[str, Any] = {
    "series": SERIES,
    "contract_key": f"{SERIES}-C-21000",
    "option_type": "C",
    "strike": 21_000.0,
}
PUT: dict[str, Any] = {
    "series": SERIES,
    "contract_key": f"{SERIES}-P-21000",
    "option_type": "P",
    "strike": 21_000.0,
}

TICKS = Table(
    name="ticks",
    version=1,
    meaning="Ticks of a test.",
    columns=(
        Column("trade_date", pl.Date(), "CME session date", False),
        Column("instrument_id", pl.Int64(), "id", False),
        Column("ts_event", INSTANT, "when", False),
        Column("sequence", pl.Int64(), "order within an instant", False),
        Column("price", pl.Float64(), "points"),
    ),
    key=("instrument_id", "ts_event", "sequence"),
    order=("instrument_id", "ts_event", "sequence"),
    pruning_column="ts_event",
)


def ticks(rows: Sequence[tuple[date, int, int, int, float | None]]) -> pl.DataFrame:
    """Rows of (trade_date, instrument_id, ts_event in ns, sequence, price)."""
    names = TICKS.schema.names()
    raw = pl.DataFrame(list(rows), orient="row", schema=dict(zip(names, RAW_TYPES, strict=True)))
    return conform(TICKS, raw)


RAW_TYPES = (pl.Date, pl.Int64, pl.Int64, pl.Int64, pl.Float64)


def chain(
    table: Table,
    *,
    snapshot: int,
    source: str = "barchart",
    series: str = "Q1B-2025-07-01",
    contracts: int = 3,
    day: date = DAY,
    underlying_class: str = "future",
    run_id: str = "run",
) -> pl.DataFrame:
    """A chain of one series as one source gave it; `snapshot` in ns UTC."""
    root, _, expiration = series.partition("-")
    strikes = pl.DataFrame({"strike": [21_000.0 + 10 * i for i in range(contracts)]})
    given = {
        "source": source,
        "environment": "sandbox",
        "snapshot_ts": snapshot,
        "as_of": snapshot - 600 * NS_PER_S,
        "trade_date": day,
        "underlying_class": underlying_class,
        "root": root,
        "series": series,
        "vendor_symbol": "X",
        "expiration": NOON,
        "expiration_date": date.fromisoformat(expiration),
        "settlement_style": "PM",
        "exercise_style": "european",
        "option_type": "C",
        "multiplier": 20.0,
        "is_settlement": False,
        "run_id": run_id,
        "request_id": "request",
        "raw_sha256": "0" * 64,
        "selected_at": snapshot,
        "selection_reason": "first of its priority",
    }
    key = pl.format("{}-C-{}", pl.lit(series), pl.col("strike").cast(pl.Int64))
    names = table.schema.names()
    columns = {name: pl.lit(value) for name, value in given.items() if name in names}
    return conform(table, strikes.with_columns(contract_key=key, **columns))


def decision(
    *,
    decided_at: int,
    snapshot: int,
    source: str = "barchart",
    series: str = "Q1B-2025-07-01",
    won: bool = True,
    rank: int = 1,
    day: date = DAY,
    run_id: str = "run",
) -> dict[str, object]:
    """A row of `decisions`; instants in ns UTC."""
    return {
        "run_id": run_id,
        "decided_at": decided_at,
        "snapshot_ts": snapshot,
        "trade_date": day,
        "environment": "sandbox",
        "series": series,
        "source": source,
        "rank": rank,
        "outcome": "ok" if won else "unavailable",
        "won": won,
        "reason": "because",
        "contracts": 3,
        "quoted": 3,
    }


def trade(
    second: float, symbol: str, price: float | None, *, side: str = "B", size: int = 1, **option: Any
) -> dict[str, Any]:
    """A trade some seconds after noon; with a contract's columns it is an option's."""
    at = NOON + int(second * NS_PER_S)
    return {
        "ts_event": at,
        "ts_recv": at,
        "trade_date": DAY,
        "publisher_id": 1,
        "instrument_id": sum(symbol.encode()),
        "sequence": int(second * 1000),
        "ordinal": 0,
        "action": "T",
        "side": side,
        "price": price,
        "size": size,
        "flags": 0,
        "ts_in_delta": 0,
        "raw_symbol": symbol,
        "instrument_kind": "option" if option else "future",
        "source_schema": "trades",
        "environment": "sandbox",
        "log_session": 1,
        "run_id": "run",
        "series": None,
        "contract_key": None,
        "option_type": None,
        "strike": None,
    } | option
