"""The copy of the ledger in the lake, which DuckDB joins to the data that was paid for.

Runs export new lines to it; a lost ledger is restored from it.
"""

from __future__ import annotations

import logging
from dataclasses import fields
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import sqlalchemy as sa

from nq_pipeline.clock import to_ns
from nq_pipeline.errors import LedgerError
from nq_pipeline.lake import catalog
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import INSTANT, SPEND
from nq_pipeline.market.sessions import trade_dates
from nq_pipeline.settings import Settings
from nq_pipeline.spend.database import exclusive_transaction, open_engine, refuse_older_copy
from nq_pipeline.spend.ledger import Ledger
from nq_pipeline.spend.tables import CLOSING, LINES, OPEN, Kind, Line
from nq_pipeline.workspace import Workspace

log = logging.getLogger(__name__)


def export_spend(settings: Settings, lake: Lake, *, run_id: str) -> int:
    """Export at the end of a run. A ledger that cannot be used is only a warning to the run: the database
    is the record, and the next export catches up."""
    try:
        refuse_older_copy(settings)
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


def restore_ledger(settings: Settings) -> tuple[int, datetime]:
    """Write the lines of the table `spend` that the ledger lacks: all, or those since its backup.

    Lines that no run had exported are lost.

    Returns
    -------
    int, datetime
        How many lines were restored, and when the last one was recorded (UTC).

    Raises
    ------
    LedgerError
        The ledger lacks none, the table has none, or the ledger has other lines in their place.
    """
    copy, ours = (
        Workspace.of(settings).lake.scan(SPEND).collect(),
        LINES.c.environment == settings.environment,
    )
    with exclusive_transaction(open_engine(settings, restoring=True)) as connection:
        had = sa.select(LINES.c.line_id, LINES.c.recorded_at).where(ours).order_by(LINES.c.line_id)
        known = {line.line_id: line.recorded_at for line in connection.execute(had)}
        began = next(iter(known.values())) if known else copy["ledger"].max()
        theirs = copy.filter(pl.col("ledger").eq_missing(began)).sort("line")
        lines = [_values(row) for row in theirs.iter_rows(named=True)]
        if not lines:
            raise LedgerError("the table spend has no lines of this ledger; there is nothing to restore")
        if any(known.get(line["line_id"], line["recorded_at"]) != line["recorded_at"] for line in lines):
            raise LedgerError(
                "the spend ledger has booked lines since its backup, so nothing was restored; restore all of "
                "it into a new one: move its file away, or set NQ_LEDGER_URL to an empty database"
            )
        missing = [line for line in lines if line["line_id"] not in known]
        if not missing:
            raise LedgerError("the spend ledger has lines already, all of the table's; nothing was restored")
        connection.execute(LINES.insert(), missing)
        if connection.dialect.name == "postgresql":  # SQLite continues after the highest number by itself
            last = sa.select(sa.func.max(LINES.c.line_id)).scalar_subquery()
            connection.execute(
                sa.select(sa.func.setval(sa.func.pg_get_serial_sequence(LINES.name, "line_id"), last))
            )
        closed = {line["reservation_id"] for line in lines if line["kind"] in CLOSING}
        connection.execute(
            OPEN.delete().where(OPEN.c.environment == settings.environment, OPEN.c.reservation_id.in_(closed))
        )
        held = [
            {name: line[name] for name in ("environment", "reservation_id")}
            for line in missing
            if line["kind"] == Kind.RESERVED and line["reservation_id"] not in closed
        ]
        if held:
            connection.execute(OPEN.insert(), held)
    return len(missing), lines[-1]["recorded_at"]


def _values(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table as a line; the copy does not name the boot that wrote it."""
    return {field.name: row.get("line" if field.name == "line_id" else field.name) for field in fields(Line)}
