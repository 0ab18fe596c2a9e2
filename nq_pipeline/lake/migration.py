"""Takes over a lake with manifests: as Delta tables in its folder, or into an object store.

Every table has instants in nanoseconds, for which Delta has no type, so all files are rewritten. Rows,
values, runs and trade dates stay the same. The old files stay for an hour, for readers that have them open.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from nq_pipeline.errors import LakeError
from nq_pipeline.files import sync
from nq_pipeline.lake import manifest, parquet
from nq_pipeline.lake.compaction import PIECE_ROWS
from nq_pipeline.lake.delta.files import LOG, DeltaFiles
from nq_pipeline.lake.manifest import NAME, DataFile
from nq_pipeline.lake.objects import LocalObjects
from nq_pipeline.lake.table_files import ManifestFiles, TableFiles, remove_paths
from nq_pipeline.lake.tables import Table

OLD = f"{NAME}.migrated"
"""The manifest's name after its table became a Delta table; it lists the files to remove."""


def migrate(folder: Path, table: Table) -> int:
    """Make a table with a manifest a Delta table in the same folder; returns its rows, 0 without a manifest.

    Writers and merges wait. If it dies, the table is as it was, and the next call starts again.

    Raises
    ------
    LakeError
        A file of the table is missing or damaged; nothing is changed.
    """
    old, new = ManifestFiles(folder, table), DeltaFiles(folder, table, LocalObjects(folder))
    if not (folder / NAME).exists():
        return 0
    with old.merge_lock(), old.lock():
        if not (folder / NAME).exists():  # another process did it meanwhile
            return 0
        current = old.manifest()
        old.check(current.files)
        if (folder / LOG).exists():  # of a call that died
            shutil.rmtree(folder / LOG)
        base = new.create(manifest.Manifest(table.name))
        files = []
        for file in current.files:
            with new.stage(file.trade_date) as staged:
                rows = parquet.ROW_GROUP_ROWS if file.rows > PIECE_ROWS else PIECE_ROWS
                runs = old.read_runs([file])
                written = new.write_staged(staged, slices(old, file), runs, group_rows=rows)
                files.append(new.place(base, file.trade_date, file.level, staged, written))
        made = new.commit(base, add=files, marks=current.marks)
        if made is None or made.rows != current.rows:
            raise LakeError(
                f"the migration of {table.name} changed its number of rows; the table stays as it was"
            )
        (folder / NAME).touch()  # the hour begins now
        (folder / NAME).rename(folder / OLD)
        sync(folder)
    return made.rows


def sweep(folder: Path, before: int) -> int:
    """Remove the old files of a table that was migrated before an instant (ns UTC); returns how many."""
    try:
        if (folder / OLD).stat().st_mtime_ns >= before:
            return 0
    except FileNotFoundError:
        return 0
    old = manifest.parse((folder / OLD).read_bytes())
    names = [*(file.path for file in old.files), *(file.path for file in old.superseded)]
    removed = remove_paths(folder / name for name in names)
    (folder / OLD).unlink()
    return removed


def slices(stored: TableFiles, file: DataFile) -> Iterator[pl.DataFrame]:
    """The rows of a file, a row group at a time."""
    for offset in range(0, file.rows, parquet.ROW_GROUP_ROWS):
        yield stored.scan([file]).slice(offset, parquet.ROW_GROUP_ROWS).collect()
