"""Restores a lost ledger from its copy in the lake."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from typing import Any

import polars as pl
import sqlalchemy as sa

from nq_pipeline.errors import LedgerError
from nq_pipeline.lake.tables import SPEND
from nq_pipeline.settings import Settings
from nq_pipeline.spend.database import exclusive_transaction, open_engine
from nq_pipeline.spend.tables import CLOSING, LINES, OPEN, Kind, Line
from nq_pipeline.workspace import Workspace


def restore_ledger(settings: Settings) -> tuple[int, datetime]:
    """Write the lines of the table `spend` to an empty ledger.

    Lines that no run had exported are lost.

    Returns
    -------
    int, datetime
        How many lines were restored, and when the last one was recorded (UTC).

    Raises
    ------
    LedgerError
        The ledger has lines already, or the table has none.
    """
    copy = Workspace.of(settings).lake.scan(SPEND).collect()
    copy = copy.filter(pl.col("ledger") == pl.col("ledger").max()).sort("line")
    if copy.is_empty():
        raise LedgerError("the table spend has no lines; there is nothing to restore the ledger from")
    lines = [_values(row) for row in copy.iter_rows(named=True)]
    closed = {line["reservation_id"] for line in lines if line["kind"] in CLOSING}
    held = [
        {name: line[name] for name in ("environment", "reservation_id")}
        for line in lines
        if line["kind"] == Kind.RESERVED and line["reservation_id"] not in closed
    ]
    with exclusive_transaction(open_engine(settings, restoring=True)) as connection:
        if connection.scalar(sa.select(sa.func.count()).select_from(LINES)):
            raise LedgerError("the spend ledger has lines already; nothing was restored")
        connection.execute(LINES.insert(), lines)
        if held:
            connection.execute(OPEN.insert(), held)
    return len(lines), lines[-1]["recorded_at"]


def _values(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table as a line; the copy does not name the boot that wrote it."""
    return {field.name: row.get("line" if field.name == "line_id" else field.name) for field in fields(Line)}
