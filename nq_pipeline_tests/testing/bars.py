"""Rows of `future_bars`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time

import polars as pl

from nq_pipeline.lake.tables import FUTURE_BARS, conform
from nq_pipeline.market import sessions

EXPIRATIONS = {"NQM5": date(2025, 6, 20), "NQU5": date(2025, 9, 19), "NQZ5": date(2025, 12, 19)}
Bar = Sequence[float]
"""Open, high, low, close and volume."""


def future_bars(symbol: str, bars: Mapping[date, Bar], *, made_from: str = "trades") -> pl.DataFrame:
    """The bars of one future by trade date."""
    rows = []
    for day, (open_, high, low, close, volume) in bars.items():
        opened, closed = sessions.session(day).rth or (None, None)
        rows.append(
            {
                "made_from": made_from,
                "environment": "sandbox",
                "trade_date": day,
                "previous_trade_date": sessions.previous_trade_date(day, with_rth=True),
                "product": symbol[:2],
                "raw_symbol": symbol,
                "expiration": datetime.combine(EXPIRATIONS[symbol], time(13, 30), UTC),
                "opened_at": opened,
                "closed_at": closed,
                "open": open_,
                "high": high,
                "low": low,
                "close": close,
                "volume": int(volume),
                "run_id": "run",
            }
        )
    return conform(FUTURE_BARS, pl.DataFrame(rows, infer_schema_length=None))
