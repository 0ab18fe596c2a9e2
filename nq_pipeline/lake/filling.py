"""Fills the columns that rows of an older version of a table do not have."""

from __future__ import annotations

import polars as pl

from nq_pipeline.errors import LakeError
from nq_pipeline.lake import parquet
from nq_pipeline.lake.compaction import sorted_slices
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import PARTITION, Table


def fill(lake: Lake, table: Table, rows: pl.DataFrame, *, run_id: str) -> int:
    """Give stored rows the values of `rows` where they have none; returns how many stored rows there were.

    A stored value never changes, and no row is added. The files of each trade date are replaced by one in
    one version of the table; readers see the old or the new one. Needs memory for `rows` and for some 61,000
    stored rows.

    Parameters
    ----------
    rows
        The table's key, and the columns to fill.

    Raises
    ------
    LakeError
        A file is damaged, or another host merged the same files at the same time.
    """
    stored, done = lake.table_files(table), 0
    names = [name for name in rows.columns if name not in (*table.key, PARTITION)]
    for (day,), of_day in rows.partition_by(PARTITION, as_dict=True).items():
        given = of_day.select(*table.key, *names)
        with stored.merge_lock():
            if not (group := stored.manifest().of({day})):
                continue
            stored.check(group)
            frames = (_filled(table, frame, given, names) for frame in sorted_slices(stored, group))
            runs = sorted({*stored.read_runs(group), run_id})
            with stored.stage(day) as staged:
                written = stored.write_staged(staged, frames, runs, group_rows=parquet.ROW_GROUP_ROWS)
                if not stored.replace(group, staged, written):
                    raise LakeError(
                        f"files of {table.name} were merged while their columns were filled, so nothing was "
                        "replaced; run it again"
                    )
            done += written.rows
    return done


def _filled(table: Table, stored: pl.DataFrame, given: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    both = stored.join(given, on=table.key, how="left", suffix="_given", maintain_order="left")
    return both.select(
        pl.coalesce(name, f"{name}_given") if name in names else pl.col(name) for name in stored.columns
    )
