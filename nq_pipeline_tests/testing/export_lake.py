"""Trades and books of a chain's first call and its future, and rows that an export leaves out."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import polars as pl

from nq_pipeline.clock import NS_PER_S, to_ns
from nq_pipeline.lake.tables import BBO_1M, MBP_1, OPTION_CHAIN, TRADES, conform
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.lake_samples import trade

MONDAY, TUESDAY = date(2025, 6, 9), date(2025, 6, 10)
CALL = "Q2BM5 C21500"
"""A Tuesday weekly's call that is in the chain, was traded and has books."""
MINUTELY = "Q2BM5 P21500"
"""Its put, which has a book at the end of each minute."""
FORMULA = "=cmd|' /C calc'!A0"
_OPTION = {
    "underlying_class": "future",
    "underlying": "NQM5",
    "root": "Q2B",
    "series": "Q2B-2025-06-10",
    "contract_key": "Q2B-2025-06-10-C-21500",
    "option_type": "C",
    "strike": 21_500.0,
}


def noon(day: date) -> int:
    """Noon of a day, nanoseconds UTC."""
    return to_ns(datetime(day.year, day.month, day.day, 12, tzinfo=UTC))


def _tick(day: date, second: int, symbol: str, price: float | None, **own: Any) -> dict[str, Any]:
    at = noon(day) + second * NS_PER_S
    moments = {"ts_event": at, "ts_recv": at + 7, "trade_date": day}
    return trade(second, symbol, price) | {"root": None, "underlying": None} | moments | own


def _future(day: date, second: int, price: float, **own: Any) -> dict[str, Any]:
    return _tick(day, second, "NQM5", price, root="NQ", instrument_kind="future", **own)


def store_ticks(settings: Settings) -> None:
    """Store ticks of two trade dates.

    On Monday two trades of the future; on Tuesday two of the call in one message, one of a spread and one
    without a price, two books of the call, one of them without an ask, and a minute's book of the put.
    """
    lake = Workspace.of(settings).lake
    option = _OPTION | {"instrument_kind": "option"}
    spread = {"instrument_kind": "spread"}
    trades = [
        _future(MONDAY, 0, 21_400.25, side="A", size=2),
        _future(MONDAY, 1, 21_400.50, side="N"),
        _tick(TUESDAY, 2, CALL, 60.05, side="B", size=3, **option),
        _tick(TUESDAY, 2, CALL, 60.10, side="B", size=1, **option) | {"ordinal": 1},
        _tick(TUESDAY, 3, "UD:1V: VT 1", 5.0, **spread),
        _tick(TUESDAY, 4, CALL, None, **option),
    ]
    lake.append(TRADES, conform(TRADES, pl.DataFrame(trades, infer_schema_length=None)), run_id="run")
    book = {"depth": 0, "bid_ct_00": 1, "ask_ct_00": 1, "bid_sz_00": 4, "ask_sz_00": 5}
    books = [
        _tick(TUESDAY, 5, CALL, 60.0, action="A", bid_px_00=60.0, ask_px_00=60.25, **book, **option),
        _tick(TUESDAY, 6, CALL, 60.0, action="C", bid_px_00=60.05, ask_px_00=None, **book, **option),
    ]
    lake.append(MBP_1, conform(MBP_1, pl.DataFrame(books, infer_schema_length=None)), run_id="run")
    put = option | {"option_type": "P", "contract_key": "Q2B-2025-06-10-P-21500"}
    minute = {"bid_px_00": 59.0, "ask_px_00": 61.0, "bid_sz_00": 7, "ask_sz_00": 8}
    bar = _tick(TUESDAY, 60, MINUTELY, None, **put, **minute)
    wanted = {name: value for name, value in bar.items() if name in BBO_1M.schema}
    lake.append(BBO_1M, conform(BBO_1M, pl.DataFrame([wanted])), run_id="run")


def store_formula(settings: Settings) -> None:
    """Store a copy of a chosen row, a day later, whose vendor calls the contract by a formula."""
    lake = Workspace.of(settings).lake
    row = lake.scan(OPTION_CHAIN).head(1).collect()
    later = pl.col("trade_date", "snapshot_ts", "as_of").dt.offset_by("1d")
    lake.append(OPTION_CHAIN, row.with_columns(later, vendor_symbol=pl.lit(FORMULA)), run_id="run")
