"""Which part of the lake is exported: the rows of trade dates, or of the snapshots current at a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime
from tempfile import TemporaryDirectory

import duckdb
import polars as pl

from nq_pipeline.errors import ExportError, ExportUsage, LakeError
from nq_pipeline.lake import catalog
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import PARTITION, TABLES, Column
from nq_pipeline.lake.views import VIEWS

BATCH_ROWS = 65_536
DEFAULT = ("option_chain_priced", "series_metrics", "gamma_levels")
"""The tables of a selection that names none."""
_KEYS = (PARTITION, "source", "snapshot_ts_ns", "series", "contract_key")


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows of a lake, as of now.

    Attributes
    ----------
    tables
        The tables and views to export, for a format that takes any.
    days
        The trade dates with rows, in order.
    is_moment
        Whether only the rows of the snapshots of one moment are selected.
    progress
        Called with what is being written.
    """

    connection: duckdb.DuckDBPyConnection
    environment: str
    tables: tuple[str, ...]
    days: tuple[date, ...]
    is_moment: bool
    progress: Callable[[str], object]

    def read(self, table: str, columns: str = "*", *, day: str = PARTITION) -> Iterator[pl.DataFrame]:
        """The selected rows in batches, sorted by trade date and then by their columns from left to right.

        Parameters
        ----------
        columns
            SQL for the result's columns.
        day
            The table's column of the trade date.

        Raises
        ------
        ExportUsage
            The table has no trade dates, or no snapshots although a moment is selected.
        """
        names = self.connection.sql(f"FROM {table} LIMIT 0").columns
        if day not in names:
            raise ExportUsage(f"{table} has no trade dates; use `nq sql --csv` for it")
        current = ""
        if self.is_moment:
            if "snapshot_ts_ns" not in names:
                raise ExportUsage(f"{table} has no snapshots; choose trade dates with --from and --until")
            keys = ", ".join(key for key in _KEYS if key in names)
            current = f"SEMI JOIN moment USING ({keys})"
        done = 0
        yield self.connection.sql(f"SELECT {columns} FROM {table} LIMIT 0").pl()
        for trade_date in self.days:
            rows = self.connection.sql(
                f"SELECT {columns} FROM {table} {current} WHERE {day} = DATE '{trade_date}' ORDER BY ALL"
            )
            self.show(table, trade_date, done)
            for batch in batches(rows):
                yield batch
                done += batch.height
                self.show(table, trade_date, done)

    def show(self, what: str, day: date, done: int) -> None:
        """Report how many rows or files of some kind have been written, up to and with a trade date."""
        number = self.days.index(day) + 1
        self.progress(f"{what}: {done:,}, trade date {day} ({number} of {len(self.days)})")


def batches(rows: duckdb.DuckDBPyRelation) -> Iterator[pl.DataFrame]:
    """The rows of a query in frames of at most `BATCH_ROWS`; a query without rows gives none."""
    with rows.to_arrow_reader(BATCH_ROWS) as reader:
        for batch in reader:
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame


def columns_of(table: str) -> tuple[Column, ...]:
    """The documented columns of a table or view."""
    return _SHOWN[table]


_SHOWN: dict[str, tuple[Column, ...]] = {
    **{name: table.columns for name, table in TABLES.items()},
    **{view.name: view.columns for view in VIEWS if not view.is_macro},
}


@contextmanager
def select(
    lake: Lake,
    *,
    first: date | None,
    last: date | None,
    as_of: datetime | None,
    is_moment: bool,
    tables: Sequence[str],
    memory_mb: int,
    progress: Callable[[str], object],
) -> Iterator[Selection]:
    """Open the lake and find the trade dates; `export` describes the parameters."""
    for name in tables:
        if name not in _SHOWN:
            raise ExportUsage(f"{name} is not a table or view; `nq tables` lists them")
    if as_of is not None and as_of.tzinfo is None:
        raise ExportUsage(f"{as_of.isoformat()} has no time zone; write one, as in 2025-06-10T15:00:00Z")
    with (
        TemporaryDirectory(prefix="nq-export-") as spill,
        catalog.connect(lake, memory_mb=memory_mb) as connection,
    ):
        connection.execute(f"SET temp_directory = '{spill}'")
        if is_moment:
            chain = "option_chain_latest" if as_of is None else "option_chain_asof($as_of)"
            query = f"CREATE TEMP TABLE moment AS SELECT {', '.join(_KEYS)} FROM {chain}"
            connection.execute(query, {} if as_of is None else {"as_of": as_of})
            days = [day for (day,) in connection.sql(f"SELECT DISTINCT {PARTITION} FROM moment").fetchall()]
            if not days:
                raise ExportError(
                    "the lake has no current chain; `nq run` fetches one"
                    if as_of is None
                    else f"the lake has no chain as of {as_of.isoformat()}; `nq report --list` shows the "
                    "snapshots that it has"
                )
        else:
            days = [
                day
                for day in _trade_dates(lake)
                if (first is None or first <= day) and (last is None or day <= last)
            ]
            if not days:
                raise ExportError(
                    "the lake has no rows on those trade dates; `nq report --list` lists its snapshots"
                )
        names = tuple(dict.fromkeys(tables)) or DEFAULT
        yield Selection(connection, lake.environment, names, tuple(sorted(days)), is_moment, progress)


def _trade_dates(lake: Lake) -> set[date]:
    """The trade dates of all tables. A damaged table is left to the query that reads it."""
    days = set[date]()
    for table in TABLES.values():
        with suppress(LakeError):
            days |= {file.trade_date for file in lake.manifest(table).files}
    return days
