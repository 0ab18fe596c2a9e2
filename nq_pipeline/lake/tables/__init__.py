"""The tables of the lake, by subject: columns, keys, order on disk, version. Import them from this module.

The cast on write, the Parquet footer, Dagster's column schema, the views and `docs/tables.md` derive from
these declarations.
"""

from __future__ import annotations

from nq_pipeline.lake.tables.analytics import (
    CONSTANT_MATURITY,
    GAMMA_LEVELS,
    IV_SMILE,
    OPTION_PRICING,
    SERIES_METRICS,
    STRIKE_PROFILE,
    SURFACE_ARBITRAGE,
    SURFACE_SLICES,
    TRADE_PRESSURE,
)
from nq_pipeline.lake.tables.capture import GAPS, MBO, MBP_1, SESSIONS, TRADES
from nq_pipeline.lake.tables.chains import (
    ANSWERS,
    CHAIN_COLUMNS,
    DECISIONS,
    FETCHES,
    OPTION_CHAIN,
    SOURCE_CHAIN,
)
from nq_pipeline.lake.tables.daily import FUTURE_BARS, OPEN_INTEREST_CHANGE
from nq_pipeline.lake.tables.history import BACKFILLS, BBO_1M, DEFINITION, OHLCV_1D, OHLCV_1M, STATISTICS
from nq_pipeline.lake.tables.spend import ENTITLEMENTS, SPEND
from nq_pipeline.lake.tables.table import INSTANT, PARTITION, USD, Column, Table, conform

__all__ = [
    "ANSWERS", "BACKFILLS", "BBO_1M", "CHAIN_COLUMNS", "CONSTANT_MATURITY", "DECISIONS", "DEFINITION",
    "ENTITLEMENTS", "FETCHES", "FUTURE_BARS", "GAMMA_LEVELS", "GAPS", "INSTANT", "IV_SMILE", "MBO",
    "MBP_1", "OHLCV_1D", "OHLCV_1M", "OPEN_INTEREST_CHANGE", "OPTION_CHAIN", "OPTION_PRICING",
    "PARTITION", "SERIES_METRICS", "SESSIONS", "SOURCE_CHAIN", "SPEND", "STATISTICS", "STRIKE_PROFILE",
    "SURFACE_ARBITRAGE", "SURFACE_SLICES", "TABLES", "TRADES", "TRADE_PRESSURE", "USD", "Column", "Table",
    "conform",
]  # fmt: skip

_ORDERED = (
    SOURCE_CHAIN, OPTION_CHAIN, OPTION_PRICING, IV_SMILE, STRIKE_PROFILE, SERIES_METRICS, SURFACE_SLICES,
    SURFACE_ARBITRAGE, CONSTANT_MATURITY, GAMMA_LEVELS, OPEN_INTEREST_CHANGE, FUTURE_BARS, TRADE_PRESSURE,
    DECISIONS, ANSWERS, FETCHES, TRADES, MBP_1, MBO, GAPS, SESSIONS, SPEND, DEFINITION, STATISTICS,
    OHLCV_1M, OHLCV_1D, BBO_1M, BACKFILLS, ENTITLEMENTS,
)  # fmt: skip
TABLES: dict[str, Table] = {table.name: table for table in _ORDERED}
"""All tables by name, in the order of `docs/tables.md`."""
