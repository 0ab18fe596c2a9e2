"""Gaps and snapshots that were committed to the lake, numbered in the order in which they were noticed.

The lake is unordered: writers on several machines append, and files are merged. So the numbers are kept in a
small SQLite file beside the lake. A row has one number for ever, whatever is restarted; all servers of a data
folder share it.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import polars as pl

from nq_pipeline.files import make_folder
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import DECISIONS, GAPS, Table
from nq_pipeline.market.contracts import PRODUCT_OF
from nq_pipeline.stream.batch import BatchType, to_json_rows

NAME = "stream.sqlite"
PAGE = 1_000
"""Most rows of one batch."""
PATIENCE_S = 30.0
"""How long another server may take to write."""


class EventLog:
    """The numbered events of one data folder.

    Attributes
    ----------
    id
        Identifies the log, and so the stream.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[str, frozenset[str]] = {}
        make_folder(path.parent)
        with self._open() as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE IF NOT EXISTS stream (one INTEGER PRIMARY KEY, id TEXT)")
            database.execute(
                "CREATE TABLE IF NOT EXISTS events "
                "(number INTEGER PRIMARY KEY, type TEXT, key TEXT UNIQUE, row TEXT)"
            )
            database.execute("INSERT OR IGNORE INTO stream VALUES (1, ?)", [uuid.uuid4().hex[:8]])
            (self.id,) = database.execute("SELECT id FROM stream").fetchone()

    @property
    def newest(self) -> int:
        """The number of the last event; 0 without any."""
        with self._open() as database:
            (number,) = database.execute("SELECT coalesce(max(number), 0) FROM events").fetchone()
        return int(number)

    def collect(self, lake: Lake) -> None:
        """Number what was committed since the last call. Raises `LakeError` for a damaged table."""
        self._collect(lake, GAPS, "gaps")
        self._collect(lake, DECISIONS, "snapshot")

    def read(self, after: int, until: int) -> Iterator[tuple[BatchType, int, list[str]]]:
        """Events after one number, up to and with another: type, last number, and rows as JSON objects."""
        while True:
            with self._open() as database:
                rows = database.execute(
                    "SELECT type, number, row FROM events "
                    "WHERE number > ? AND number <= ? ORDER BY number LIMIT ?",
                    [after, until, PAGE],
                ).fetchall()
            for kind, group in groupby(rows, key=itemgetter(0)):
                same = list(group)
                yield kind, same[-1][1], [row for _, _, row in same]
            if len(rows) < PAGE:
                return
            after = rows[-1][1]

    def _collect(self, lake: Lake, table: Table, kind: BatchType) -> None:
        current = lake.manifest(table).files
        fresh = {f.trade_date for f in current if f.path not in self._seen.get(table.name, frozenset())}
        if not fresh:
            return
        scan = lake.scan(table, fresh)
        rows = (scan.sort(table.total_order) if table is GAPS else snapshots_won(scan)).collect()
        key = pl.concat_str([pl.col(name) for name in _KEYS[kind]], separator="|").alias("key")
        keys = rows.select(pl.lit(kind) + "|" + key).to_series()
        with self._open() as database:
            database.executemany(
                "INSERT OR IGNORE INTO events (type, key, row) VALUES (?, ?, ?)",
                ((kind, name, text) for name, text in zip(keys, to_json_rows(rows), strict=True)),
            )
        self._seen[table.name] = frozenset(file.path for file in current)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection with one transaction."""
        with closing(sqlite3.connect(self._path, timeout=PATIENCE_S)) as database, database:
            yield database


_KEYS: dict[BatchType, tuple[str, ...]] = {
    "gaps": ("gap_id", "revision"),
    "snapshot": ("run_id", "snapshot_ts", "product", "source"),
}


def snapshots_won(decisions: pl.LazyFrame) -> pl.LazyFrame:
    """What won in each run: one row per snapshot, product and source."""
    root = pl.col("series").str.split("-").list.first()
    return (
        decisions.filter("won")
        .with_columns(product=root.replace_strict(PRODUCT_OF, default=root, return_dtype=pl.String))
        .group_by("run_id", "snapshot_ts", "trade_date", "product", "source")
        .agg(
            pl.col("decided_at").max(),
            pl.len().alias("series"),
            pl.col("contracts").sum(),
            pl.col("newest_ts").max(),
        )
        .sort("decided_at", "product", "source")
    )
