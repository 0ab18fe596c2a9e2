"""Quality of the tables of trade dates."""

from __future__ import annotations

from datetime import date, timedelta

import polars as pl

from nq_pipeline.finding import Finding
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import FUTURE_BARS, OPEN_INTEREST_CHANGE
from nq_pipeline.market import sessions

LOOK_BACK = timedelta(days=30)
"""Calendar days. A missing bar in them breaks the windows of realized volatility that are used most."""


def figures_continue(lake: Lake, trade_date: date) -> Finding | None:
    """Check that open interest of a trade date starts from the figures with which the day before ended.

    They differ where a figure was corrected after it was taken as final. None without two days of changes.
    """
    before = sessions.previous_trade_date(trade_date)
    key = ["source", "contract_key"]
    rows = lake.scan(OPEN_INTEREST_CHANGE, [trade_date]).join(
        lake.scan(OPEN_INTEREST_CHANGE, [before]).select(*key, ended="open_interest"), on=key
    )
    compared = rows.select(*key, "ended", started="previous_open_interest").collect()
    if compared.is_empty():
        return None
    differ = compared.filter(pl.col("ended") != pl.col("started"))
    return Finding(
        passed=differ.is_empty(),
        severity="warn",
        sentence=f"{differ.height:,} of {compared.height:,} contracts start {trade_date} from a figure "
        f"that differs from the last one of {before}.",
        numbers={"differ": differ.height, "contracts": compared.height},
        table=differ.head(20) if differ.height else None,
    )


def bars_consistent(lake: Lake, trade_date: date) -> Finding | None:
    """Check that every bar has its prices in order; None for a trade date without bars."""
    bars = lake.scan(FUTURE_BARS, [trade_date]).collect()
    if bars.is_empty():
        return None
    low, high = pl.min_horizontal("open", "close"), pl.max_horizontal("open", "close")
    wrong = bars.filter((pl.col("low") > low) | (pl.col("high") < high) | (pl.col("low") <= 0))
    return Finding(
        passed=wrong.is_empty(),
        sentence=f"{wrong.height} of {bars.height} bars of {trade_date} have prices out of order.",
        numbers={"bars": bars.height, "wrong": wrong.height},
        table=wrong.select("raw_symbol", "open", "high", "low", "close") if wrong.height else None,
    )


def bars_unbroken(lake: Lake, trade_date: date) -> Finding | None:
    """Check that no trade date of the last month lacks bars; None before there are any."""
    have = {file.trade_date for file in lake.manifest(FUTURE_BARS).files}
    first = min(have, default=trade_date)
    due = [s.trade_date for s in sessions.sessions(max(first, trade_date - LOOK_BACK), trade_date) if s.rth]
    if not have or not due:
        return None
    missing = [day for day in due if day not in have]
    return Finding(
        passed=not missing,
        severity="warn",
        sentence=f"{len(missing)} of {len(due)} trade dates up to {trade_date} have no bars; realized "
        "volatility is unknown for the windows they lie in."
        if missing
        else f"All {len(due)} trade dates up to {trade_date} have bars.",
        numbers={"missing": len(missing), "trade_dates": len(due)},
        table=pl.DataFrame({"trade_date": missing}) if missing else None,
    )
