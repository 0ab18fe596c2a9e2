"""The ledger's lines in the lake, so that DuckDB shows them beside the data they paid for."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import polars as pl

from nq_pipeline.clock import to_ns
from nq_pipeline.lake.schemas import INSTANT, SPEND
from nq_pipeline.market.sessions import trade_dates
from nq_pipeline.spend.tables import Line

if TYPE_CHECKING:
    from nq_pipeline.lake.lake import Lake
    from nq_pipeline.spend.ledger import Ledger


def export(ledger: Ledger, lake: Lake, *, run_id: str) -> int:
    """Append the lines the lake lacks to its table `spend`; returns how many.

    The database is the record and the table a copy: call it before the catalog is published. A
    copy that failed is made up for by the next.
    """
    began = ledger.began
    known = lake.scan(SPEND).filter(pl.col("ledger") == began).select(pl.col("line").max()).collect().item()
    lines = ledger.lines(after=known or 0)
    return lake.append(SPEND, rows(lines, began), run_id=run_id).rows if lines else 0


def rows(lines: list[Line], began: datetime) -> pl.DataFrame:
    """The lines as rows of `SPEND`, of the ledger that was begun at this moment."""
    import numpy as np

    moments = np.array([to_ns(line.recorded_at) for line in lines], dtype=np.int64)
    columns = {
        name: pl.Series(
            name,
            [getattr(line, "line_id" if name == "line" else name) for line in lines],
            dtype,
            strict=False,
        )
        for name, dtype in SPEND.schema.items()
        if name not in ("ledger", "trade_date")
    }
    return pl.DataFrame(columns).with_columns(
        pl.lit(began).cast(INSTANT).alias("ledger"),
        pl.Series("trade_date", trade_dates(moments)).fill_null(pl.Series(moments).cast(INSTANT).dt.date()),
    )
