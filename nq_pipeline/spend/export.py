"""Copies the ledger's lines to the lake, so that DuckDB can join them to the data they paid for."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING

import polars as pl

from nq_pipeline.clock import to_ns
from nq_pipeline.errors import LedgerError
from nq_pipeline.lake import catalog
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import INSTANT, SPEND
from nq_pipeline.market.sessions import trade_dates
from nq_pipeline.spend.tables import Line
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from nq_pipeline.settings import Settings
    from nq_pipeline.spend.ledger import Ledger

log = logging.getLogger(__name__)


def export_spend(settings: Settings, lake: Lake, *, run_id: str) -> int:
    """Export at the end of a run. A ledger that cannot be used is only a warning to the run: the database
    is the record, and the next export catches up."""
    from nq_pipeline.spend.ledger import Ledger

    try:
        return export_lines(Ledger(settings), lake, run_id=run_id)
    except LedgerError as error:
        log.warning("the table spend was not updated: %s", error)
        return 0


def publish_spend(settings: Settings, *, run_id: str) -> None:
    """Export and publish the catalog, for runs that spend and publish nothing else."""
    export_spend(settings, Workspace.of(settings).lake, run_id=run_id)
    catalog.publish(Workspace.of(settings).lake)


def export_lines(ledger: Ledger, lake: Lake, *, run_id: str) -> int:
    """Append new lines to the table `spend`; returns how many. Publish the catalog afterwards."""
    began = ledger.began
    known = lake.scan(SPEND).filter(pl.col("ledger") == began).select(pl.col("line").max()).collect().item()
    lines = ledger.lines(after=known or 0)
    return lake.append(SPEND, spend_rows(lines, began), run_id=run_id).rows if lines else 0


def spend_rows(lines: list[Line], began: datetime) -> pl.DataFrame:
    """The lines as rows of the table `spend`; `began` identifies the ledger."""
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
